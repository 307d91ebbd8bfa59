"""Numbers from the discrete Gaussian N_Z(0, σ²), for any rational σ², by integers alone.

P(x) is proportional to exp(−x² / 2σ²) for every integer x (Canonne, Kamath and Steinke, "The
Discrete Gaussian for Differential Privacy", NeurIPS 2020). Noise has the grid of the words that it
is added to, so σ is up to 2^58 and no table has room for every value. With K a power of two, 1 for
σ below 2^11 and otherwise σ / K from 2^10 to 2^11:

1. A word of 128 bits chooses a cell h >= 0 with probability proportional to exp(−(K h)² / 2σ²), by
   a table of 128-bit thresholds. Its lower half is drawn only where the upper half is equal to a
   threshold's.
2. l is uniform in [0, K); y = K h + l is accepted with probability exp(−l (2 K h + l) / 2σ²), which
   is at least 1 − 14 · 2^-10 and makes the law of y exact whatever K is.
3. A uniform sign; minus zero is rejected, so that 0 counts once.

A rejected number begins again at 1. One pair of words decides nearly always: l, the sign and the
first bits of the word that 2 compares come from the second. Where these bits do not decide, and
after a rejection, `Table.one` goes on in exact integers: for about one number in 2,000.

How far the law of a number is from the exact one, in total variation: each threshold is rounded
down by less than 2^-128; cells beyond the last, below 2^-131 together, are left out; 2 compares 128
bits and more. At least half of all proposals are accepted. `Table.distance` adds this up: below
2^-111 for a number, so that 2^31 numbers stay below 2^-80. Whoever accounts for privacy adds it to
δ (`distance`). Nothing is computed in floating point.

What time reveals: how many numbers of a call took the long way. That depends on noise, not on data,
and noise is drawn before it meets a value; searching the table takes a time that depends on the
cell, through the cache. Both are side channels of a machine that holds the noise anyway.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from protocols.arrays import Octets, Words
from protocols.errors import RangeError
from protocols.noise.limits import TAIL
from protocols.ring import kernels

THRESHOLD_BITS = 128
CELL_BITS = 10
"""σ / K is at least 2^10, unless K is 1."""
MAX_DEVIATION_BITS = 58
"""σ is at most 2^58: 13.6 σ still fits words up to 2^62."""
GUIDE_BITS = 12
WORK_BITS = 320
"""Fractional bits of the sums from which thresholds are rounded."""

Draw = Callable[[int], Octets]
"""Gives that many fresh uniform octets."""


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """What is drawn from for one σ². low: K = 2^low. thresholds: 2^128 · P(h <= j), rounded down.

    tops, guide, unsure: for `kernels.cells`. `unsure` bounds, in units of the bits that the second
    word has for it, the probability that step 2 rejects.
    """

    variance: Fraction
    low: int
    thresholds: tuple[int, ...]
    tops: NDArray[np.uint64] = field(compare=False)
    guide: NDArray[np.int32] = field(compare=False)
    unsure: NDArray[np.uint64] = field(compare=False)

    def __repr__(self) -> str:
        return f"Table(cells={len(self.thresholds)})"

    @property
    def distance(self) -> Fraction:
        """A bound of the total variation distance of one number's law from N_Z(0, σ²)."""
        return Fraction(2 * len(self.thresholds) + 4, 1 << THRESHOLD_BITS)

    @property
    def most(self) -> int:
        """No number is larger in magnitude."""
        return len(self.thresholds) << self.low

    def numbers(self, count: int, draw: Draw) -> Words:
        """int64[count] of independent numbers. Draws 16 octets for each, and more for a few."""
        words = np.frombuffer(draw(16 * count), np.uint64)
        first, second = words[:count], words[count:]
        out, left = np.empty(count, np.int64), np.empty(count + 1, np.int64)
        kernels.cells(first, second, self.tops, self.guide, self.unsure, self.low, out, left)
        for place in left[1 : 1 + left[0]]:
            out[place] = self.one(int(first[place]), int(second[place]), draw)
        return out

    def one(self, first: int, second: int, draw: Draw) -> int:
        """The number that begins with these two words: all three steps in exact integers."""
        while True:
            # 1
            cell = bisect_right(self.thresholds, first << 64 | _word(draw))
            # 2
            low = self.low
            inner = second & ((1 << low) - 1)
            value = (cell << low) + inner
            test_bits = 63 - low
            test = (second >> low) & ((1 << test_bits) - 1)
            accepted = True
            if inner:
                exponent = inner * ((cell << (low + 1)) + inner) / (2 * self.variance)
                test = test << 128 | _word(draw) << 64 | _word(draw)
                test_bits += 128
                accepted = test >= (1 << test_bits) - _decay(exponent, test_bits)
            # 3
            negative = bool(second >> 63)
            if accepted and (value or not negative):
                return -value if negative else value
            first, second = _word(draw), _word(draw)


@lru_cache(64)
def table(variance: Fraction) -> Table:
    """The table for σ² = `variance`. RangeError unless 0 < σ² <= 2^116."""
    if not 0 < variance <= 1 << (2 * MAX_DEVIATION_BITS):
        raise RangeError("the variance of noise, in words, has to be above 0 and at most 2^116")
    deviation = isqrt(int(variance)) + 1
    low = max(deviation.bit_length() - 1 - CELL_BITS, 0) if deviation > 2 << CELL_BITS else 0
    cells = int(TAIL * deviation / (1 << low)) + 2
    # weight(h + 1) = weight(h) · ratio(h), ratio(h + 1) = ratio(h) · step
    square = Fraction(1 << (2 * low)) / variance
    ratio, step = _decay(square / 2, WORK_BITS), _decay(square, WORK_BITS)
    weight, total, sums = 1 << WORK_BITS, 0, []
    for _ in range(cells):
        total += weight
        sums.append(total)
        weight = weight * ratio >> WORK_BITS
        ratio = ratio * step >> WORK_BITS
    thresholds = [(part << THRESHOLD_BITS) // total for part in sums]
    tops = np.array([min(each >> 64, (1 << 64) - 1) for each in thresholds], np.uint64)
    starts = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
    guide = np.append(np.searchsorted(tops, starts, side="left"), cells - 1)
    scale = 1 << (63 - low)
    unsure = [-(-scale * square * (2 * h + 1) // 2) if low else 0 for h in range(cells)]
    return Table(
        variance,
        low,
        tuple(thresholds),
        tops,
        guide.astype(np.int32),
        np.array([min(int(each), scale) for each in unsure], np.uint64),
    )


def numbers(variance: Fraction, count: int, draw: Draw) -> Words:
    """int64[count] from N_Z(0, `variance`), in words."""
    return table(variance).numbers(count, draw)


def distance(variance: Fraction, count: int) -> Fraction:
    """A bound of the total variation distance between `count` numbers' law and the exact one."""
    return count * table(variance).distance


def _word(draw: Draw) -> int:
    return int.from_bytes(draw(8).tobytes(), "little")


def _decay(exponent: Fraction, bits: int) -> int:
    """exp(−exponent) · 2^bits for exponent >= 0, by integers, within 2^-40 of a unit."""
    halvings = max(0, int(exponent).bit_length()) + 4
    work = bits + 48 + halvings
    x = (exponent.numerator << (work - halvings)) // exponent.denominator
    term = total = 1 << work
    k = 0
    while term:
        k += 1
        term = term * x // (k << work)
        total += -term if k % 2 else term
    for _ in range(halvings):
        total = total * total >> work
    return total >> (work - bits)
