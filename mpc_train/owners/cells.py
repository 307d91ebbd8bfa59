"""Cells of columns with secret statistics as whole numbers, in two words each.

A declared range may be much wider than a column's values: an income in [0, 10^12]. So a cell of
such a term is shared with all the digits that float64 has near the ends of the range, as a whole
number of cell units,

    cell = u / 2^reach · 2^56,    2^reach the power of two at or above the term's bound,

and a product of a cell with a secret scale must still fit the ring: the owner splits it into a
coarse and a fine word, cell = coarse · 2^28 + fine, each with its own factor (`combined`). Both are
exact, and the only cost per row is the second word.

For joined rows, sums over all of them are computed over shares, which leaves fewer bits (`joined`).
Then the owner, who knows the whole column, counts from the middle of its own cells in units of
2^cut cells (`Affine`), and secret-shares both numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.pipeline import Pipeline
from protocols.arrays import Reals

CELL_BITS, WORD_BITS = 56, 28
"""Bits of a cell, and of its fine word."""
MAX_JOINED_BITS = 20
"""Bits of the fine word of joined rows, at most."""
MIN_SPREAD_BITS = 10
"""Values that differ by less than 2^10 units count as equal: near the ends of the range float64
resolves 2^3 units."""
SUM_BITS = 61
"""Sums over rows stay below 2^61."""


def cells(pipeline: Pipeline, values: Reals) -> Reals:
    """Whole numbers [rows, scaled terms], exact in float64, from the owner's u [rows, terms]."""
    scaled = list(pipeline.scaled)
    reach = reaches(pipeline, pipeline.scaled)
    found: Reals = np.rint(np.ldexp(values[:, scaled], CELL_BITS - reach))
    return found


def reaches(pipeline: Pipeline, places: Sequence[int]) -> NDArray[np.int64]:
    """`Term.reach` of the terms at these places."""
    return np.array([pipeline.reaches[place] for place in places], np.int64)


def halves(whole: Reals, bits: int) -> tuple[Reals, Reals]:
    """(coarse, fine) with whole = coarse · 2^bits + fine and |fine| <= 2^(bits − 1)."""
    coarse = np.rint(np.ldexp(whole, -bits))
    return coarse, whole - np.ldexp(coarse, bits)


@dataclass(frozen=True, repr=False)
class Affine:
    """An owner's units for the cells of its terms: cell = origin + number · 2^cut, each float64[k].

    `number` is below 2^(2 · bits) in magnitude for the owner's own cells. least, most: of them.
    """

    origin: Reals
    cut: Reals
    least: Reals
    most: Reals

    @classmethod
    def of(cls, whole: Reals, there: NDArray[np.bool_], bits: int) -> Affine:
        """From whole cells [rows, k] and the flags of those that are present."""
        some = there.any(axis=0)
        low = np.where(some, np.min(whole, axis=0, where=there, initial=np.inf), 0.0)
        high = np.where(some, np.max(whole, axis=0, where=there, initial=-np.inf), 0.0)
        origin = np.rint((low + high) / 2)
        _, length = np.frexp(np.maximum(high - origin, origin - low))
        return cls(origin, np.maximum(length - 2 * bits, 0).astype(np.float64), low, high)

    @classmethod
    def public(cls, terms: int, bits: int) -> Affine:
        """Units that say nothing about the cells: all of their range in numbers of two words."""
        zero = np.zeros(terms)
        return cls(zero, np.full(terms, float(CELL_BITS - 2 * bits)), zero, zero)

    def numbers(self, whole: Reals, there: NDArray[np.bool_]) -> Reals:
        """The cells in the owner's units; 0 for a missing cell."""
        return np.where(there, np.rint(np.ldexp(whole - self.origin, -self.cut.astype(int))), 0.0)

    @property
    def words(self) -> Reals:
        """The numbers that the owner secret-shares, whole numbers [5, k]: origin, cut, 2^cut, least
        and most."""
        return np.stack([self.origin, self.cut, np.exp2(self.cut), self.least, self.most])


def joined_bits(rows: int) -> int:
    """Bits of the fine word for this many joined rows: sums of squares of both words fit the
    ring."""
    return min(MAX_JOINED_BITS, (SUM_BITS - rows.bit_length()) // 2)
