"""What an evaluator keeps of drift, and what it says of it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from mpc_train.errors import ConfigError
from mpc_train.evaluation.histograms import OUTPUTS, histograms, noise_of
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Drift
from mpc_train.live.board import Board
from mpc_train.live.metrics import exposition
from mpc_train.serving.monitoring import record as record_module
from mpc_train.serving.monitoring.record import Model, Record, drift_event, said
from tests.support.served import served_job

DIGEST = "ab" * 32
NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
LIKE = (100,) * 10
OTHER = (0, 0, 0, 0, 0, 0, 0, 0, 500, 500)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return served_job(tmp_path, drift=Drift(1000, Decimal(2), ("ann",)))


def record(path: Path, seen: list[Model] | None = None) -> Record:
    told = seen if seen is not None else []
    return Record(path, lambda digest, model: told.append(model), lambda: NOW)


def test_the_first_window_is_the_baseline_of_those_that_follow(job: Job, tmp_path: Path) -> None:
    assert [one.name for one in histograms(job)] == [OUTPUTS]
    seen: list[Model] = []
    path = tmp_path / "ann.drift.json"
    one = record(path, seen)
    one.add(DIGEST, job, 1008, None)  # of few real rows
    one.add(DIGEST, job, 1000, {OUTPUTS: LIKE})
    one.add(DIGEST, job, 1001, {OUTPUTS: LIKE})
    # After a restart the baseline is the same, and the numbers go on.
    record(path, seen).add(DIGEST, job, 1002, {OUTPUTS: OTHER})
    first, second, third, last = (model.windows[-1] for model in seen)
    assert (first.window, first.rows, first.counts, first.shifts) == (1, 1008, {}, {})
    assert seen[0].baseline is None
    assert second.shifts == {} and seen[1].baseline == second
    assert [*second.counts[OUTPUTS].values()] == [*LIKE]
    assert third.shifts[OUTPUTS].index == 0 and third.shifts[OUTPUTS].says == "no shift"
    assert last.shifts[OUTPUTS].index > 1 and last.shifts[OUTPUTS].says == "shifted"
    assert (last.window, last.rows, last.ended) == (4, 1002, "2026-05-06T07:08:09+00:00")
    assert (seen[-1].releases, seen[-1].epsilon, seen[-1].baseline) == (4, "2", second)
    assert path.stat().st_mode & 0o077 == 0


def test_training_rows_are_the_baseline_where_they_were_counted(job: Job, tmp_path: Path) -> None:
    seen: list[Model] = []
    path = tmp_path / "ann.drift.json"
    training = {OUTPUTS: LIKE}
    record(path).add(DIGEST, job, 1008, None, training)
    # Also after a restart, and where a window came before without them.
    for counts in (OTHER, LIKE):
        record(path, seen).add(DIGEST, job, 1000, {OUTPUTS: counts}, training)
    shifted, like = (model.windows[-1] for model in seen)
    assert shifted.shifts[OUTPUTS].says == "shifted" and like.shifts[OUTPUTS].index == 0
    assert shifted.against == like.against == "training rows"
    assert seen[-1].baseline is None and seen[-1].releases == 3
    assert [*seen[-1].training[OUTPUTS].values()] == [*LIKE]
    said = drift_event(DIGEST, seen[0])
    assert said["against"] == "training rows"
    board = Board(("ann",))
    board.event("drift", said)
    (event,) = board.snapshot()["events"]
    assert event["text"] == (
        f"study, window 2 of 1000 rows, against training rows: shifted: {OUTPUTS}"
    )


def test_a_record_of_an_earlier_release_goes_on(job: Job, tmp_path: Path) -> None:
    path, seen = tmp_path / "d.json", list[Model]()
    record(path).add(DIGEST, job, 100, {OUTPUTS: LIKE})
    old = json.loads(path.read_bytes())
    (model,) = old["models"].values()
    del model["training"], model["baseline"]["against"], model["windows"][0]["against"]
    path.write_text(json.dumps(old))
    record(path, seen).add(DIGEST, job, 101, {OUTPUTS: OTHER})
    assert seen[0].windows[-1].against == "the first window of 100 rows"


def test_noise_is_no_shift() -> None:
    assert said(0.09, 0.0) == said(0.09, 1.0) == "no shift"
    assert said(0.1, 0.04) == said(0.2, 0.09) == "look"
    assert said(0.25, 0.1) == "shifted"
    assert said(0.25, 0.2) == said(0.4, 0.2) == "too noisy to say"


def test_the_noise_of_two_evaluators(job: Job) -> None:
    """Of a discrete Laplace variable of scale 1/2 each: a variance of about 2/ε² each."""
    assert noise_of(job) == pytest.approx((len(job.evaluators) * 2 / 2**2) ** 0.5)


def test_models_are_apart_and_old_windows_go(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "KEPT_WINDOWS", 3)
    seen: list[Model] = []
    one = record(tmp_path / "d.json", seen)
    for rows in range(100, 105):
        one.add(DIGEST, job, rows, {OUTPUTS: LIKE})
    one.add("cd" * 32, job, 99, {OUTPUTS: OTHER})
    assert [window.rows for window in seen[-2].windows] == [102, 103, 104]
    assert seen[-2].baseline is not None and seen[-2].baseline.rows == 100
    assert seen[-1].windows[0].shifts == {}  # it is its own baseline


def test_a_baseline_of_other_bins_is_none(job: Job, tmp_path: Path) -> None:
    path, seen = tmp_path / "d.json", list[Model]()
    record(path).add(DIGEST, job, 100, {OUTPUTS: LIKE})
    path.write_bytes(path.read_bytes().replace(b"below 0.1", b"below 0.2"))
    record(path, seen).add(DIGEST, job, 101, {OUTPUTS: OTHER})
    assert seen[0].baseline == seen[0].windows[-1]


def test_a_file_that_cannot_be_read_or_written(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.json"
    for data in (b"", b"{}", b'{"models":{"a":{}}}', b"\xff" * 100, b"[" * 100_000):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="the record of drift cannot be read"):
            record(path)
    path.unlink()
    one, seen = record(path), list[Model]()

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(record_module, "write_atomic", full)
        one.add(DIGEST, job, 100, {OUTPUTS: LIKE})
    assert "drift cannot be recorded (No space left on device)" in caplog.text
    one.add(DIGEST, job, 101, {OUTPUTS: LIKE})  # writes both
    record(path, seen).add(DIGEST, job, 102, None)
    assert [window.rows for window in seen[0].windows] == [100, 101, 102]


def test_a_window_on_the_page_and_for_prometheus(job: Job, tmp_path: Path) -> None:
    seen: list[Model] = []
    one, board = record(tmp_path / "d.json", seen), Board(("ann",))
    for counts in (None, LIKE, OTHER):
        one.add(DIGEST, job, 100, None if counts is None else {OUTPUTS: counts})
        board.event("drift", drift_event(DIGEST, seen[-1]))
    state = board.snapshot()
    texts = [event["text"] for event in state["events"]]
    assert texts == [
        "study, window 1 of 100 rows: too few of them were real",
        "study, window 2 of 100 rows is the baseline of its drift, because its training rows were "
        "not counted",
        f"study, window 3 of 100 rows, against the first window of 100 rows: shifted: {OUTPUTS}",
    ]
    assert msgspec.json.decode(msgspec.json.encode(state)) == state
    pytest.importorskip("prometheus_client")
    found = exposition(state)
    assert found is not None
    lines = found[1].decode().splitlines()
    index = seen[-1].windows[-1].shifts[OUTPUTS].index
    labels = f'against="the first window of 100 rows",digest="{DIGEST}",histogram="{OUTPUTS}"'
    labels += ',job_name="",model="study"'
    assert f"mpc_train_drift_index{{{labels}}} {index}" in lines
    assert any(line.startswith("mpc_train_drift_chance{") for line in lines)
    assert any(
        line.startswith("mpc_train_drift_window{") and line.endswith(" 3.0") for line in lines
    )
