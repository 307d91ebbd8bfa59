"""The neighbours of each interpolated element, and their public weights.

Each element of the result is a mean of two neighbours along each axis, with public weights that
follow from sizes alone, as in torch.nn.functional.interpolate. Weights that need more than 20 bits
are rounded to them so that those of an element still add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import floor, prod
from typing import Any

import numpy as np

from protocols.arrays import Shape, Words

WEIGHT_BITS = 20


@dataclass(frozen=True)
class Resizing:
    """given, wanted: sizes of the last axes before and after. factors: wanted / given as it was
    asked for, before it was rounded down to whole sizes. aligned: first and last elements stay
    where they are (torch's align_corners), and `factors` say nothing.
    """

    given: Shape
    wanted: Shape
    factors: tuple[Fraction, ...]
    aligned: bool

    def neighbours(self, axis: int) -> list[tuple[int, int, Fraction]]:
        """For each element: its two neighbours, and the weight of the second."""
        given, wanted = self.given[axis], self.wanted[axis]
        found = []
        for place in range(wanted):
            if self.aligned:
                at = Fraction(place * (given - 1), max(wanted - 1, 1))
            else:
                at = (place + Fraction(1, 2)) / self.factors[axis] - Fraction(1, 2)
            at = min(max(at, Fraction(0)), Fraction(given - 1))
            low = floor(at)
            found.append((low, min(low + 1, given - 1), at - low))
        return found


@lru_cache(maxsize=64)
def taps_of(plan: Resizing) -> tuple[int, list[tuple[Any, Words]]]:
    """Bits of the weights; for each combination of neighbours their index along the last axes, and
    int64[*wanted], their weights."""
    axes = [plan.neighbours(axis) for axis in range(len(plan.given))]
    sides = list(product((0, 1), repeat=len(axes)))
    exact = np.empty((len(sides), *plan.wanted), object)
    for place in np.ndindex(*plan.wanted):
        second = [axis[k][2] for axis, k in zip(axes, place, strict=True)]
        for number, side in enumerate(sides):
            weights = (w if s else 1 - w for w, s in zip(second, side, strict=True))
            exact[(number, *place)] = prod(weights, start=Fraction(1))
    bits = 0
    while bits < WEIGHT_BITS and any((w * (1 << bits)).denominator > 1 for w in exact.flat):
        bits += 1
    words = np.vectorize(lambda w: round(w * (1 << bits)), otypes=[np.int64])(exact)
    # The rounding remainder goes to the neighbour with the largest weight.
    heaviest = words.argmax(axis=0)[None]
    rest = (1 << bits) - words.sum(axis=0, keepdims=True)
    np.put_along_axis(words, heaviest, np.take_along_axis(words, heaviest, 0) + rest, 0)
    grids = [
        (..., *np.ix_(*([k[s] for k in axis] for axis, s in zip(axes, side, strict=True))))
        for side in sides
    ]
    return bits, list(zip(grids, words, strict=True))
