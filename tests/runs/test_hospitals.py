"""The example of four hospitals, in real processes, beside scikit-learn on the pooled tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import split
from mpc_train.results.predicting import load_predictor
from mpc_train.results.predictions import write_records
from mpc_train.tables.source import Source
from tests.support.commands import launched
from tests.support.examples import copied_example, make_data

CODES = ["", "NA", "-9", "unknown"]


def pooled(folder: Path, owners: tuple[str, ...]) -> polars.DataFrame:
    frames = [
        polars.read_csv(folder / "data" / f"{name}.csv", null_values=CODES) for name in owners
    ]
    frame = polars.concat([frame.cast({"smoker": polars.String}) for frame in frames])
    return frame.with_columns(smoker=(polars.col("smoker") == "yes").cast(polars.Float64))


def fitted(frame: polars.DataFrame, training: np.ndarray) -> tuple[Any, np.ndarray]:
    """The model that a statistician would fit on the pooled table, and its scores of all rows."""
    standard = make_pipeline(SimpleImputer(), StandardScaler())
    log = FunctionTransformer(lambda x: np.log(np.clip(x, 0.2, 8)))
    columns = ColumnTransformer(
        [
            ("numbers", standard, [0, 1, 2]),
            ("creatinine", make_pipeline(log, SimpleImputer(), StandardScaler()), [3]),
            ("missing", MissingIndicator(features="all"), [3]),
            ("smoker", SimpleImputer(), [4]),
        ]
    )
    values = frame.drop("admission", "readmitted").to_numpy().astype(np.float64)
    numbers = columns.fit(values[training]).transform(values).astype(np.float64)
    levels = OneHotEncoder(
        categories=[["planned", "emergency", "transfer", "hospice"]], drop="first"
    ).fit_transform(frame["admission"].to_numpy()[:, None])
    pair = numbers[:, :1] * numbers[:, 5:6]
    inputs = np.hstack([numbers, levels.toarray(), pair])
    labels = frame["readmitted"].to_numpy()
    # No penalty; a small one stands for none in every version of the library.
    model = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
    model.fit(inputs[training], labels[training])
    return model, model.decision_function(inputs)


@pytest.mark.slow
def test_a_run_equals_scikit_learn_on_the_pooled_table(tmp_path: Path) -> None:
    path = copied_example("hospitals_rows", tmp_path)
    make_data(tmp_path)
    found = launched(path)["metrics"]
    job = load_job(path)
    frame = pooled(tmp_path, job.owners)
    training, held_out = split(job)
    model, scores = fitted(frame, training)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    coefficients, expected = weights["weight"][0], model.coef_[0]
    assert np.abs(coefficients - expected).max() <= 2e-3 * np.abs(expected).max()
    assert abs(weights["bias"][0] - model.intercept_[0]) <= 2e-3 * abs(model.intercept_[0])
    y, z = frame["readmitted"].to_numpy()[held_out], scores[held_out]
    called, odds = z >= 0, 1 / (1 + np.exp(-z))
    assert abs(found["accuracy"] - sklearn.accuracy_score(y, called)) <= 0.005
    assert abs(found["auc"] - sklearn.roc_auc_score(y, z)) <= 0.005
    assert abs(found["log_loss"] - sklearn.log_loss(y, odds)) <= 0.005
    for name in ("precision", "recall", "f1"):
        assert abs(found[name] - getattr(sklearn, f"{name}_score")(y, called)) <= 0.005, name
    differences = np.abs(found["confusion"] - sklearn.confusion_matrix(y, called))
    assert differences.max() <= 0.005 * len(y)
    shares, means = calibration_curve(y, odds, n_bins=10)
    bins = found["calibration"]
    assert bins[-1] is None and all(bins[:-1])
    np.testing.assert_allclose(bins[:-1], np.c_[means, shares][: len(bins) - 1], atol=0.02)
    _predictions_equal(tmp_path, job.owners[3], odds_of=1 / (1 + np.exp(-scores)), first=4350)


def _predictions_equal(folder: Path, owner: str, odds_of: np.ndarray, first: int) -> None:
    """A recipient who applies the model to raw records gets scikit-learn's probabilities."""
    predictor = load_predictor(folder / "run")
    out = folder / "predictions.json"
    with out.open("w") as file:
        source = Source(str(folder / "data" / f"{owner}.csv"))
        rows = write_records(predictor, source, file, "json")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == len(records) == len(odds_of) - first
    found = [record["p(true)"] for record in records]
    np.testing.assert_allclose(found, odds_of[first:], atol=2e-3)
