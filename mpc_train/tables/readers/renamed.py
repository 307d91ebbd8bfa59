"""A table in the job's terms: converts its owner's names of columns and spellings of cells
(`rename` and `recode` of its source)."""

from collections.abc import Iterator, Sequence

import polars

from mpc_train.errors import DataError
from mpc_train.tables.cells import recoded
from mpc_train.tables.faults import CellError
from mpc_train.tables.reading import Chunk, Place, Table, Unit
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import name_of


def in_words_of_the_job(table: Table, source: Source) -> Table:
    """Return `table`, renamed and recoded as the source says."""
    return Renamed(table, source) if source.rename or source.recode else table


class Renamed:
    """A `Table` with the job's names of columns and spellings of cells."""

    def __init__(self, table: Table, source: Source) -> None:
        self._table, self._source = table, source
        renamed = {name_of(ours): name_of(theirs) for ours, theirs in source.rename.items()}
        self._codes = {name_of(ours): codes for ours, codes in source.recode.items()}
        self.names = tuple(renamed.get(name, name) for name in table.names)
        named = [("rename", ours) for ours in source.rename]
        named += [("recode", ours) for ours in source.recode]
        self.unknown = tuple(
            f"{key}.{ours}: there is no column of this name{self._turned(key, ours, table.names)}"
            for key, ours in named
            if name_of(ours) not in table.names
        )
        self._own = dict(zip(self.names, table.names, strict=True))

    def _turned(self, key: str, ours: str, names: Sequence[str]) -> str:
        """What to write instead if the two names were exchanged."""
        theirs = self._source.rename.get(ours, "")
        if key != "rename" or name_of(theirs) not in names:
            return ""
        return (
            f", but one of the name {theirs!r}: write the table's name first and the job's name "
            f'after it (rename = {{ "{theirs}" = … }}); a column that has the job\'s name already '
            "needs no entry"
        )

    @property
    def header_place(self) -> str:
        return self._table.header_place

    @property
    def place(self) -> Place:
        return self._table.place

    @property
    def unit(self) -> Unit:
        return self._table.unit

    @property
    def total(self) -> int | None:
        return self._table.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Under the table's own names: the job and the file use the same name for an array."""
        return self._table.shapes

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        if not wanted:
            # Then only the number of rows matters; a format may need some column to have rows.
            yield from self._table.chunks(())
            return
        theirs = {self._own[name]: name for name in wanted}
        for chunk in self._table.chunks([self._own[name] for name in wanted]):
            columns = map(self._recoded, chunk.frame.iter_columns())
            frame = polars.DataFrame([cells.alias(theirs[cells.name]) for cells in columns])
            yield Chunk(frame, chunk.places, chunk.done)

    def _recoded(self, cells: polars.Series) -> polars.Series:
        codes = self._codes.get(cells.name)
        if codes is None:
            return cells
        try:
            return recoded(cells, codes, self._source.decimal)
        except CellError as error:
            raise DataError(f"column {cells.name!r}: {error}") from error
