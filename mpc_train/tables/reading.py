"""What every format is read as: named columns, in chunks of rows that know where they stand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars
from numpy.typing import NDArray

MAX_FIELDS = 200_000
"""Columns of a table, those that no job uses too."""

Unit = Literal["bytes", "rows"]


@dataclass(frozen=True, repr=False)
class Chunk:
    """Some rows, one after the other.

    places: int64[n], for each row the line on which it begins, or its number from 1. done: how much
    of the whole is read, in the table's unit.
    """

    frame: polars.DataFrame
    places: NDArray[np.int64]
    done: int


class Table(Protocol):
    """An open table of some format. Raises DataError, in words that repeat no cell."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, as the table has them."""

    @property
    def header_place(self) -> str:
        """Where the names stand, "line 1: " or nothing."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys of the owner's file that speak of a column that is not there: `rename.Alter`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes of whole arrays by name, where the format has them (npz)."""

    @property
    def place(self) -> Literal["line", "row"]:
        """What `Chunk.places` counts."""

    @property
    def unit(self) -> Unit: ...

    @property
    def total(self) -> int | None:
        """The whole in `unit`; None where nobody knows."""

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        """The wanted columns, once, from first row to last."""


@dataclass(frozen=True)
class Progress:
    """How far a table is read; seconds_left: None where nobody knows."""

    done: int
    total: int | None
    unit: Unit
    seconds_left: float | None
