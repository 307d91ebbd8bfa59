"""Instances with arrays, numbers of many digits, and bounds of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.errors import DataError
from mpc_train.gateway.instances import LEAST_LIMIT, MOST_LIMIT, TooLargeError, most_bytes, read
from mpc_train.jobs.job import Job
from mpc_train.serving.offered import MOST_ROWS
from mpc_train.serving.offers import asked_columns
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
