"""Rows that a node drops from its own table, by rules that it declares (`drop_rows`).

To drop rows is to decide which people a study is about: no row is dropped unless the owner says so,
and the owner is told how many there were.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.tables import cells
from mpc_train.tables.faults import CellError, Faults
from mpc_train.tables.reading import Chunk
from mpc_train.tables.schema import Column
from mpc_train.tables.source import DropRule, Source

WORDS: dict[DropRule, str] = {
    "empty-identifier": "with an empty identifier",
    "missing-label": "without a label",
}


class Dropping:
    """Drops rows from a source's chunks, by its rules.

    identifiers: the columns that the job uses as identifiers. label: its column, None if the table
    does not have it.
    """

    def __init__(self, source: Source, identifiers: Sequence[str], label: Column | None) -> None:
        self._source, self._identifiers = source, identifiers
        # An empty cell may not be one of the schema's codes, but it is a missing label.
        codes = () if label is None else tuple(dict.fromkeys((*label.missing, "")))
        self._label = label and msgspec.structs.replace(label, missing=codes)
        self.dropped: dict[DropRule, int] = dict.fromkeys(source.drop_rows, 0)
        self._read = 0

    def check(self, faults: Faults) -> None:
        """Note rules that cannot apply."""
        if "empty-identifier" in self.dropped and not self._identifiers:
            faults.header('drop_rows: the job does not use identifiers; remove "empty-identifier"')
        if "missing-label" in self.dropped and self._label is None:
            faults.header('drop_rows: this node has no label in the job; remove "missing-label"')

    @property
    def said(self) -> str:
        """A text on how many rows are dropped and why; empty without rules."""
        if not self.dropped:
            return ""
        parts = [f"{count:,} {WORDS[rule]}" for rule, count in self.dropped.items()]
        return f"{sum(self.dropped.values()):,} rows dropped: {', '.join(parts)} (drop_rows)"

    def kept(self, chunk: Chunk) -> tuple[Chunk, NDArray[np.int64] | None]:
        """The chunk without dropped rows, and which of the source's rows its rows are."""
        if not self.dropped:
            return chunk, None
        gone = np.zeros(chunk.frame.height, bool)
        for rule in self.dropped:
            found = self._found(rule, chunk.frame) & ~gone
            self.dropped[rule] += int(found.sum())
            gone |= found
        rows = self._read + np.flatnonzero(~gone)
        self._read += len(gone)
        if gone.any():
            frame = chunk.frame.filter(polars.Series(~gone))
            chunk = Chunk(frame, chunk.places[~gone], chunk.done)
        return chunk, rows

    def _found(self, rule: DropRule, frame: polars.DataFrame) -> NDArray[np.bool_]:
        found = np.zeros(frame.height, bool)
        if rule == "empty-identifier":
            for name in self._identifiers:
                if name in frame.columns:
                    found |= cells.empty(frame[name])
        elif self._label is not None and self._label.name in frame.columns:
            found |= self._missing(frame[self._label.name], self._label)
        return found

    def _missing(self, column_cells: polars.Series, label: Column) -> NDArray[np.bool_]:
        """Which labels are missing; a bad one is not, so that it is reported as such."""
        found = cells.empty(column_cells)
        rows = np.arange(len(column_cells))
        while len(rows):
            try:
                _, missing = cells.decode(column_cells.gather(rows), label, self._source)
            except CellError as error:
                if error.rows is None:
                    break
                rows = np.delete(rows, error.rows)
                continue
            found[rows[missing]] = True
            break
        return found
