"""What programs of a client's machine send to its gateway: instances as JSON."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mpc_train.errors import DataError
from mpc_train.gateway.instances import read
from mpc_train.jobs.job import Job
from mpc_train.results.predictions import Predictions
from mpc_train.tables.typed import TypedTable
from tests.fuzz.parser import Parser
from tests.support.jobs import job_toml, loaded
from tests.support.preparation_case import prepared_job

ARRAY = 'array = { name = "scan", shape = [2, 3], range = [0, 255], scale = 255 }'
CELLS: Sequence[dict[str, Any]] = (
    {"age": 61, "income": 2000.5, "visits": 3, "smoker": True, "region": "north"},
    {"age": None, "income": "1e3", "visits": "3", "smoker": "no", "region": "other", "note": [1]},
)


class _Reader(Predictions):
    def __init__(self, job: Job) -> None:
        self.job = job

    def predicted(self, table: TypedTable) -> list[list[Any]]:
        return [[row] for row in table.values.tolist()]


@cache
def _reader(is_array: bool) -> _Reader:
    with TemporaryDirectory() as folder:
        if is_array:
            return _Reader(loaded(Path(folder), job_toml(data=ARRAY)))
        return _Reader(prepared_job(Path(folder)))


def as_rows(is_array: bool, body: bytes) -> Any:
    """Down to the numbers of the job's columns."""
    reader = _reader(is_array)
    return [*reader.records(read(reader.job, body))]


PARSERS: dict[str, Parser] = {
    "request of predictions": Parser(
        lambda body: as_rows(False, body),
        lambda: [json.dumps({"instances": list(CELLS)}).encode()],
        (DataError,),
        ("mpc_train.gateway.instances",),
        costly=True,
    ),
    "request with arrays": Parser(
        lambda body: as_rows(True, body),
        lambda: [json.dumps({"instances": [{"scan": [[0, 1.5, 2], [3, 4, 255]]}]}).encode()],
        (DataError,),
        ("mpc_train.gateway.instances",),
        costly=True,
    ),
}
