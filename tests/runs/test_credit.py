"""The example of a bank and an insurer, beside scikit-learn on the joined table."""

import csv
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as sklearn
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from mpc_train.admission.load import load_job, resolved
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.table import load_table
from mpc_train.run.local import local_data
from mpc_train.twin import join
from tests.support.commands import launched
from tests.support.examples import copied_example, make_data

COMMON = 1500
EMPLOYMENT = ["employed", "self-employed", "retired", "in training"]
REGIONS = ["city", "suburb", "country"]


def joined(folder: Path, job: Job) -> polars.DataFrame:
    """The cells of the 1,500, in the order in which holders share them in."""
    frames = []
    for owner, source in local_data(folder / "job.toml", job).items():
        tokens = load_table(source, job, owner).tokens
        assert tokens is not None
        frame = polars.read_csv(
            Path(source.file).read_bytes().decode(source.encoding).encode(),
            separator=source.separator,
            null_values=["", "NA", "-"],
        ).drop("name", "born")
        frames.append(frame.with_columns(token=polars.Series([t.tobytes().hex() for t in tokens])))
    both = frames[0].join(frames[1], on="token").sort("token")
    assert len(both) == COMMON
    return both


def fitted(frame: polars.DataFrame, training: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """What a statistician would fit on the joined table, and scores and labels of all rows."""
    standard = make_pipeline(SimpleImputer(), StandardScaler())
    log = FunctionTransformer(np.log)
    clipped = FunctionTransformer(lambda x: np.log(np.clip(x, 1000, 1000000)))
    numbers = ["income", "debt_ratio", "claims", "car_value"]
    values = frame.select(numbers).to_numpy().astype(np.float64)
    columns = ColumnTransformer(
        [
            ("income", make_pipeline(clipped, SimpleImputer(), StandardScaler()), [0]),
            ("missing", MissingIndicator(features="all"), [0]),
            ("debt_ratio", standard, [1]),
            ("claims", standard, [2]),
            ("car_value", make_pipeline(log, SimpleImputer(), StandardScaler()), [3]),
        ]
    )
    found = columns.fit(values[training]).transform(values).astype(np.float64)
    levels = {}
    for name, categories in (("employment", EMPLOYMENT), ("region", REGIONS)):
        encoder = OneHotEncoder(
            categories=[categories], handle_unknown="ignore", sparse_output=False
        )
        column = frame[name].fill_null("missing").to_numpy().astype(object)[:, None]
        levels[name] = encoder.fit_transform(column)[:, 1:]
    inputs = np.hstack([found[:, :3], levels["employment"], found[:, 3:], levels["region"]])
    labels = frame["default"].to_numpy()
    model = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
    model.fit(inputs[training], labels[training])
    return model, model.decision_function(inputs), labels


def test_the_script_writes_what_the_job_expects(tmp_path: Path) -> None:
    """Files of two spellings, 1,500 people in both, the same from run to run."""
    path = copied_example("credit_columns", tmp_path)
    runpy.run_path(str(tmp_path / "make_data.py"), run_name="__main__")
    job = load_job(path)
    sources = local_data(path, job)
    tables = [load_table(source, job, owner) for owner, source in sources.items()]
    _, table = join.joined(job, tables)
    assert table.rows == COMMON and 0.1 < table.labels.mean() < 0.6
    assert 0 < (1 - table.present).mean() < 0.2
    first = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    runpy.run_path(str(tmp_path / "make_data.py"), run_name="__main__")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == first
    names = [
        {line.split(sign)[0] for line in first[f"{owner}.csv"].decode(code).splitlines()[1:]}
        for owner, sign, code in (("bank", ",", "utf-8"), ("insurer", ";", "latin-1"))
    ]
    assert not names[0] & names[1]


@pytest.mark.slow
@pytest.mark.parametrize("membership", ["holders", "nobody"])
def test_a_run_equals_scikit_learn_on_the_joined_table(tmp_path: Path, membership: str) -> None:
    path = copied_example("credit_columns", tmp_path)
    text = path.read_text().replace('membership = "nobody"', f'membership = "{membership}"')
    if membership == "nobody":  # all rows train: which are held out would be anybody's guess
        text = text.replace("test_fraction = 0.25", "test_fraction = 0")
        text = text.replace('metrics = ["accuracy", "auc", "log_loss"]', "")
    path.write_text(text)
    make_data(tmp_path)
    result = launched(path, "--compare")
    assert result["joined_rows"] == COMMON
    assert result["max_weight_difference"] < 2e-3
    job = resolved(load_job(path), COMMON)
    training, held_out = split(job)
    model, scores, labels = fitted(joined(tmp_path, job), training)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    coefficients, expected = weights["weight"][0], model.coef_[0]
    assert np.abs(coefficients - expected).max() <= 2e-3 * np.abs(expected).max()
    assert abs(weights["bias"][0] - model.intercept_[0]) <= 2e-3 * abs(model.intercept_[0])
    if membership == "holders":
        y, z = labels[held_out], scores[held_out]
        found = result["metrics"]
        assert abs(found["accuracy"] - sklearn.accuracy_score(y, z >= 0)) <= 0.005
        assert abs(found["auc"] - sklearn.roc_auc_score(y, z)) <= 0.005
        assert abs(found["log_loss"] - sklearn.log_loss(y, 1 / (1 + np.exp(-z)))) <= 0.005
    _learnt_is_what_the_contract_said(result, membership)
    _near_the_truth(tmp_path)


def _learnt_is_what_the_contract_said(result: dict[str, Any], membership: str) -> None:
    overlap = "how many records all owners have in common"
    own = "which of its own records all owners have"
    for name, what in result["learnt"].items():
        assert overlap in what
        assert (own in what) == (membership == "holders" and name in ("bank", "insurer"))


def _near_the_truth(folder: Path) -> None:
    """The rule by which the data were drawn lies within four standard errors or so."""
    with (folder / "run" / "coefficients.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for name, value in {"debt_ratio": 0.9, "claims": 0.6, "employment=self-employed": 0.7}.items():
        found, error = float(table[name]["coefficient"]), float(table[name]["std_error"])
        assert abs(found - value) < 4 * error
