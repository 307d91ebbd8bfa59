"""Updates as integers: the declared norm, the scale that follows from it, clipping, rounding.

An update is clipped to the Euclidean norm C that the job declares, and rounded at the scale 2^s:
the largest with C · 2^s <= 2^22, because a sum of squares over shares must not wrap around
(`protocols.functions.norm_bound`). An element is then rounded by at most 2^−(s+1): for a norm of 1
by 2^−23. Nothing here needs a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isqrt

import numpy as np

from mpc_train.errors import DataError
from protocols.arrays import Reals, Words

NORM_BITS = 22
MOST_SIZE = 1 << 26
"""Elements of an update: half a GiB as words."""
MOST_ROWS = 1 << 31
"""Of all owners together; with it no weighted sum of elements below 2^23 leaves the ring."""
MIN_CLIP, MAX_CLIP = Fraction(1, 1 << 20), Fraction(1 << 20)
_PIECE = 1 << 14
"""Numbers that stay in the cache over several operations."""


def pieces(size: int) -> Iterator[slice]:
    """Slices of a long vector. What is done piece by piece reads memory once, and needs no array of
    the vector's size for what lies between two operations."""
    for start in range(0, size, _PIECE):
        yield slice(start, min(start + _PIECE, size))


@dataclass(frozen=True)
class Limits:
    """clip: the largest norm of an update. size: how many numbers it has."""

    clip: Fraction
    size: int

    def check(self) -> None:
        """Raises DataError."""
        if not MIN_CLIP <= self.clip <= MAX_CLIP:
            raise DataError(f"a clip of {float(self.clip):g}: 2^-20 to 2^20 are possible")
        if not 1 <= self.size <= MOST_SIZE:
            raise DataError(f"an update of {self.size} numbers: 1 to {MOST_SIZE} are possible")

    @property
    def fraction_bits(self) -> int:
        """s; may be negative."""
        bits = floor(NORM_BITS - (self.clip.numerator.bit_length() - 1))
        bits += self.clip.denominator.bit_length() + 1
        while self.clip * Fraction(2) ** bits > 1 << NORM_BITS:
            bits -= 1
        return bits

    @property
    def most_norm(self) -> int:
        """The largest norm that passes, in units: of norm C before the elements were rounded by
        half a unit each."""
        norm = self.clip * Fraction(2) ** self.fraction_bits
        return floor(norm) + 1 + (isqrt(self.size) + 1) // 2 + 1

    @property
    def most_square(self) -> int:
        """The square of it."""
        return self.most_norm**2

    def rounded(self, update: Reals, what: str = "the update") -> tuple[Words, float]:
        """The update as words int64[size], clipped, and the factor by which it was, at most 1.

        what: how an error names it. Raises DataError if a number is not finite.
        """
        values = np.array(update, np.float64).reshape(-1)
        if values.size != self.size:
            raise DataError(f"{what} has {values.size} numbers, not {self.size}")
        return self.round_in_place(values, what)

    def round_in_place(self, values: Reals, what: str) -> tuple[Words, float]:
        """The same of float64[size], whose place the words take."""
        norm = float(np.linalg.norm(values))
        if not np.isfinite(norm):
            bad = np.flatnonzero(~np.isfinite(values))
            where = f"number {bad[0]} of {what}" if len(bad) else f"the norm of {what}"
            raise DataError(
                f"{where} is not finite: the local training diverged; nothing of it was shared"
            )
        factor = min(1.0, float(self.clip) / norm) if norm else 1.0
        # By a power of two in addition, which rounds nothing.
        scale = factor * 2.0**self.fraction_bits
        words: Words = values.view(np.int64)
        for piece in pieces(self.size):
            words[piece] = np.rint(values[piece] * scale)
        return words, factor

    def real(self, words: Words) -> Reals:
        """Words at this scale as numbers."""
        found: Reals = words.astype(np.float64)
        found *= 2.0**-self.fraction_bits
        return found

    def mean(self, words: Words, rows: int) -> Reals:
        """Words at this scale, a sum over so many rows, divided by these; in the place of the
        words."""
        found: Reals = words.view(np.float64)
        for piece in pieces(words.size):
            found[piece] = self.real(words[piece]) / rows
        return found
