"""A run from a vault: no plaintext of the table is on the disk, before, during or afterwards."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpc_train.cli import app
from tests.support.study import PASSPHRASE, Study, find_secrets

NODE_FILE = """
node = {{ name = "ann", home = "homes/ann", passphrase_file = "passphrase" }}
coordinator = {{ name = "desk", address = "tcp://127.0.0.1:7700" }}
[rules]
recipients = []
dealers = []
evaluators = []
"""


@pytest.mark.slow  # the demo trains from vaults, too
def test_a_table_of_the_vault_trains_as_its_file_would(
    tmp_path: Path, homes: Path, good_study: Study
) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    cells = study.csv("ann").read_text()
    (tmp_path / "import.toml").write_text(NODE_FILE.format())
    found = CliRunner().invoke(
        app,
        [
            "vault",
            "import",
            str(study.csv("ann")),
            "adm",
            "--config",
            str(tmp_path / "import.toml"),
        ],
    )
    assert found.exit_code == 0, found.output
    study.csv("ann").unlink()
    study.tables["ann"] = "vault:adm"
    try:
        study.coordinator()
        study.nodes()
        ended = study.ended()
    finally:
        study.close()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert ended["desk"].record["steps"] == good_study.good["desk"].record["steps"]
    metrics = [each["ann"].record["metrics"] for each in (ended, good_study.good)]
    assert metrics[0] == metrics[1]
    assert study.leaks() == set()
    kept = [
        path for path in tmp_path.rglob("*") if path.is_file() and study.secrets not in path.parents
    ]
    blobs = [path.read_bytes() for path in kept if path != study.passphrase]
    assert find_secrets(blobs, [cells], set()) == set()
    assert any("vault" in path.parts for path in kept)


def test_a_table_that_is_not_in_the_vault_stops_a_node_at_its_start(
    tmp_path: Path, homes: Path
) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    study.tables["ann"] = "vault:adm"
    study.address = "tcp://127.0.0.1:9"
    try:
        study.node("ann")
        ended = study.ended("ann")["ann"]
    finally:
        study.close()
    assert ended.status == 5
    (error,) = ended.errors
    assert "has no table adm; see mpc-train vault ls" in error
    assert PASSPHRASE not in ended.stderr
