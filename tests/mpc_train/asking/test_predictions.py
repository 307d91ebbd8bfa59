"""Tables that are asked of a service: the columns of `predict`, in order, and what stays of a table
whose questions are refused in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.asking import predictions
from mpc_train.asking.predictions import (
    AT_ONCE,
    MOST_PARTS,
    SharedPredictor,
    counts_for,
    divided,
    fitting,
)
from mpc_train.errors import (
    ConfigError,
    DataError,
    QueryError,
    QueryLostError,
    QueryRefusedError,
)
from mpc_train.owners.local import Local
from mpc_train.results.predicting import Predictor
from mpc_train.serving.lanes import bucket_of
from mpc_train.serving.offered import MOST_ROWS, NAME_BYTES, Offered
from mpc_train.serving.offers import find
from mpc_train.tables.source import Source
from protocols.arrays import Reals
from tests.mpc_train.results.test_predict import raw
from tests.support.preparation_case import JOB, SCHEMA, prepared_job, typed
from tests.support.serving import ClearService, opened_model

ROWS = 3 * MOST_ROWS + 7


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("clear")
    return opened_model(folder / "model", prepared_job(folder))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(str(raw(tmp_path_factory.mktemp("table") / "new.csv", ROWS)))


def asking(service: ClearService, name: str = "study", **settings: Any) -> SharedPredictor:
    return SharedPredictor(service, find(service.models, name), **settings)


def all_rows(chunks: Iterator[list[list[Any]]]) -> list[list[Any]]:
    return [row for chunk in chunks for row in chunk]


def test_a_table_gets_the_predictions_of_the_opened_model(clear: Predictor, table: Source) -> None:
    service = ClearService((clear, {}))
    predictor = asking(service)
    assert predictor.columns == clear.columns
    assert sum(predictor.rows_of(table)) == ROWS and not service.asked
    assert all_rows(predictor.records(table, ["note"])) == all_rows(clear.records(table, ["note"]))
    assert sorted(service.asked) == [1] * 7 + [MOST_ROWS] * 3
    assert predictor.counted.rows == ROWS == service.spent


@pytest.mark.parametrize("kind", ["logistic", "mlp", "softmax"])
@pytest.mark.parametrize("answer", ["number", "probability", "class"])
def test_every_answer_names_the_same_class(tmp_path: Path, kind: str, answer: str) -> None:
    more = {"logistic": "", "mlp": "\nhidden = [4]\nclasses = 2", "softmax": "\nclasses = 3"}
    text = JOB.replace('"logistic"', f'"{kind}"{more[kind]}')
    if kind == "softmax":
        text = text.replace('label = "ill"', 'label = "region"').replace("data]", DATA)
    schema = SCHEMA.replace("other = true", "")
    job = prepared_job(tmp_path, 'scale = "standard"\nmissing = "mean"', text, schema)
    clear = opened_model(tmp_path / "model", job)
    predictor = asking(ClearService((clear, {"answer": answer})))
    plain, found = clear.predicted(typed(60, 2)), predictor.predicted(typed(60, 2))
    assert [row[0] for row in found] == [row[0] for row in plain]
    assert {len(row) for row in found} == {1 if answer == "class" else len(clear.columns)}
    assert len(predictor.columns) == len(found[0])
    if answer != "class":
        ours, theirs = (np.array([row[1:] for row in rows]) for rows in (found, plain))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


DATA = 'data]\nfeatures = ["age", "visits"]'


def test_a_number_comes_in_its_own_unit_and_rounded(tmp_path: Path) -> None:
    text = JOB.replace('label = "ill"', 'label = { name = "visits", center = 5, scale = 2 }')
    text = text.replace('"logistic"', '"linear"').replace("data]", 'data]\nfeatures = ["age"]')
    clear = opened_model(
        tmp_path / "model", prepared_job(tmp_path, 'scale = "standard"\nmissing = "mean"', text)
    )
    predictor = asking(ClearService((clear, {"decimals": 2})))
    found = np.array(predictor.predicted(typed(30, 1)))
    plain = np.array(clear.predicted(typed(30, 1)))
    assert np.abs(found - plain).max() <= 0.01 + 1e-12 and (found != plain).any()
    np.testing.assert_allclose((found - 5) / 2 * 100, np.round((found - 5) / 2 * 100), atol=1e-9)


def test_both_probabilities_have_the_decimals_of_the_answer(clear: Predictor) -> None:
    predictor = asking(ClearService((clear, {"answer": "probability", "decimals": 2})))
    for _, no, yes in predictor.predicted(typed(MOST_ROWS, 1)):
        assert len(repr(no)) <= 4 and len(repr(yes)) <= 4 and round(no + yes, 9) == 1


def test_several_questions_are_on_their_way_and_the_order_is_kept(
    clear: Predictor, table: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "MOST_ROWS", 8)
    service = ClearService((clear, {}))
    all_there = threading.Barrier(AT_ONCE)

    def slow(number: int) -> None:
        """The first questions wait for each other, and the very first is answered last of them."""
        if number < AT_ONCE:
            all_there.wait(60)
        if number == 0:
            time.sleep(0.1)

    service.refuse = slow
    found = all_rows(asking(service).records(table))
    assert found == all_rows(clear.records(table))
    assert service.most_at_once == AT_ONCE


def test_what_passes_is_asked_again(clear: Predictor, table: Source) -> None:
    codes = {0: "busy", 2: "unavailable", 3: "busy"}
    service = ClearService((clear, {}), refuse=codes.get)
    assert all_rows(asking(service).records(table)) == all_rows(clear.records(table))
    assert service.questions == 3 + 7 + len(codes)


def test_a_question_keeps_its_name_while_nobody_knows_whether_it_was_answered(
    clear: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it counts once. One that was refused gets another name, and another question has its
    own."""
    monkeypatch.setattr(predictions, "FIRST_WAIT_S", 0.0)
    names: list[bytes] = []
    errors = [QueryLostError("lost", "unavailable")] * 2 + [QueryRefusedError("busy", "busy")]

    class Losing(ClearService):
        def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
            names.append(name)
            if errors:
                raise errors.pop(0)
            return super().ask(model, rows, name)

    predictor = asking(Losing((clear, {})))
    predictor.predicted(typed(3, 1))
    assert predictor.counted.rows == 16
    predictor.predicted(typed(3, 1))
    assert predictor.counted.rows == 32  # what was refused is not counted, what was lost once
    assert [names.index(name) for name in names] == [0, 0, 0, 3, 4]
    assert {len(name) for name in names} == {NAME_BYTES}


def test_a_probability_of_a_half_is_of_the_class_1(clear: Predictor) -> None:
    """As a logit of 0 is, of which it is the probability."""
    predictor = asking(ClearService((clear, {"answer": "probability"})))
    ((best, *_),) = predictor.of_answers(np.array([[0.5]]), 1)
    assert best == predictor.classes[1] == clear.of_outputs(np.array([[0.0]]))[0][0]


@pytest.mark.parametrize(
    ("code", "again"), [("busy", True), ("quota", False), ("not-allowed", False)]
)
def test_what_does_not_pass_ends_the_asking(clear: Predictor, code: str, again: bool) -> None:
    service = ClearService((clear, {}), refuse=lambda number: code)
    predictor = asking(service, patience_s=1)
    with pytest.raises(QueryRefusedError, match="the service refuses") as caught:
        predictor.predicted(typed(3, 1))
    assert caught.value.code == code and (service.questions > 1) is again


def test_rows_before_a_spent_quota_are_given(
    clear: Predictor, table: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "AT_ONCE", 1)
    service = ClearService((clear, {}), refuse=lambda number: "quota" if number > 1 else None)
    found: list[list[Any]] = []
    with pytest.raises(QueryRefusedError) as caught:
        for chunk in asking(service).records(table):
            found += chunk
    assert caught.value.code == "quota"
    assert found == all_rows(clear.records(table))[: 2 * MOST_ROWS]


class FirstRefused(ClearService):
    """Refuses full questions for good, and asks for patience about others."""

    def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
        code = "quota" if len(rows.values) == MOST_ROWS else "busy"
        raise QueryRefusedError(code, code)


def test_a_refusal_does_not_wait_for_questions_that_are_asked_again(
    clear: Predictor, tmp_path: Path
) -> None:
    table = Source(str(raw(tmp_path / "new.csv", MOST_ROWS + 1)))
    predictor = asking(FirstRefused((clear, {})), patience_s=float("inf"))
    with pytest.raises(QueryRefusedError, match="quota"):
        all_rows(predictor.records(table))


@pytest.mark.parametrize(
    ("first", "most"), [(1, 5), (200, 0), (130, 260), (ROWS, 9), (ROWS + 1, 0)]
)
def test_only_some_rows_are_asked(clear: Predictor, table: Source, first: int, most: int) -> None:
    service = ClearService((clear, {}))
    predictor = asking(service, first=first, most=most)
    stop = first - 1 + most if most else ROWS
    expected = all_rows(clear.records(table))[first - 1 : stop]
    assert sum(predictor.rows_of(table)) == len(expected)
    for found, row in zip(all_rows(predictor.records(table)), expected, strict=True):
        # A float product of other numbers of rows may differ in its last place.
        numbers = [pytest.approx(cell, rel=1e-12) for cell in row if isinstance(cell, float)]
        assert [cell for cell in found if isinstance(cell, float)] == numbers
        assert [type(cell) for cell in found] == [type(cell) for cell in row]
        assert found[0] == row[0]
    assert sum(service.asked) == len(expected)


def test_rows_are_chosen_across_chunks(clear: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [typed(10, 1), typed(10, 1), typed(10, 1)]
    monkeypatch.setattr(SharedPredictor, "tables", lambda self, source, ids=(): iter(chunks))
    for first, most, counts in ((1, 0, [10, 10, 10]), (8, 9, [3, 6]), (11, 10, [10]), (25, 3, [3])):
        predictor = asking(ClearService((clear, {})), first=first, most=most)
        found = [chunk.rows for chunk in predictor.chosen(Source())]
        assert found == counts
        values = np.concatenate([chunk.values for chunk in predictor.chosen(Source())])
        whole = np.concatenate([chunk.values for chunk in chunks])
        np.testing.assert_array_equal(values, whole[first - 1 :][: sum(counts)])


def test_faults_of_the_table_are_known_before_a_row_is_asked(
    clear: Predictor, tmp_path: Path
) -> None:
    service = ClearService((clear, {}))
    path = raw(tmp_path / "new.csv", 300)
    lines = path.read_text().splitlines()
    lines[299] = "x,40,,,200,yes,nowhere"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"new\.csv: line 300"):
        asking(service).rows_of(Source(str(path)))
    with pytest.raises(ConfigError, match="cannot be kept"):
        asking(service).rows_of(Source(str(path)), ["prediction"])
    assert not service.questions


def test_a_model_that_is_not_there_is_named(clear: Predictor) -> None:
    service = ClearService((clear, {}), (clear, {}))
    assert [find(service.models, "study", version).version for version in (0, 1, 2)] == [2, 1, 2]
    for name, version, said in (("other", 0, "there are: study"), ("study", 3, "there are: 1, 2")):
        with pytest.raises(QueryRefusedError, match=said) as caught:
            find(service.models, name, version)
        assert caught.value.code == "unknown-model"


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("number", np.zeros((3, 2))),
        ("number", np.zeros((2, 1))),
        ("number", np.full((3, 1), np.nan)),
        ("probability", np.zeros((3, 2))),
        ("class", np.full((3, 1), 0.5)),
        ("class", np.full((3, 1), -1.0)),
        ("class", np.full((3, 1), 2.0)),
    ],
)
def test_answers_that_are_none_are_no_predictions(
    clear: Predictor, answer: str, wrong: Reals
) -> None:
    class Strange(ClearService):
        def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
            return wrong

    predictor = asking(Strange((clear, {"answer": answer})))
    with pytest.raises(QueryError, match="not one that the model can give"):
        predictor.predicted(typed(3, 1))


@pytest.mark.parametrize(
    ("chunks", "most", "count", "rows"),
    [
        ([500], 500, 512, 497),  # 3 · 128, 7 · 16 and 1; another 3 would be 11 questions
        ([500], 512, 512, 500),
        ([500], 400, 512, 400),
        ([133], 129, 133, 129),
        ([128, 5], 128, 133, 128),
        ([100], 20, 112, 20),
        ([137], 143, 144, 136),  # 8 are asked one by one, 9 would be padded to 16
        ([7], 0, 7, 0),
        ([40], 300, 48, 40),
    ],
)
def test_what_fits_a_day_is_counted_as_the_service_counts(
    chunks: list[int], most: int, count: int, rows: int
) -> None:
    assert sum(map(counts_for, chunks)) == count and fitting(chunks, most) == rows


def test_a_table_counts_for_few_rows_in_few_questions() -> None:
    assert [divided(rows) for rows in (1, 3, 9, 17, 40, 128)] == [
        *([1], [1] * 3, [9], [16, 1], [16, 16, 8], [128])
    ]
    for rows in range(1, 2 * MOST_ROWS + 1):
        questions = divided(rows)
        assert sum(questions) == rows and min(questions) > 0
        assert len(questions) <= MOST_PARTS + rows // MOST_ROWS and MOST_PARTS <= AT_ONCE
        whole, rest = divmod(rows, MOST_ROWS)
        assert counts_for(rows) <= whole * MOST_ROWS + (bucket_of(rest) if rest else 0)
        # A part of 16 holds more than 8 rows, or there are at most 8 questions with it.
        assert counts_for(rows) - rows < 16
    for rows, most in ((40, 38), (115, 113), (300, 299), (300, 127)):
        assert counts_for(fitting([rows], most)) <= most < counts_for(rows)
