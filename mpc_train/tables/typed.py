"""A table as numbers, with what is missing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, repr=False)
class TypedTable:
    """One owner's rows, in the order of its source.

    values: float64[B, c], a column for each of `names`, as `mpc_train.tables.schema.Column` says;
    0 where missing. missing: bool[B, c]. identifiers: by column the text of each row, in NFC and
    without spaces at its ends, only of the columns that were asked for; they are for linkage, and
    nothing else of a table may reach another party as text. places: int64[B], the line (or number)
    of each row in its source, for errors. warnings: what its owner should look at, in words. dated:
    identifiers that the source knows as dates, written as 2001-12-31 whatever form the node
    declares. kept: int64[B], which of the source's rows these are, from 0, where some were left
    out by a rule of the node's; None: all of them.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    missing: NDArray[np.bool_]
    identifiers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: NDArray[np.int64] | None = None
    place: str = "row"
    warnings: tuple[str, ...] = ()
    dated: frozenset[str] = frozenset()
    kept: NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        return len(self.values)

    def column(self, name: str) -> NDArray[np.float64]:
        """The values of one column, float64[B]; a view."""
        view: NDArray[np.float64] = self.values[:, self.names.index(name)]
        return view

    def where(self, row: int) -> str:
        """Where a row stands in its source, "line 12"."""
        return f"{self.place} {row + 1 if self.places is None else self.places[row]}"

    def __repr__(self) -> str:
        return f"TypedTable(rows={self.rows}, columns={len(self.names)})"
