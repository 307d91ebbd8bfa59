"""The examples' models, kept in shares, predict what the same models predict when they are opened.

Every example with a job is here: its model stays in shares, a client asks the whole service
(`House`) about all rows that the job held out of training, and the shares, added up, say in plain
PyTorch what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.asking.predictions import SharedPredictor, part
from mpc_train.errors import JobError
from mpc_train.owners.applied import applied
from mpc_train.owners.local import local_terms
from mpc_train.results.predicting import Predictor
from mpc_train.serving.offered import MOST_ROWS
from mpc_train.shared.share import ModelShare
from mpc_train.tables.typed import TypedTable
from protocols.arrays import Reals
from tests.support.house import Asker, House, only_units_of
from tests.support.served_examples import (
    TRAINED,
    adapted,
    answering,
    example_job,
    held_out,
    opened,
    tables_of,
    trained_in_the_clear,
)
from tests.support.sessions import Rehearsal
from tests.support.shared_models import shares

TOLERANCE = 2.0**-10
NOT_SERVED = {
    "credit_columns": "a regression by newton .* a model in shares has none",
    "federated": "a federated job reveals the global model to its owners",
}
"""Examples whose model cannot stay in shares, and what the job says then."""
SERVED = tuple(name for name in TRAINED if name not in NOT_SERVED)
QUICK = ("breast_cancer", "diabetes", "serve")
"""Examples that are trained in a second."""


def asked(kept: Sequence[ModelShare], table: TypedTable) -> tuple[SharedPredictor, Reals]:
    """A client's predictor, and what a service answers about the rows."""
    house = House([kept])
    (model,), clinic = house.models, Asker("clinic", house)
    chunks = [
        part(table, start, min(start + MOST_ROWS, table.rows))
        for start in range(0, table.rows, MOST_ROWS)
    ]
    locals_ = [local_terms(model.job.pipeline, _copied(chunk)) for chunk in chunks]
    house.serve(*([clinic.asks(model, local)] for local in locals_))
    answers = [
        clinic.answer(model, number, chunk.rows) for number, chunk in enumerate(chunks, start=1)
    ]
    assert not any(isinstance(answer, list) for answer in answers)
    assert house.used_twice() == 0
    return SharedPredictor(None, model), np.concatenate(answers)  # type: ignore[arg-type]


def check(kept: Sequence[ModelShare], folder: Path) -> None:
    """Outputs, predictions, and the example's own answer if it has one."""
    predictor = opened(kept)
    own, job = predictor.job.serve, predictor.job
    table = held_out(folder, predictor)
    right: Any = predictor.predicted(_copied(table))

    numbers, outputs = asked(answering(kept), table)
    found = numbers.of_answers(outputs, table.rows)
    where = bool(job.classes)
    apart = float(np.abs(outputs - clear(predictor, table)).max())
    assert apart <= TOLERANCE
    assert labels(found, where) == labels(right, where)
    assert far(found, right, where) <= TOLERANCE

    if job.classes:
        classes, answers = asked(answering(kept, answer="class"), table)
        assert classes.of_answers(answers, table.rows) == [row[:1] for row in right]
    assert own is not None
    if own.decimals is not None:
        rounded, answers = asked(kept, table)
        found = rounded.of_answers(answers, table.rows)
        assert far(found, right, where) <= TOLERANCE + 10.0**-own.decimals / 2


def clear(predictor: Predictor, table: TypedTable) -> Reals:
    """The outputs of the model's last layer, before any link function."""
    pipeline = predictor.job.pipeline
    inputs = applied(pipeline, local_terms(pipeline, _copied(table)), predictor.parameters)
    with torch.no_grad():
        found: Reals = predictor.module(torch.from_numpy(inputs)).numpy()
    return found


def _copied(table: TypedTable) -> TypedTable:
    """`local_terms` may use a table's own memory."""
    return replace(table, values=table.values.copy(), missing=table.missing.copy())


def labels(rows: Sequence[Sequence[Any]], are_classes: bool) -> list[Any]:
    return [row[0] for row in rows] if are_classes else []


def far(rows: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]], are_classes: bool) -> float:
    """The largest difference of a number: of probabilities, or of what is predicted."""
    one, other = (
        np.array([row[1 if are_classes else 0 :] for row in each], np.float64)
        for each in (rows, others)
    )
    return float(np.abs(one - other).max())


@pytest.fixture(autouse=True)
def one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    only_units_of(MOST_ROWS, monkeypatch)


@pytest.mark.parametrize("name", QUICK)
def test_a_model_that_was_trained_in_the_clear(name: str, tmp_path: Path) -> None:
    job = example_job(name, tmp_path)
    check(trained_in_the_clear(job, tables_of(tmp_path, job)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_a_model_that_was_trained_over_shares(name: str, tmp_path: Path) -> None:
    run = Rehearsal(adapted(name, tmp_path), tables=tables_of)
    run.session()
    kept = shares(run)
    assert opened(kept).job.stays_shared and run.masks_used_twice() == 0
    check(kept, tmp_path)


@pytest.mark.parametrize("name", NOT_SERVED)
def test_an_example_whose_model_cannot_stay_in_shares(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # an example may bring a module of its own
    with pytest.raises(JobError, match=NOT_SERVED[name]):
        example_job(name, tmp_path)


def test_all_examples_are_here() -> None:
    assert {*SERVED, *NOT_SERVED} == {*TRAINED} and len(SERVED) >= 7
