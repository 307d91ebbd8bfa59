"""The body of a request as a table: JSON from a program of this machine, of which nothing is
believed.

    {"instances": [{"age": 61, "smoker": true, "region": "north", "income": null}, …]}

A cell means what it means in a table: a number in the column's unit, the name of a level, a truth
value, a date as 2001-12-31, null for a missing cell; an array is a list of numbers, nested as its
shape or flat. Each instance has each column of the model, once; other names are ignored, as other
columns of a table are. Faults name the instance, counted from 0 as JSON does, and the column, never
a value.
"""

from __future__ import annotations

import json
from itertools import chain, repeat
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import polars
from msgspec import UNSET
from polars import DataFrame

from mpc_train.errors import DataError
from mpc_train.owners.local import check_cells
from mpc_train.owners.table import arrays_of
from mpc_train.serving.offered import MOST_ROWS
from mpc_train.tables.cells import EMPTY
from mpc_train.tables.dates import FORM_ADVICE
from mpc_train.tables.faults import Faults
from mpc_train.tables.loading.load import stream
from mpc_train.tables.readers.columnar import FrameTable
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mpc_train.jobs.job import Job
    from mpc_train.tables.readers.arrays import Arrays
    from protocols.arrays import Reals

Cell = str | float | int | None
LABEL = "the request"
PLACE: Literal["instance"] = "instance"
LEAST_LIMIT, MOST_LIMIT = 1 << 18, 16 << 20
CELL_BYTES, NUMBER_BYTES = 64, 28
"""Room for a cell without its name, and for a number of an array."""
NUMBERS = frozenset({int, float})
LOSSLESS = 1 << 53
"""Whole numbers up to it are numbers of a column without losing a digit."""


class TooLargeError(DataError):
    """A request with more rows, or more bytes, than one question may have."""


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instances: list[dict[str, Any]]


def most_bytes(job: Job) -> int:
    """How long a request to the job's model may be: what MOST_ROWS ordinary rows need, from 256 KiB
    to 16 MiB."""
    if job.data.array is UNSET:
        row = sum(len(feature.name.encode()) + CELL_BYTES for feature in job.features)
    else:
        row = CELL_BYTES + prod(job.data.array.shape) * NUMBER_BYTES
    return min(max(MOST_ROWS * row, LEAST_LIMIT), MOST_LIMIT)


def read(job: Job, body: bytes) -> FrameTable:
    """The instances of a request, for `Predictions.tables`. Raises DataError with all faults, and
    TooLargeError."""
    if len(body) > most_bytes(job):
        raise TooLargeError(f"{LABEL}: longer than {most_bytes(job)} bytes; {_ADVICE}")
    try:
        instances = msgspec.json.decode(body, type=_Body).instances
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataError(
            f'{LABEL}: {error}; write {{"instances": [{{"column": value, …}}, …]}}'
        ) from error
    if len(instances) > MOST_ROWS:
        raise TooLargeError(f"{LABEL}: more than {MOST_ROWS} instances; {_ADVICE}")
    repeated = _repeated(body, instances)
    if not instances:
        raise DataError(f"{LABEL}: there is no instance")
    faults = Faults(LABEL, worded=_worded)
    faults.place = PLACE
    rows = _named(instances, repeated, faults)
    arrays = arrays_of(job, Source())
    if arrays is None:
        names: Sequence[str] = [feature.name for feature in job.features]
        frame = _columns(rows, job, faults)
        if faults:
            _check_others(frame, job, faults)
    else:  # it is all features of the job
        names = arrays.names
        numbers = [_numbers(row, arrays, place, faults) for place, row in enumerate(rows)]
        frame = _frame(np.array(numbers, np.float64), range(len(names)))
    faults.check()
    return FrameTable(frame, LABEL, names, first=0, place=PLACE, faults=faults)


def _check_others(frame: DataFrame, job: Job, faults: Faults) -> None:
    """Note the faults of the columns that have none so far: all are reported at once. Raises
    DataError."""
    names = [feature.name for feature in job.features]
    kept = {name: str(at) for at, name in enumerate(names) if name not in faults.faulty}
    if not kept:
        return
    columns = frame[list(kept.values())]
    table = FrameTable(columns, LABEL, list(kept), first=0, place=PLACE, faults=faults)

    def check(name: str, values: Reals, missing: NDArray[np.bool_]) -> None:
        check_cells(job, name, values, missing)

    for _ in stream(table, job.schema, names=list(kept), check=check):
        pass


def _worded(what: str) -> str:
    """What is said of a cell, to whoever has a request in place of a file."""
    if what == EMPTY:
        return "has no value, and the model takes none that is missing; give one"
    return what.replace(FORM_ADVICE, ", like 2001-12-31")


_ADVICE = "ask by several requests, or a table by mpc-train query"


def _repeated(body: bytes, instances: list[dict[str, Any]]) -> set[int]:
    """The instances that say a name twice, of which JSON keeps the last: nobody knows which was
    meant. Raises DataError if the whole request says one twice."""
    # A colon follows each name, and stands elsewhere only within text: as many colons as different
    # names are proof that none is said twice, at a hundredth of the time.
    if body.count(b":") == 1 + sum(map(len, instances)):
        return set()
    try:
        said = json.loads(body, object_pairs_hook=tuple, parse_int=str, strict=False)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{LABEL}: {error}") from error
    if len(said) != 1:
        raise DataError(f'{LABEL}: says "instances" more than once')
    ((_, rows),) = said
    return {place for place, row in enumerate(rows) if len(dict(row)) != len(row)}


def _named(
    instances: list[dict[str, Any]], repeated: set[int], faults: Faults
) -> list[dict[str, Any]]:
    """The instances by the spelling in which names are compared. repeated: as of `_repeated`."""
    spelt = {name for name in instances[0] if name_of(name) == name}
    rows = []
    for place, row in enumerate(instances):
        found = row
        if not row.keys() <= spelt:  # most have the same names, and need no look at each
            found = {name_of(name): cell for name, cell in row.items()}
        if len(found) != len(row) or place in repeated:
            faults.records(np.array([place]), "two names are the same column")
        rows.append(found)
    return rows


def _columns(rows: list[dict[str, Any]], job: Job, faults: Faults) -> DataFrame:
    """The columns of these names, as a table has them; numbers are converted all at once, which
    takes a tenth of the time."""
    names = [feature.name for feature in job.features]
    columns = list(zip(*(map(row.get, names, repeat(UNSET)) for row in rows), strict=True))
    plain = [place for place, cells in enumerate(columns) if NUMBERS.issuperset(map(type, cells))]
    try:
        numbers = np.array([columns[place] for place in plain], np.float64).reshape(-1, len(rows))
        short = np.abs(numbers).max(axis=1) < LOSSLESS
    except OverflowError:  # a whole number of 309 digits
        numbers = np.empty((len(plain), len(rows)))
        short = np.zeros(len(plain), bool)
    plain = [place for place, is_short in zip(plain, short, strict=True) if is_short]
    others = []
    for place in sorted(set(range(len(names))).difference(plain)):
        name, cells = names[place], columns[place]
        absent = "is missing"
        if "" in job.schema[name].missing:
            absent += "; null says that a value is not known"
        found = [_cell(cell, name, at, faults, absent) for at, cell in enumerate(cells)]
        others.append(_column(str(place), found))
    if not plain:
        return DataFrame(others)
    frame = _frame(numbers[short].T, plain)
    return frame.hstack(others)[[str(place) for place in range(len(names))]] if others else frame


def _frame(numbers: Reals, places: Sequence[int]) -> DataFrame:
    """Columns of numbers, float64[rows, columns], named by their places."""
    titles = [str(place) for place in places]
    whole = polars.Series(np.ascontiguousarray(numbers))  # one column of arrays: made in one go
    return whole.arr.to_struct(titles).struct.unnest()


def _cell(cell: Any, name: str, place: int, faults: Faults, absent: str) -> Cell:
    """A cell as a table has it; null is an empty one. absent: what is said of one that is not
    there."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if cell is None or isinstance(cell, str | float):
        return cell
    if isinstance(cell, int) and abs(cell) < 1 << 63:
        return cell
    faults.cells(name, np.array([place]), absent if cell is UNSET else _NOT_A_CELL)
    return None


def _column(title: str, cells: list[Cell]) -> polars.Series:
    """Numbers if nothing else is there, and no number loses a digit; otherwise text."""
    if all(isinstance(cell, float) or _is_short(cell) for cell in cells):
        return polars.Series(title, cells, dtype=polars.Float64, strict=False)
    texts = [cell if cell is None or isinstance(cell, str) else repr(cell) for cell in cells]
    return polars.Series(title, texts, dtype=polars.String)


def _is_short(cell: Cell) -> bool:
    return isinstance(cell, int) and abs(cell) <= LOSSLESS


_NOT_A_CELL = "is not a number, text, true, false or null"


def _numbers(row: dict[str, Any], arrays: Arrays, place: int, faults: Faults) -> list[Any]:
    """An array's numbers, in C order."""
    cell, size = row.get(arrays.name, UNSET), prod(arrays.shape)
    long = tuple(length for length in arrays.shape if length != 1)
    for shape in (arrays.shape, long, (size,)):
        level = [cell]
        for length in shape:
            if any(type(part) is not list or len(part) != length for part in level):
                break
            level = list(chain.from_iterable(level))
        else:
            if NUMBERS.issuperset(map(type, level)) and _within(level):
                return level
            break
    what = "is missing" if cell is UNSET else f"is not a list of {arrays.said} numbers"
    faults.cells(arrays.name, np.array([place]), what)
    return [0.0] * size


def _within(numbers: list[Any]) -> bool:
    """Whether none is beyond what an array may have."""
    return bool(not numbers or max(max(numbers), -min(numbers)) < 1e300)
