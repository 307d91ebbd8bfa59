"""Trainings that once ended with a wrong model and said ok."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mpc_train.data import Table, load_table
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job, load_job
from mpc_train.networks.models import initial_weights
from mpc_train.tables.source import Source
from mpc_train.twin.reference import max_weight_difference, train_twin
from tests.support.cases import CASES, run_case
from tests.support.pooled import trained_weights


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
    found = trained_weights(job, tables)
    twin = train_twin(job, tables, initial_weights(job))
    assert max_weight_difference(found, twin.state) < 1e-2


def test_39a_a_network_that_ends_in_its_sigmoid(tmp_path: Path) -> None:
    """As the same network without it, at the twin as well: 0.40 with a second sigmoid."""
    ran = run_case("39a", tmp_path, "--compare")
    assert ran.status == 0, ran.words
    for metrics in (ran.record["metrics"], ran.record["twin_metrics"]):
        assert metrics["accuracy"] == pytest.approx(0.72, abs=0.01)
    assert ran.record["max_weight_difference"] < 1e-2
