"""Fills the arrays of one table from chunks of cells, and collects their faults.

A column with a fault is read to its end, to report all its faults; its values are not used.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from polars import Series

from mpc_train.tables import cells
from mpc_train.tables.faults import CellError, Faults
from mpc_train.tables.schema import Column
from mpc_train.tables.source import Source
from mpc_train.tables.typed import TypedTable

FIRST_ROWS = 1 << 16
"""Initial room, in rows, before the first is read."""

Check = Callable[[str, cells.Reals, cells.Mask], None]
"""Checks a column's name, values and missing flags of some rows; raises CellError."""


class Filling:
    """Arrays into which chunks are written; they grow with the rows, to at most `rows`.

    Later rows are checked and counted (`read`), but not kept. fillable: columns that may be
    completely empty, whatever their schema says about single cells.
    """

    def __init__(
        self,
        faults: Faults,
        columns: int,
        rows: int | None,
        fillable: frozenset[str] = frozenset(),
    ) -> None:
        self._faults, self._most, self._fillable = faults, rows, fillable
        # The job's number is not trusted: arrays grow with the actual rows.
        capacity = min(rows or 0, FIRST_ROWS)
        self._values = np.zeros((capacity, columns))
        self._missing = np.zeros((capacity, columns), bool)
        self._places = np.zeros(capacity, np.int64)
        self._kept: list[NDArray[np.int64]] = []
        self._identifiers: dict[str, list[str]] = {}
        self._dated: set[str] = set()
        self._blank: dict[str, list[NDArray[np.int64]]] = {name: [] for name in fillable}
        self._now = np.zeros(0, np.int64)
        self._start = self._end = 0
        self.read = 0
        """How many rows were examined."""

    def begin(self, places: NDArray[np.int64], kept: NDArray[np.int64] | None = None) -> None:
        """Begin a chunk whose rows are at `places`. kept: which of the source's rows they are, if
        some are dropped."""
        self._now = places
        self.read += len(places)
        self._start = self._end
        self._end += len(places)
        if self._most is not None:
            self._end = min(self._end, self._most)
        if self._end > len(self._values):
            capacity = max(self._end, len(self._values) * 3 // 2)
            if self._most is not None:
                capacity = min(capacity, self._most)
            for array in (self._values, self._missing, self._places):
                # In place: the operating system moves pages, so memory is not doubled.
                array.resize((capacity, *array.shape[1:]), refcheck=False)
        self._places[self._start : self._end] = places[: self._end - self._start]
        if kept is not None:
            self._kept.append(kept[: self._end - self._start])

    def take(
        self,
        index: int,
        column_cells: Series,
        column: Column,
        source: Source,
        check: Check | None,
    ) -> None:
        """Take the chunk's cells of a column, which has the place `index` in the table."""
        name, room = column.name, self._end - self._start
        if name in self._blank and self._is_blank(name, column_cells):
            self._values[self._start : self._end, index] = 0
            self._missing[self._start : self._end, index] = True
            return
        try:
            values, missing = _decoded(column_cells, column, source, check)
        except CellError:
            self._gather(column_cells, column, source, check)
            return
        self._values[self._start : self._end, index] = values[:room]
        self._missing[self._start : self._end, index] = missing[:room]

    def absent(self, index: int) -> None:
        """Take the chunk's cells of a column that the table does not have."""
        self._missing[self._start : self._end, index] = True

    def identify(self, name: str, column_cells: Series) -> None:
        """Take the chunk's cells of an identifier."""
        try:
            texts = cells.identifiers(column_cells)
        except CellError as error:
            rows = np.arange(len(column_cells))
            while len(rows):
                rows = self._noted(name, rows, error)
                try:
                    cells.identifiers(column_cells.gather(rows))
                    return
                except CellError as again:
                    error = again
            return
        self._identifiers.setdefault(name, []).extend(texts[: self._end - self._start])
        if cells.is_date(column_cells.dtype):
            self._dated.add(name)

    def keep(self, name: str, column_cells: Series) -> None:
        """A column's unchanged text; a missing cell is empty."""
        self._identifiers.setdefault(name, []).extend(cells.texts(column_cells))

    def _is_blank(self, name: str, column_cells: Series) -> bool:
        """Whether all cells so far of a column that may be empty are empty. When one is not, the
        schema decides on empty cells, including earlier ones."""
        if cells.all_empty(column_cells):
            self._blank[name].append(self._now)
            return True
        before = self._blank.pop(name)
        if before:
            self._faults.cells(name, np.concatenate(before), cells.EMPTY)
        return False

    def _gather(
        self, column_cells: Series, column: Column, source: Source, check: Check | None
    ) -> None:
        """Note every fault in a chunk's cells: rows with one kind of fault are removed until none
        are left."""
        rows = np.arange(len(column_cells))
        while len(rows):
            try:
                _decoded(column_cells.gather(rows), column, source, check)
                return
            except CellError as error:
                rows = self._noted(column.name, rows, error)

    def _noted(self, name: str, rows: NDArray[np.int64], error: CellError) -> NDArray[np.int64]:
        """The rows without those of the error, which is noted."""
        if error.rows is None:
            self._faults.column(name, str(error))
            return rows[:0]
        self._faults.cells(name, self._now[rows[error.rows]], str(error))
        return np.delete(rows, error.rows)

    def table(self, names: tuple[str, ...]) -> TypedTable:
        for array in (self._values, self._missing, self._places):
            array.resize((self._end, *array.shape[1:]), refcheck=False)
        return TypedTable(
            names,
            self._values,
            self._missing,
            self._identifiers,
            self._places,
            self._faults.place,
            dated=frozenset(self._dated),
            kept=np.concatenate(self._kept) if self._kept else None,
        )


def _decoded(
    column_cells: Series, column: Column, source: Source, check: Check | None
) -> tuple[cells.Reals, cells.Mask]:
    values, missing = cells.decode(column_cells, column, source)
    if check is not None:
        check(column.name, values, missing)
    return values, missing
