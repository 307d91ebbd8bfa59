"""What `mpc_train/docs/opened-model.md` says is enough to feed an opened model in plain PyTorch."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

import mpc_train
from mpc_train.jobs.pipeline import Pipeline
from mpc_train.owners.applied import applied
from mpc_train.owners.local import local_terms
from mpc_train.results.predicting import Predictor, load_predictor
from mpc_train.results.recipe import elements
from tests.mpc_train.results.test_predict import model_in, raw
from tests.support.preparation_case import JOB, SCHEMA, prepared_job, typed

PAGE = (Path(mpc_train.__path__[0]) / "docs" / "opened-model.md").read_text()
DATED = """
[[columns]]
name = "admitted"
kind = "date"
dates = [2000-01-01, 2030-12-31]
missing = [""]
"""
FEATURES = """
features = [
    { name = "age", center = 50, scale = 30 },
    { name = "income", center = 500000, scale = 500000 },
    { name = "visits", center = 30, scale = 30 },
    "smoker",
    "region",
]
"""
PREPARATIONS = {
    "everything": None,
    "nothing secret": "",
    "declared, with means": 'missing = "mean"',
    "minmax, marked": 'scale = "minmax"\nmissing = "mean"\nindicator = true',
    "powers of a scaled column": 'scale = "standard"\nmissing = "mean"\npowers = 3',
    "constants": 'scale = "standard"\nmissing = "mean"\n[prepare.columns.age]\nfill = 50\n',
    "no first level": 'missing = "mean"\ndrop_first = true',
    "logarithms": 'missing = "mean"\n[prepare.columns.visits]\nlog = "log"\nclip = [1, 20]',
    "products": 'missing = "mean"\nscale = "minmax"\ninteractions = [["age", "age"]]',
}


def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return str(code)


def run_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(snippet(), found)  # noqa: S102 - the page's own lines
    return found


def close(found: dict[str, Any], predictor: Predictor, rows: int) -> None:
    """The snippet's inputs and logits are those that `predict` works with, for `typed(rows, 1)`."""
    pipeline, table = predictor.job.pipeline, typed(rows, 1)
    given = found["prepared"](found["table"])
    assert given.shape == (found["table"].height, pipeline.width)
    if given.shape[0] == rows:
        terms = local_terms(pipeline, table)
        np.testing.assert_allclose(
            given, applied(pipeline, terms, predictor.parameters), rtol=1e-12, atol=1e-12
        )
    records = [row for chunk in predictor.records(found["table"]) for row in chunk]
    np.testing.assert_allclose(found["probability"], [row[2] for row in records], atol=1e-5)


@pytest.mark.parametrize("prepare", PREPARATIONS.values(), ids=PREPARATIONS)
def test_the_page_gives_the_inputs_of_the_model(
    tmp_path: Path, prepare: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = JOB.replace('label = "ill"', FEATURES + 'label = "ill"')
    job = prepared_job(tmp_path) if prepare is None else None
    if job is None:
        job = prepared_job(tmp_path, str(prepare), text)
    model_in(tmp_path, job)
    path = raw(tmp_path / "new-patients.csv", 300)
    if prepare == "":
        polars.read_csv(path, null_values=[""]).drop_nulls().write_csv(path)
    close(run_snippet(tmp_path, monkeypatch), load_predictor(tmp_path), 300)


def test_dates_and_booleans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared_job(tmp_path, 'scale = "standard"\nmissing = "mean"', schema=SCHEMA + DATED)
    assert "admitted" in job.pipeline.names
    model_in(tmp_path, job)
    path = raw(tmp_path / "new-patients.csv", 40)
    start = datetime.date(2020, 2, 27)
    days = [start + datetime.timedelta(days=7 * k) if k % 5 else None for k in range(40)]
    frame = polars.read_csv(path, null_values=[""])
    frame = frame.with_columns(admitted=polars.Series(days), smoker=frame["smoker"] == 1)
    frame.write_csv(path)
    monkeypatch.setattr(polars, "read_csv", lambda *_, **__: frame)
    found = run_snippet(tmp_path, monkeypatch)
    rows = [row for chunk in load_predictor(tmp_path).records(frame) for row in chunk]
    assert len({round(row[2], 6) for row in rows}) > 5
    np.testing.assert_allclose(found["probability"], [row[2] for row in rows], atol=1e-5)


def test_the_manifest_names_what_the_page_says(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    model_in(tmp_path, job)
    said = json.loads((tmp_path / "manifest.json").read_text())["preparation"]
    for key in ("inputs", "terms", "interactions", "file", "elements"):
        assert f"| `{key}` |" in PAGE and key in said
    used = {key for term in said["terms"] for key in term}
    assert {"name", "column", "kind", "clip", "log", "center", "scale", "power"} <= used
    for key in used | {term["kind"] for term in said["terms"]}:
        assert key in PAGE, key
    assert said["elements"] == elements(job.pipeline)
    sizes = {name: (len(names),) for name, names in said["elements"].items()}
    assert sizes == job.pipeline.shapes
    assert said["elements"]["prepare.center"][0] == "age"


def test_elements_are_named_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    pipeline = job.pipeline
    names = elements(pipeline)
    for places, element in (
        (pipeline.scaled, "prepare.center"),
        (pipeline.scaled, "prepare.inverse"),
        (pipeline.filled, "prepare.fill"),
    ):
        assert names[element] == [pipeline.names[place] for place in places]
    assert elements(Pipeline(())) == {}
