"""Instances with arrays, numbers of many digits, and bounds of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpc_train.errors import DataError
from mpc_train.gateway.instances import (
    LABEL,
    LEAST_LIMIT,
    MOST_LIMIT,
    TooLargeError,
    most_bytes,
    read,
)
from mpc_train.jobs.job import Job
from mpc_train.serving.offered import MOST_ROWS
from mpc_train.serving.offers import asked_columns
from mpc_train.tables.faults import Faults
from mpc_train.tables.spelling import name_of
from tests.support.jobs import column, job_toml, loaded, schema_toml
from tests.support.preparation_case import prepared_job

ARRAY = 'array = { name = "scan", shape = [1, 2, 3], range = [0, 255], scale = 255 }'


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return loaded(tmp_path, job_toml(data=ARRAY))


def numbers(job: Job, rows: list[dict[str, Any]]) -> list[list[float]]:
    """The cells as numbers, in the job's order."""
    table = read(job, json.dumps({"instances": rows}).encode())
    (chunk,) = table.chunks([feature.name for feature in job.features])
    assert chunk.places.tolist() == list(range(len(rows)))
    return chunk.frame.to_numpy().tolist()


def test_an_array_is_nested_or_flat(job: Job) -> None:
    flat = [0.5, 1, 2, 3, 4, 255]
    nested = [flat[:3], flat[3:]]
    rows = [{"scan": scan} for scan in (flat, nested, [nested])]
    found = numbers(job, rows)
    assert found == [found[0]] * 3
    assert found[0] == list(map(float, flat))
    assert asked_columns(job) == [{"name": "scan", "kind": "array", "shape": [1, 2, 3]}]


@pytest.mark.parametrize(
    "scan",
    [
        *([], [1] * 5, [1] * 7, [[1, 2, 3]], [[1, 2, 3], [4, 5]], [[[[1, 2, 3], [4, 5, 6]]]]),
        *([1, 2, 3, 4, 5, None], [1, 2, 3, 4, 5, "6"], [1, 2, 3, 4, 5, True], [1] * 5 + [10**400]),
        *("scan.npy", None, 5, {"0": 1}),
    ],
)
def test_an_array_of_another_shape_is_named(job: Job, scan: object) -> None:
    rows = [{"scan": [1] * 6, "age": 3}, {"scan": scan}]
    with pytest.raises(DataError, match="instance 1: column 'scan': is not a list of 1 × 2 × 3"):
        numbers(job, rows)


def test_an_array_that_is_missing_is_named(job: Job) -> None:
    with pytest.raises(DataError, match="instance 0: column 'scan': is missing"):
        numbers(job, [{"age": 3}])


def test_a_number_keeps_its_digits(tmp_path: Path) -> None:
    schema = schema_toml(column("code", "category", levels=["9007199254740993", "1"]), column("y"))
    text = job_toml(["code"], data='schema = "schema.toml"', kind="linear")
    job = loaded(tmp_path, text.replace('label = "y"', 'label = { name = "y", scale = 1 }'), schema)
    table = read(job, b'{"instances": [{"code": 9007199254740993}, {"code": 1}, {"code": "1"}]}')
    (chunk,) = table.chunks(["code"])
    assert chunk.frame["code"].to_list() == ["9007199254740993", "1", "1"]
    table = read(job, b'{"instances": [{"code": 9007199254740993}]}')
    (chunk,) = table.chunks(["code"])
    assert chunk.frame["code"].to_list() == ["9007199254740993"]


NAMES = ("age", "é", "income", "y 2")
CELLS = st.one_of(
    *(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70)),
    *(st.booleans(), st.none(), st.text(max_size=3), st.just([1]), st.just({"a": 1})),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 10**400]),
)
NUMBERS = st.one_of(st.floats(-1e20, 1e20), st.integers(-(2**53), 2**53))
SPELT = st.sampled_from((*NAMES, "e\u0301", " age", "income ", "other", "other "))


def by_cell(rows: list[dict[str, Any]]) -> polars.DataFrame:
    """What a request says, cell by cell. Raises DataError."""
    faults = Faults("the request")
    faults.place = "instance"
    named = [{name_of(name): cell for name, cell in row.items()} for row in rows]
    for place, (row, found) in enumerate(zip(rows, named, strict=True)):
        if len(row) != len(found):
            faults.records(np.array([place]), "two names are the same column")
    columns = []
    for name in NAMES:
        cells: list[Any] = []
        for place, row in enumerate(named):
            cell = row.get(name, ...)
            what = "is not a number, text, true, false or null"
            if cell is ...:
                what = "is missing"
            elif isinstance(cell, bool):
                cell = str(cell).lower()
            elif isinstance(cell, list | dict) or (
                isinstance(cell, int) and not -(2**63) < cell < 2**63
            ):
                cell = ...
            if cell is ...:
                faults.cells(name, np.array([place]), what)
            cells.append(None if cell is ... else cell)
        if all(
            isinstance(cell, float) or (isinstance(cell, int) and abs(cell) <= 2**53)
            for cell in cells
        ):
            columns.append(polars.Series(name, [float(cell) for cell in cells]))
        else:
            texts = [cell if isinstance(cell, str | None) else repr(cell) for cell in cells]
            columns.append(polars.Series(name, texts, dtype=polars.String))
    faults.check()
    return polars.DataFrame(columns)


def faults_in(error: DataError) -> set[str]:
    lines = [line.removeprefix(f"{LABEL}: ").strip() for line in str(error).splitlines()]
    return {line for line in lines if not line.endswith("faults:")}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return loaded(tmp_path_factory.mktemp("wide"), job_toml(list(NAMES)))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(dict.fromkeys(NAMES, NUMBERS)),
            st.fixed_dictionaries(dict.fromkeys(NAMES, CELLS), optional={"other": CELLS}),
            st.dictionaries(SPELT, CELLS),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_columns_are_what_their_cells_are_one_by_one(wide: Job, rows: list[dict[str, Any]]) -> None:
    body = json.dumps({"instances": rows}).encode()
    try:
        right = by_cell(rows)
    except DataError as error:
        with pytest.raises(DataError) as refused:
            read(wide, body)
        # Faults of the other columns' values come with them.
        assert faults_in(error) <= faults_in(refused.value)
        return
    (chunk,) = read(wide, body).chunks(NAMES)
    assert chunk.frame.equals(right) and chunk.frame.schema == right.schema


CELL_TEXTS = st.sampled_from(["1", "2.5", "null", '"a"', '"a:b"', '"\\u003a"', '{"a": 1}', "[{}]"])
NAME_TEXTS = st.sampled_from(['"age"', '"\\u0061ge"', '"income"', '"a:b"', '"other"', '"é"'])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.tuples(NAME_TEXTS, CELL_TEXTS), max_size=5), min_size=1, max_size=3))
def test_a_name_that_is_said_twice_is_a_fault(wide: Job, rows: list[list[tuple[str, str]]]) -> None:
    """JSON keeps the last of two: with the other value there would be another prediction."""
    texts = ["{" + ", ".join(f"{name}: {cell}" for name, cell in row) + "}" for row in rows]
    with pytest.raises(DataError) as refused:
        read(wide, f'{{"instances": [{", ".join(texts)}]}}'.encode())  # "y 2" is missing
    twice = [len({json.loads(name) for name, _ in row}) < len(row) for row in rows]
    assert ("two names are the same column" in str(refused.value)) == any(twice)
    if any(twice):
        assert f"instance {twice.index(True)}: two names" in str(refused.value)


def test_one_list_of_instances_is_read(job: Job) -> None:
    row = '[{"scan": [1, 2, 3, 4, 5, 6]}]'
    for first, second in ((row, row), (row, "[]"), ("[]", row)):
        with pytest.raises(DataError, match='says "instances" more than once'):
            read(job, f'{{"instances": {first}, "instances": {second}}}'.encode())


def test_ordinary_requests_are_within_the_bound(job: Job, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [{"scan": rng.random(6).tolist()} for _ in range(MOST_ROWS)]
    assert len(numbers(job, rows)) == MOST_ROWS
    assert most_bytes(job) == LEAST_LIMIT
    with pytest.raises(TooLargeError, match="more than 128 instances"):
        numbers(job, rows * 2)
    with pytest.raises(TooLargeError, match="longer than"):
        read(job, b" " * (LEAST_LIMIT + 1))
    wide = loaded(tmp_path, job_toml(data=ARRAY.replace("[1, 2, 3]", "[3, 64, 64]")))
    assert most_bytes(wide) == MOST_LIMIT


def test_the_place_of_a_cell_is_the_instance_s(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    row = {"age": 1, "income": 2, "visits": 3, "smoker": True, "region": "north"}
    bad = {**row, "age": [1]}
    with pytest.raises(DataError, match=r"instance 1: column 'age': .*\(and instances 3, 4\)"):
        read(job, json.dumps({"instances": [row, bad, row, bad, bad]}).encode())
