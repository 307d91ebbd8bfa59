"""What becomes of the nodes' summaries and envelopes, and how it is shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mpc_train.commands.collect import bundle, summarise
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import _Events
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job, load_job
from mpc_train.progress import ProgressView
from mpc_train.report import duration, outcome, size
from protocols.bundle import unpack_bundle
from tests.mpc_train.helpers import write_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


def summaries(job: Job) -> dict[str, dict[str, Any]]:
    one = {
        "steps": 16,
        "train_seconds": 2.0,
        "step_seconds_median": 0.125,
        "bytes_sent": 1500,
        "rounds": 90,
        "metrics": {"accuracy": 0.9, "auc": None},
    }
    return {name: dict(one) for name in job.nodes}


def test_envelopes_become_one_file_a_recipient(tmp_path: Path) -> None:
    files = []
    for recipient in ("ann", "office"):
        for sender in ("bob", "ann"):
            path = tmp_path / "sealed" / recipient / sender / "model.envelope"
            path.parent.mkdir(parents=True)
            path.write_bytes(f"{sender} to {recipient}".encode())
            files.append(path)
    other = tmp_path / "public" / "ann" / "notes"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    bundles = bundle(tmp_path, [*files, other], ["office"], ["ann", "bob"])
    assert bundles == {name: tmp_path / f"{name}.sealed" for name in ("ann", "office")}
    inside = unpack_bundle(bundles["office"].read_bytes())
    assert inside == [b"ann to office", b"bob to office"]


def test_a_recipient_who_lacks_an_envelope_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "office" / "bob" / "model.envelope"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"bob to office")
    with pytest.raises(ArtifactError, match="nothing that ann, cleo sealed to office came"):
        bundle(tmp_path, [path], ["office"], ["ann", "bob", "cleo"])
    with pytest.raises(ArtifactError, match="nothing that bob sealed to ann came"):
        bundle(tmp_path, [path], ["office", "ann"], ["bob"])
    assert not list(tmp_path.glob("*.sealed"))


def test_summaries_become_one_report(job: Job) -> None:
    given = summaries(job)
    given["bob"]["train_seconds"] = 3.0
    result = summarise(job, given)
    assert result["status"] == "ok"
    assert (result["parties"], result["train_seconds"]) == (3, 3.0)
    assert result["bytes_sent"] == dict.fromkeys(("ann", "bob", "cleo", "registry"), 1500)
    text = outcome({**result, "model": "m", "sealed": ["s"], "twin_metrics": {"accuracy": 0.91}})
    assert "accuracy 0.9000   (same training in the clear: 0.9100)" in text
    assert "auc refused" in text
    assert "registry 1.5 kB" in text


@pytest.mark.parametrize("key", ["steps", "metrics"])
def test_evaluators_who_disagree_are_not_believed(job: Job, key: str) -> None:
    given = summaries(job)
    given["cleo"][key] = 7
    with pytest.raises(ArtifactError, match=f"cleo and ann report different {key}"):
        summarise(job, given)


def test_sizes_and_times_read_well() -> None:
    assert [size(count) for count in (0, 999, 1000, 2_500_000, 3e9, 4e12)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB",
    ]  # fmt: skip
    assert [duration(time) for time in (0.04, 9.5, 12, 59.4, 61, 3599, 3600, 7500)] == [
        "0.0 s", "9.5 s", "12 s", "59 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    with view.shown():
        view.event("arrived", {"node": "bob"})
        view.event("started", {})
        view.event("progress", {"node": "bob", "fields": {"step": 1, "steps": 4}})
    with ProgressView(enabled=False).shown() as silent:
        silent.event("arrived", {"node": "cleo"})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bob has joined\nall nodes are connected to each other; training\n"
    fields = {"step": 4, "steps": 4, "bytes_sent": 1500}
    view.event("progress", {"node": "bob", "fields": fields})
    assert re.fullmatch(
        r"training 4/4  [0-9.]+ steps/s  0.0 s left  1.5 kB sent\n", capsys.readouterr().err
    )


def test_progress_for_machines_skips_some_but_never_the_last_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = _Events(Format.json)
    for step in range(1, 51):
        events("progress", {"node": "bob", "fields": {"step": step, "steps": 50}})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [line["fields"]["step"] for line in lines]
    assert shown[-1] == 50
    assert len(shown) < 10
