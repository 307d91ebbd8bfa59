"""Chunks of cells into the arrays of one table; what is wrong with them is gathered.

A column with a fault is read to its end, so that all its faults are said; its values are not used.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from polars import Series

from mpc_train.tables import cells
from mpc_train.tables.cells import CellError
from mpc_train.tables.faults import Faults
from mpc_train.tables.schema import Column
from mpc_train.tables.source import Source
from mpc_train.tables.typed import TypedTable

FIRST_ROWS = 1 << 16
"""There is room for so many before the first is read."""

Check = Callable[[str, cells.Reals, cells.Mask], None]
"""Takes a column's name, values and what is missing, of some rows; raises CellError."""


class Filling:
    """Arrays that chunks are written into; they grow as rows come, to `rows` at most.

    What comes after that is looked at and counted (`read`), and not kept. fillable: columns that
    may be empty as a whole, whatever their schema says of single cells.
    """

    def __init__(
        self,
        faults: Faults,
        columns: int,
        rows: int | None,
        fillable: frozenset[str] = frozenset(),
    ) -> None:
        self._faults, self._most, self._fillable = faults, rows, fillable
        # What the job says is not believed: arrays grow with what is there.
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
        """Rows that were looked at."""

    def begin(self, places: NDArray[np.int64], kept: NDArray[np.int64] | None = None) -> None:
        """A chunk begins, whose rows stand at `places`. kept: which of the source's rows they are,
        where some are left out."""
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
                # In place: the operating system moves pages, so nothing is in memory twice.
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
        """The chunk's cells of a column, which is at `index` of the table."""
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
        """The chunk's cells of a column that the table does not have."""
        self._missing[self._start : self._end, index] = True

    def identify(self, name: str, column_cells: Series) -> None:
        """The chunk's cells of an identifier."""
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
        """A column's text as the table has it; a missing cell is empty."""
        self._identifiers.setdefault(name, []).extend(cells.texts(column_cells))

    def _is_blank(self, name: str, column_cells: Series) -> bool:
        """Whether all cells of a column that may be empty are so far. Once one is not, empty ones
        are what the schema says, those before as well."""
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
        """Note every fault in a chunk's cells: rows of one kind are taken out until none is
        left."""
        rows = np.arange(len(column_cells))
        while len(rows):
            try:
                _decoded(column_cells.gather(rows), column, source, check)
                return
            except CellError as error:
                rows = self._noted(column.name, rows, error)

    def _noted(self, name: str, rows: NDArray[np.int64], error: CellError) -> NDArray[np.int64]:
        """The rows but those of the error, which is noted."""
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
