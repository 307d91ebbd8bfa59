"""Trainings that once ended with a wrong model and said ok."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.owners.table import Table, load_table
from mpc_train.tables.source import Source
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import max_weight_difference, train_twin
from tests.support.cases import CASES, run_case
from tests.support.pooled import trained_over_shares


def case(name: str, folder: Path, change: Callable[[str], str]) -> Path:
    """A case's job, changed, with its tables beside it."""
    shutil.copytree(CASES / name, folder / name)
    path = folder / name / "job.toml"
    path.write_text(change(path.read_text()))
    return path


def tables_of(path: Path, job: Job) -> list[Table]:
    return [
        load_table(Source(str(path.parent / "data" / f"{owner}.csv")), job, owner)
        for owner in job.owners
    ]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_37b_batches_that_are_too_small_for_batch_norm(rows: int, tmp_path: Path) -> None:
    """With two rows PyTorch's own float32 ends 11 from its float64 in this case."""
    path = case("37b", tmp_path, lambda text: text.replace("size = 2", f"size = {rows}"))
    message = rf"model.graph.*n.1: batch_norm over {rows} .*train.batch_size = 4 at least"
    with pytest.raises(JobError, match=message):
        load_job(path)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 5, 8])
def test_37b_batches_that_are_large_enough(rows: int, tmp_path: Path) -> None:
    path = case("37b", tmp_path, lambda text: text.replace("size = 2", f"size = {rows}"))
    job = load_job(path)
    tables = tables_of(path, job)
    found = trained_over_shares(job, tables).weights
    twin = train_twin(job, tables, initial_weights(job))
    assert max_weight_difference(found, twin.state) < 1e-2


@pytest.mark.slow
def test_39a_a_network_that_ends_in_its_sigmoid(tmp_path: Path) -> None:
    """As the same network without it, at the twin as well: 0.40 with a second sigmoid."""
    ran = run_case("39a", tmp_path, "--compare")
    assert ran.status == 0, ran.words
    for metrics in (ran.record["metrics"], ran.record["twin_metrics"]):
        assert metrics["accuracy"] == pytest.approx(0.72, abs=0.01)
    assert ran.record["max_weight_difference"] < 1e-2


@pytest.mark.slow
def test_36a_a_learning_rate_that_is_far_too_high(tmp_path: Path) -> None:
    """It ended with an mse of -868111; every node ends, with advice, and nobody gets a model."""
    ran = run_case("36a", tmp_path)
    assert ran.status == 10
    assert ran.record["status"] == "DivergedError" and ran.record["code"] == "diverged"
    for words in ("left the range of the ring", "lower the learning rate", "nobody gets a result"):
        assert words in ran.record["message"]
    assert "metrics" not in ran.record
    assert not list((ran.folder / "run").rglob("*.safetensors"))
    assert not list((ran.folder / "run").rglob("*.sealed"))


@pytest.mark.slow
def test_36a_at_a_rate_that_is_not(tmp_path: Path) -> None:
    slower = "learning_rate = 0.1 }"
    ran = run_case(
        "36a",
        tmp_path,
        "--compare",
        change=lambda text: text.replace("learning_rate = 3 }", slower),
    )
    assert ran.status == 0, ran.words
    expected = ran.record["twin_metrics"]["mse"]
    assert ran.record["metrics"]["mse"] == pytest.approx(expected, abs=1e-3)
    assert all("range" in what for what in ran.record["learnt"].values())
