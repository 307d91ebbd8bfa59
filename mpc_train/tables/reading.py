"""The common form of every format: named columns, in chunks of rows that know their places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars
from numpy.typing import NDArray

MAX_FIELDS = 200_000
"""The most columns of a table, including those that no job uses."""

Unit = Literal["bytes", "rows"]
Place = Literal["line", "row", "instance"]
"""What errors call a row's place: an instance is a row of a request to a program."""


@dataclass(frozen=True, repr=False)
class Chunk:
    """Some consecutive rows.

    places: int64[n], for each row the line on which it begins, or its number from 1. done: how much
    of the table has been read, in the table's unit.
    """

    frame: polars.DataFrame
    places: NDArray[np.int64]
    done: int


class Table(Protocol):
    """An open table of some format. Raises DataError, which never repeats a cell."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, under the table's names."""

    @property
    def header_place(self) -> str:
        """The place of the names, "line 1: " or nothing."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What is said of keys of the owner's file that name a column that does not exist."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes of whole arrays by name, if the format has them (npz)."""

    @property
    def place(self) -> Place:
        """What `Chunk.places` counts."""

    @property
    def unit(self) -> Unit: ...

    @property
    def total(self) -> int | None:
        """The total in `unit`; None if unknown."""

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        """The requested columns, once, from the first row to the last."""


@dataclass(frozen=True)
class Progress:
    """How much of a table has been read; seconds_left: None if unknown."""

    done: int
    total: int | None
    unit: Unit
    seconds_left: float | None
