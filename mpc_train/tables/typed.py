"""A table as numbers, with flags of missing cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, repr=False)
class TypedTable:
    """One owner's rows, in the order of its source.

    values: float64[B, c], a column for each of `names`, as described in
    `mpc_train.tables.schema.Column`; 0 where missing. missing: bool[B, c]. identifiers: by column
    the text of each row, in NFC and without spaces at its ends, only for the requested columns;
    they are for linkage, and no other text of a table may reach another party. places: int64[B],
    the line (or number) of each row in its source, for errors. warnings: sentences for the table's
    owner. dated: identifiers that the source knows as dates, written as 2001-12-31 whatever form
    the node declares. kept: int64[B], which of the source's rows these are, from 0, if a rule of
    the node dropped some; None: all of them.
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
        """The place of a row in its source, "line 12"."""
        return f"{self.place} {row + 1 if self.places is None else self.places[row]}"

    def __repr__(self) -> str:
        return f"TypedTable(rows={self.rows}, columns={len(self.names)})"
