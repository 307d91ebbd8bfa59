"""Evidence about a run in real processes: written, verified, marked if a log is altered."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from tests.runs.test_audit_run import log_of, study  # noqa: F401 (a fixture)
from tests.support.study import NODES, Study

pytest.importorskip("cyclonedx")
pytest.importorskip("jinja2")


def write(study: Study, name: str, out: Path, *more: object) -> Result:  # noqa: F811
    config = study.folder / f"{name}.toml"
    given = ("--config", config, "--passphrase-file", study.passphrase, "--out", out)
    words = map(str, ("evidence", "study", *given, *more, "--format", "json"))
    return CliRunner().invoke(app, list(words))


def verify(study: Study, folder: Path) -> Result:  # noqa: F811
    words = ["evidence", "verify", str(folder), "--cards", str(study.homes / "office" / "roster")]
    return CliRunner().invoke(app, words)


def last(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_every_node_writes_evidence_that_anybody_verifies(
    study: Study,  # noqa: F811
    tmp_path: Path,
) -> None:
    for name in (*NODES, "desk"):
        folder = tmp_path / name
        others = [log_of(study, other) for other in NODES if other != name]
        against = [word for other in others for word in ("--against", other)]
        done = write(study, name, folder, *against)
        assert done.exit_code == 0, done.output
        assert last(done)["verified"] is True
        checked = verify(study, folder)
        assert checked.exit_code == 0, checked.output
        assert "Results signed by ann, bob, registry" in checked.output
        said = json.loads((folder / "evidence.json").read_bytes())
        assert said["log"]["counts"]["run-ended"] == 1
        blobs = [path.read_bytes() for path in folder.iterdir()]
        assert study.leaks(*blobs) == set()


@pytest.mark.slow
def test_evidence_of_a_tampered_log_is_written_and_marked(
    study: Study,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = log_of(study, "ann") / "records"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    folder = tmp_path / "pack"
    done = write(study, "ann", folder)
    assert done.exit_code == 9
    assert last(done)["verified"] is False and "not verified: audit log: entry" in done.stderr
    assert "<strong>Not verified.</strong>" in (folder / "evidence.html").read_text()
    checked = verify(study, folder)
    assert checked.exit_code == 9 and "ann says: not verified" in checked.stderr


def test_a_job_that_never_ran_here_is_an_error(study: Study, tmp_path: Path) -> None:  # noqa: F811
    config = study.folder / "ann.toml"
    words = ["evidence", "other", "--config", str(config), "--out", str(tmp_path / "pack")]
    done = CliRunner().invoke(app, [*words, "--passphrase-file", str(study.passphrase)])
    assert done.exit_code == 9 and "no finished run of 'other' here" in done.stderr
    assert not (tmp_path / "pack").exists()
