"""A table whose confusion matrix has an empty cell, in real processes."""

import json
from pathlib import Path

import numpy as np
import polars
import pytest
from sklearn import metrics as sklearn

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import split
from mpc_train.results.predicting import load_predictor
from mpc_train.results.predictions import write_records
from mpc_train.tables.source import Source
from tests.support.cases import CaseRun, run_case


def called(run: CaseRun) -> tuple[np.ndarray, np.ndarray]:
    """The held-out rows' labels and what the opened model calls them, as words."""
    job = load_job(run.folder / "job.toml")
    _, held_out = split(job)
    labels, guesses = [], []
    for owner in job.owners:
        path = run.folder / "data" / f"{owner}.csv"
        labels += polars.read_csv(path)["class"].to_list()
        with (run.folder / "predictions.json").open("w+") as file:
            write_records(load_predictor(run.folder / "run"), Source(str(path)), file, "json")
            file.seek(0)
            guesses += [json.loads(line)["prediction"] for line in file]
    return np.array(labels)[held_out], np.array(guesses)[held_out]


@pytest.mark.slow
def test_33_the_matrix_with_its_0(tmp_path: Path) -> None:
    run = run_case("33", tmp_path, "--compare")
    assert run.status == 0, run.words
    assert run.record["unavailable"] == {}
    found = np.array(run.record["metrics"]["confusion"])
    labels, guesses = called(run)
    classes = load_job(run.folder / "job.toml").label.classes
    expected = sklearn.confusion_matrix(labels, guesses, labels=list(classes))
    assert found.shape == (4, 4) and (expected == 0).any()
    np.testing.assert_array_equal(found, expected)
    assert run.record["metrics"]["accuracy"] == pytest.approx(np.trace(found) / 112, abs=1e-6)
    f1 = sklearn.f1_score(labels, guesses, labels=list(classes), average="macro", zero_division=0)
    assert run.record["metrics"]["f1"] == pytest.approx(f1, abs=1e-4)
    assert np.abs(found - run.record["twin_metrics"]["confusion"]).sum() <= 4


@pytest.mark.slow
def test_33_with_a_class_too_small_it_is_said(tmp_path: Path) -> None:
    """Everywhere that the metric would stand: the run, the manifest, and in words."""

    def stricter(job: str) -> str:
        return job.replace("[reveal]\n", "[reveal]\nleast_group = 20\n")

    run = run_case("33", tmp_path, change=stricter)
    assert run.status == 0, run.words
    assert run.record["metrics"]["confusion"] is None
    reason = run.record["unavailable"]["confusion"]
    for words in ("refused", "fewer than 20 of the 112", "reveal.least_group", "hold out more"):
        assert words in reason
    manifest = json.loads(Path(run.record["model"]).with_name("manifest.json").read_text())
    assert manifest["metrics"]["confusion"] is None
    assert manifest["unavailable"] == run.record["unavailable"]
