"""A table that is perfectly separable: no coefficient is finite, and every output says so."""

import csv
import json
from pathlib import Path

import pytest

from tests.support.cases import CaseRun, run_case

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> CaseRun:
    return run_case("28", tmp_path_factory.mktemp("cases"))


def test_the_run_says_so(separable: CaseRun) -> None:
    record = separable.record
    assert record["status"] == "ok" and separable.status == 0
    assert (record["converged"], record["separated"]) == (False, True)
    assert "did not converge" in record["warnings"][0]
    assert "separate the labels perfectly" in record["warnings"][0]


def test_the_table_claims_nothing(separable: CaseRun) -> None:
    with Path(separable.record["coefficients"]).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "b", "(intercept)"]
    for row in rows:
        assert (row["std_error"], row["statistic"], row["p_value"]) == ("", "", "")
        assert row["note"] == "not converged"


def test_the_manifest_says_so(separable: CaseRun) -> None:
    manifest = json.loads(Path(separable.record["model"]).with_name("manifest.json").read_text())
    assert manifest["regression"]["converged"] is False
    assert manifest["regression"]["separation"] == "suspected"
    assert manifest["regression"]["warnings"] == separable.record["warnings"]


@pytest.mark.parametrize(("steps", "guard"), [(7, "true"), (14, "false"), (40, "false")])
def test_more_steps_do_not_make_it_converge(tmp_path: Path, steps: int, guard: str) -> None:
    """Weights near 0 slow the steps down, which is not the same as having arrived."""
    run = run_case("28", tmp_path, change=lambda job: _steps(job, steps, guard))
    assert (run.record["converged"], run.record["separated"]) == (False, True)


def test_coefficients_that_grow_out_of_the_ring_end_the_run(tmp_path: Path) -> None:
    run = run_case("28", tmp_path, change=lambda job: _steps(job, 40, "true"))
    assert run.status == 10
    assert run.record["code"] == "diverged"
    assert "train.optimizer.l2" in run.record["message"]


def _steps(job: str, steps: int, guard: str) -> str:
    return job.replace(
        '{ name = "newton" }', f'{{ name = "newton", steps = {steps} }}\nguard = {guard}'
    )
