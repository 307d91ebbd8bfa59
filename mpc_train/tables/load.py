"""From a node's source to a typed table, checked against the schema before anything is shared.

1. The source is opened; its columns are compared with what is wanted.
2. Chunk by chunk cells become numbers in arrays that hold the whole table once.
3. What only the whole table shows is checked: the number of rows, columns without a value or with
   one value only, identifiers that stand there twice.
4. A file is compared with what it was before it was read.

The source is read and never changed. An error says file, line (the header is line 1), column and
what kind of thing is wrong; it never repeats a cell, since messages end in logs.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from polars import DataFrame, Series

from mpc_train.errors import DataError
from mpc_train.tables import cells, columnar
from mpc_train.tables.arrays import Arrays, with_arrays
from mpc_train.tables.csv_text import BLOCK_BYTES, CsvText
from mpc_train.tables.database import open_query
from mpc_train.tables.fingerprint import Fingerprint
from mpc_train.tables.reading import Progress, Table
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source, label_of
from mpc_train.tables.typed import TypedTable

FIRST_ROWS = 1 << 16
"""There is room for so many before the first is read."""

Report = Callable[[Progress], None]
Check = Callable[[str, cells.Reals, cells.Mask], None]
"""Takes a column's name, values and what is missing, of some rows; raises CellError."""


def load(
    source: Source,
    schema: Schema,
    *,
    names: Sequence[str],
    identifiers: Sequence[str] = (),
    unique: bool = True,
    alone: bool = True,
    rows: int | None = None,
    check: Check | None = None,
    progress: Report | None = None,
    arrays: Arrays | None = None,
) -> TypedTable:
    """Read the columns `names` of the schema, in this order, and the identifiers asked for.

    unique: each record stands there once, by its identifiers. alone: nobody else has these columns,
    so that one without a value, or with one only, is an error; where others have them as well the
    table's owner is warned (`TypedTable.warnings`). rows: how many there must be; None: as many as
    there are. check: what cells must satisfy beyond the schema, called while lines are
    known. arrays: a column of arrays, read as columns of numbers. A column of the source that the
    schema does not know is an error unless `source.ignore` lists it. Raises DataError.
    """
    label = label_of(source)
    with open_table(source) as opened:
        table = with_arrays(opened, arrays, label)
        _check_names(table, label, schema, source, (*names, *identifiers))
        if table.unit == "rows" and rows is not None and table.total not in (None, rows):
            raise DataError(_other_rows(label, table.total, rows))
        filling = _Filling(label, table.place, len(names), rows)
        report = reporting(table, progress, rows)
        for chunk in table.chunks((*names, *identifiers)):
            filling.begin(chunk.places)
            for index, name in enumerate(names):
                with filling.named(name):
                    filling.take(index, chunk.frame[name], schema[name], source, check)
            for name in identifiers:
                with filling.named(name):
                    filling.identify(name, chunk.frame[name])
            report(chunk.done)
        found = filling.table(tuple(names))
    if not found.rows:
        raise DataError(f"{label}: there are columns but no row")
    if rows is not None and found.rows != rows:
        raise DataError(_other_rows(label, found.rows, rows))
    warnings = _check_whole(found, schema)
    if alone and warnings:
        raise DataError("\n  ".join(f"{label}: {each}; {_ADVICE}" for each in warnings))
    if unique:
        _check_duplicates(found, label)
    return replace(found, warnings=tuple(f"{label}: {each}" for each in warnings))


def _other_rows(label: str, found: int | None, rows: int) -> str:
    return (
        f"{label}: the table's rows are {found}, the job says {rows}; use the right table or "
        "correct data.rows in the job"
    )


def stream(
    records: Source | DataFrame,
    schema: Schema,
    *,
    names: Sequence[str],
    keep: Sequence[str] = (),
    check: Check | None = None,
    arrays: Arrays | None = None,
) -> Iterator[TypedTable]:
    """The columns `names` chunk by chunk, in bounded memory; other columns are left alone.

    records: where they lie, or all of them in memory. keep: columns of which each row's text is
    returned as it stands there, as `TypedTable.identifiers`. What only a whole table shows is not
    checked. Raises DataError.
    """
    if isinstance(records, DataFrame):
        source, label = Source(), "the data frame"
        opened = _in_memory(records, label)
    else:
        source, label = records, label_of(records)
        opened = open_table(records)
    columns = tuple(dict.fromkeys((*names, *keep)))
    with opened as plain:
        table = with_arrays(plain, arrays, label, kept=True)
        ignored = msgspec.structs.replace(source, ignore=tuple(table.names))
        _check_names(table, label, schema, ignored, columns)
        for chunk in table.chunks(columns):
            filling = _Filling(label, table.place, len(names), None)
            filling.begin(chunk.places)
            for index, name in enumerate(names):
                with filling.named(name):
                    filling.take(index, chunk.frame[name], schema[name], source, check)
            for name in keep:
                with filling.named(name):
                    filling.keep(name, chunk.frame[name])
            yield filling.table(tuple(names))


@contextlib.contextmanager
def _in_memory(frame: DataFrame, label: str) -> Iterator[Table]:
    yield columnar.FrameTable(frame.lazy(), label)


@contextlib.contextmanager
def open_table(source: Source) -> Iterator[Table]:
    """The source as a table of its format; a file is compared with itself when it is closed."""
    if source.url:
        with open_query(source) as table:
            yield table
        return
    path = Path(source.file)
    try:
        before = Fingerprint.of(path)
        with path.open("rb") as file:
            if source.file_format == "csv":
                blocks = _blocks(file, before.size)
                yield CsvText(blocks, source, str(path), unit="bytes", total=before.size)
            else:
                if not before.size:
                    raise DataError(f"{path}: the file is empty")
                yield _COLUMNAR[source.file_format](path, str(path))
    except DataError:
        # A change explains whatever else seems to be wrong.
        before.check(path)
        raise
    except BrokenPipeError:
        raise  # of whoever shows the progress, not of the file
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such file; correct the path of the data file"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    before.check(path)


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first `size` bytes: a file that others append to would otherwise never end."""
    while size > 0 and (block := file.read(min(BLOCK_BYTES, size))):
        size -= len(block)
        yield block


_COLUMNAR = {"parquet": columnar.parquet, "arrow": columnar.arrow, "npz": columnar.npz}


def _check_names(
    table: Table, label: str, schema: Schema, source: Source, wanted: Sequence[str]
) -> None:
    where = f"{label}: {table.header_place}"
    check_twice(table, label, [name for name in source.ignore if name not in wanted])
    missing = [name for name in wanted if name not in table.names]
    extra = [name for name in table.names if name not in schema and name not in source.ignore]
    if missing:
        hint = f"; not in the schema: {_list(extra)}" if extra else ""
        raise DataError(f"{where}missing column {_list(missing)}{hint}")
    if extra:
        raise DataError(
            f"{where}column {_list(extra)} is not in the schema; take it out, or list it under "
            "ignore in this node's configuration"
        )


def check_twice(table: Table, label: str, ignored: Sequence[str]) -> None:
    """Raise DataError where two columns have one name, but for names that are ignored."""
    for name, count in Counter(table.names).items():
        if count > 1 and name not in ignored:
            raise DataError(
                f"{label}: {table.header_place}column {name!r} stands there twice; rename one, or "
                "list the name under ignore in this node's configuration"
            )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Filling:
    """Arrays that chunks are written into; they grow as rows come, to `rows` at most."""

    def __init__(self, label: str, place: str, columns: int, rows: int | None) -> None:
        self._label, self._place, self._rows = label, place, rows
        # What the job says is not believed: arrays grow with what is there.
        capacity = min(rows or 0, FIRST_ROWS)
        self._values = np.zeros((capacity, columns))
        self._missing = np.zeros((capacity, columns), bool)
        self._places = np.zeros(capacity, np.int64)
        self._identifiers: dict[str, list[str]] = {}
        self._dated: set[str] = set()
        self._start = self._end = 0

    def begin(self, places: np.ndarray) -> None:
        self._start, self._end = self._end, self._end + len(places)
        if self._rows is not None and self._end > self._rows:
            raise DataError(
                f"{self._label}: there are more than the {self._rows} rows that the job says; use "
                "the right table or correct data.rows in the job"
            )
        if self._end > len(self._values):
            capacity = max(self._end, len(self._values) * 3 // 2)
            if self._rows is not None:
                capacity = min(capacity, self._rows)
            for array in (self._values, self._missing, self._places):
                # In place: the operating system moves pages, so nothing stands there twice.
                array.resize((capacity, *array.shape[1:]), refcheck=False)
        self._places[self._start : self._end] = places

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """A bad cell as an error that says where it stands."""
        try:
            yield
        except cells.CellError as error:
            where = "" if error.row is None else f"{self._where(self._start + error.row)}: "
            raise DataError(f"{self._label}: {where}column {name!r}: {error}") from None

    def take(
        self,
        index: int,
        column_cells: Series,
        column: Column,
        source: Source,
        check: Check | None,
    ) -> None:
        values, missing = cells.decode(column_cells, column, source)
        if check is not None:
            check(column.name, values, missing)
        self._values[self._start : self._end, index] = values
        self._missing[self._start : self._end, index] = missing

    def identify(self, name: str, column_cells: Series) -> None:
        self._identifiers.setdefault(name, []).extend(cells.identifiers(column_cells))
        if cells.is_date(column_cells.dtype):
            self._dated.add(name)

    def keep(self, name: str, column_cells: Series) -> None:
        """A column's text as it stands there; a missing cell is empty."""
        self._identifiers.setdefault(name, []).extend(cells.texts(column_cells))

    def table(self, names: tuple[str, ...]) -> TypedTable:
        for array in (self._values, self._missing, self._places):
            array.resize((self._end, *array.shape[1:]), refcheck=False)
        return TypedTable(
            names,
            self._values,
            self._missing,
            self._identifiers,
            self._places,
            self._place,
            dated=frozenset(self._dated),
        )

    def _where(self, row: int) -> str:
        return f"{self._place} {self._places[row]}"


_ADVICE = "no other owner has values of it; take the column out of the job"


def _check_whole(table: TypedTable, schema: Schema) -> list[str]:
    """The columns of which these rows alone say nothing, and why, in words."""
    found = []
    for index, name in enumerate(table.names):
        values, present = table.values[:, index], ~table.missing[:, index]
        first = int(np.argmax(present))
        if not present[first]:
            found.append(f"column {name!r}: every cell is missing")
            continue
        others = np.any((values != values[first]) & present)
        if table.rows > 1 and not others and not schema[name].constant:
            found.append(
                f"column {name!r}: every row has the same value, which explains nothing here "
                "(constant = true in the schema, if that is meant)"
            )
    return found


def _check_duplicates(table: TypedTable, label: str) -> None:
    if not table.identifiers:
        return
    seen: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(zip(*table.identifiers.values(), strict=True)):
        before = seen.setdefault(key, row)
        if before != row:
            names = " and ".join(repr(name) for name in table.identifiers)
            raise DataError(
                f"{label}: {table.where(row)}: column {names}: identifies the same record as "
                f"{table.where(before)}; each record may stand there once"
            )


def reporting(
    table: Table, progress: Report | None, rows: int | None = None
) -> Callable[[int], None]:
    """Takes how much is done, and tells `progress` with the time that is left.

    rows: how many are expected, for tables that do not know how many they have.
    """
    started = time.monotonic()
    total = rows if table.total is None and table.unit == "rows" else table.total

    def report(done: int) -> None:
        if progress is None:
            return
        left = None
        if total and done:
            left = (time.monotonic() - started) * max(total - done, 0) / done
        progress(Progress(done, total, table.unit, left))

    return report
