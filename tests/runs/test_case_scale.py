"""Columns that fill a small part of their declared range, in real processes, beside scikit-learn.

An income in [0, 10^12], admissions of one year in a column of two centuries: they once kept their
declared scale, and the run said ok.
"""

import csv
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mpc_train.admission.load import load_job
from mpc_train.results.predicting import load_predictor
from mpc_train.results.predictions import write_records
from mpc_train.tables.source import Source
from tests.support.cases import CASES, CaseRun, run_case

OWNERS = ("alpha", "beta", "gamma")


def pooled(name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all owners, in their order: raw inputs and labels."""
    rows = []
    for owner in OWNERS:
        with (CASES / name / "data" / f"{owner}.csv").open() as file:
            rows += list(csv.DictReader(file))
    inputs = [[float(row["a"]), number(row[column])] for row in rows]
    return np.array(inputs), np.array([int(row["y"]) for row in rows])


def number(cell: str) -> float:
    """As tables have it: dates as days since 1970."""
    if not cell[:4].isdigit() or cell[4:5] != "-":
        return float(cell)
    return float((date.fromisoformat(cell) - date(1970, 1, 1)).days)


def probabilities(run: CaseRun, owner: str) -> np.ndarray:
    """What a recipient predicts for an owner's raw records."""
    out = run.folder / "predictions.json"
    with out.open("w") as file:
        predictor = load_predictor(run.folder / "run")
        write_records(predictor, Source(str(run.folder / "data" / f"{owner}.csv")), file, "json")
    return np.array([json.loads(line)["p(true)"] for line in out.read_text().splitlines()])


@pytest.mark.slow
def test_newton_with_a_range_of_a_trillion(tmp_path: Path) -> None:
    inputs, labels = pooled("25c", "income")
    scaled = StandardScaler().fit_transform(inputs)
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000).fit(scaled, labels)
    expected = np.append(model.coef_[0], model.intercept_)
    found = []
    for again in ("first", "second"):
        run = run_case("25c", tmp_path / again)
        assert run.record["status"] == "ok", run.words
        with (run.folder / "run" / "coefficients.csv").open() as file:
            found.append([float(row["coefficient"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(found[0], expected, atol=2e-3)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert run.record["preparation"] == {}
    odds = model.predict_proba(scaled)[:, 1]
    np.testing.assert_allclose(probabilities(run, "alpha"), odds[:300], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "accuracy", "auc"), [("25e", 0.847, 0.910), ("25h", 0.893, 0.953)]
)
@pytest.mark.slow
def test_gradients_with_a_wide_range(
    tmp_path: Path, name: str, accuracy: float, auc: float
) -> None:
    run = run_case(name, tmp_path, "--compare")
    assert run.record["status"] == "ok", run.words
    assert run.record["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert run.record["metrics"]["auc"] == pytest.approx(auc, abs=0.01)
    # The twin standardises raw cells: that weights agree says that ours came out standardised.
    assert run.record["twin_metrics"]["auc"] == pytest.approx(
        run.record["metrics"]["auc"], abs=1e-4
    )
    assert run.record["max_weight_difference"] < 1e-3
    inputs, _ = pooled(name, "income" if name == "25e" else "admit")
    predictor = load_predictor(run.folder / "run")
    state = {name: value.numpy() for name, value in predictor.module.state_dict().items()}
    job, inverse = load_job(run.folder / "job.toml"), predictor.parameters["prepare.inverse"]
    center = predictor.parameters["prepare.center"]
    declared = np.array([[term.center, term.scale] for term in job.pipeline.terms]).T
    z = ((inputs - declared[0]) / declared[1] - center) * inverse
    assert np.abs(z.mean(axis=0)).max() < 0.1 and np.abs(z.std(axis=0) - 1).max() < 0.1
    odds = 1 / (1 + np.exp(-(z @ state["weight"][0] + state["bias"][0])))
    np.testing.assert_allclose(probabilities(run, "alpha"), odds[:300], atol=1e-6)


@pytest.mark.slow
def test_a_column_that_cannot_be_scaled_is_named_in_every_output(tmp_path: Path) -> None:
    """Ten times the trillion, once more and again: float64 itself has no digits left."""

    def widened(job: str) -> str:
        schema = tmp_path / "25c" / "schema.toml"
        text = schema.read_text()
        schema.write_text(text.replace("1000000000000", "1" + 20 * "0"))
        return job

    run = run_case("25c", tmp_path, change=widened)
    assert run.record["status"] == "ok", run.words
    assert run.record["preparation"] == {"constant": ["income"]}
    manifest = json.loads((run.folder / "run" / "manifest.json").read_text())
    assert manifest["preparation"]["remarks"] == {"constant": ["income"]}
    with (run.folder / "run" / "coefficients.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert abs(float(rows["income"]["coefficient"])) < 1e-5
    # Nobody but the recipients learns it.
    assert not any("constant" in str(what) for what in run.record["learnt"].values())
