"""A table under other names: what a job calls the columns that its owner calls otherwise."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import polars

from mpc_train.tables.reading import Chunk, Table, Unit
from mpc_train.tables.spelling import name_of


class Renamed:
    """A `Table` whose columns are renamed. names: from the table's own to the job's."""

    def __init__(self, table: Table, names: Mapping[str, str]) -> None:
        self._table = table
        renamed = {name_of(ours): name_of(theirs) for ours, theirs in names.items()}
        self.names = tuple(renamed.get(name, name) for name in table.names)
        self.unknown = tuple(ours for ours in names if name_of(ours) not in table.names)
        self._own = dict(zip(self.names, table.names, strict=True))

    @property
    def header_place(self) -> str:
        return self._table.header_place

    @property
    def place(self) -> Literal["line", "row"]:
        return self._table.place

    @property
    def unit(self) -> Unit:
        return self._table.unit

    @property
    def total(self) -> int | None:
        return self._table.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Under the table's own names: a job calls its array as the file does."""
        return self._table.shapes

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        if not wanted:
            # Only the rows count then; a format may have to put some column there to have rows.
            yield from self._table.chunks(())
            return
        theirs = {self._own[name]: name for name in wanted}
        for chunk in self._table.chunks([self._own[name] for name in wanted]):
            frame = polars.DataFrame(
                [cells.alias(theirs[cells.name]) for cells in chunk.frame.iter_columns()]
            )
            yield Chunk(frame, chunk.places, chunk.done)
