"""Counts of the rows that a model was asked about, from one release to the next.

An evaluator that has not heard its part of a row takes zeros for it, and the counts of that unit
are then random words. Whoever has missed a part says so before the release, and all leave the unit
out: a client that is lost in the middle spoils one unit's counts and no window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from protocols.arrays import Words

Unit = tuple[int, int]
"""A lane's number and that of a unit of it."""
MOST_UNITS = 256
"""Units that wait until evaluators have said which of them they have missed."""


class Window:
    """One evaluator's summands of the counts since the last release. bins: of all histograms."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._units: dict[Unit, Words] = {}
        self._missed: set[Unit] = set()
        self._total = np.zeros(bins, np.int64)
        self.rows = 0
        """Of all units, padding included: the same at every evaluator."""

    @property
    def missed(self) -> tuple[Unit, ...]:
        """Units that wait, and of which this evaluator has not heard all parts: for the others."""
        return tuple(sorted(self._missed))

    @property
    def is_full(self) -> bool:
        return len(self._units) >= MOST_UNITS

    def add(self, unit: Unit, summands: Words, rows: int, *, whole: bool) -> None:
        """A unit's counts. whole: this evaluator has heard all of its parts."""
        self._units[unit] = summands
        self.rows += rows
        if not whole:
            self._missed.add(unit)

    def settle(self, missed: Iterable[Unit]) -> None:
        """Add up the units that wait, but for those that anybody has missed. missed: of all
        evaluators together, the same everywhere."""
        left_out = self._missed | set(missed)
        with np.errstate(over="ignore"):
            for unit, summands in self._units.items():
                if unit not in left_out:
                    self._total = self._total + summands
        self._units, self._missed = {}, set()

    def close(self) -> Words:
        """The sum of all units that were settled; a new window begins."""
        assert not self._units
        total, self._total, self.rows = self._total, np.zeros(self._bins, np.int64), 0
        return total


class Counting:
    """Fills an evaluator's windows, one after the other. Every evaluator adds the same units in the
    same order, so that all settle and release at the same ones.

    every_rows: of a window. exchange: tells the other evaluators what this one has missed; what all
    have. release: lets the counts of a window of so many rows out.
    """

    def __init__(
        self,
        bins: int,
        every_rows: int,
        exchange: Callable[[tuple[Unit, ...]], Iterable[Unit]],
        release: Callable[[int, Words], None],
    ) -> None:
        self._window, self._every = Window(bins), every_rows
        self._exchange, self._release = exchange, release

    def add(self, unit: Unit, summands: Words, rows: int, *, whole: bool) -> None:
        """As `Window.add`; releases the window once it has its rows."""
        window = self._window
        window.add(unit, summands, rows, whole=whole)
        due = window.rows >= self._every
        if due or window.is_full:
            window.settle(self._exchange(window.missed))
        if due:
            rows = window.rows
            self._release(rows, window.close())
