"""Secret numbers of any magnitude: their octave, and products with the power that fits it.

A fixed point suits numbers of known magnitude. Here the magnitude is secret as well: comparisons
with public thresholds say, in masked bits, between which two of them a number lies (`magnitude`).
Public numbers for each such level become one secret number by a local sum (`Magnitude.chosen`);
with powers of two this is a shift by a secret number of places (`shifted`). A number that was
brought into [1, 2) or [1, 4) like this has a reciprocal or an inverse root to 2^-27 (`reciprocal`,
`inverse_root`), from a spline and two Newton steps.

Only masked values are opened: nobody learns a level or a power. Meant for as many elements as a
table has columns, not rows: exact rather than cheap. Truncations here do not drop bits (`exactly`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from protocols.comparison.compare import below, weighted
from protocols.functions.refinement import refined_reciprocal, refined_root
from protocols.functions.splines import evaluate
from protocols.ring.rational import HEADROOM_BITS, MANTISSA_BITS
from protocols.shares.arithmetic import multiply, remask, round_off
from protocols.shares.masked import Additive, Masked, MaskedBit

SPLINE_BITS = 20
NEWTON_STEPS = 2


@dataclass(frozen=True, slots=True, repr=False)
class Magnitude:
    """Between which of k ascending public thresholds secret numbers lie: their level, 0 … k, is how
    many of them a number has reached. bits: [x < threshold], [k, *shape]."""

    bits: MaskedBit

    @property
    def lowest(self) -> MaskedBit:
        """Whether the level is 0."""
        return self.bits.select(0)

    def select(self, index: object) -> Magnitude:
        """The levels of some elements, by any NumPy index of the numbers' shape."""
        return Magnitude(self.bits.select((slice(None), index)))

    def chosen(self, values: Sequence[int]) -> Additive:
        """Summands of values[level], for public integers modulo 2^64. No communication."""
        if len(values) != self.bits.shape[0] + 1:
            raise ValueError("a number for each level is needed")
        steps = [_word(low - high) for low, high in pairwise(values)]
        return weighted(self.bits, np.array(steps, np.int64)).shift(_word(values[-1]))


def magnitude(x: Masked, thresholds: Sequence[int]) -> Magnitude:
    """The levels of x among ascending thresholds, −2^62 <= x < 2^62. 3 rounds."""
    return Magnitude(below(x.narrowed(64), thresholds))


def shifted(x: Masked, bits: int, size: Magnitude, exponents: Sequence[int]) -> Additive:
    """Summands of x · 2^exponents[level] for |x| < 2^bits; what falls below 1 is rounded off.

    For positive exponents it is exact modulo 2^64. 4 rounds: 1 for the powers, 1 for the product
    and 2 where something is rounded off. Powers downwards are applied in groups, each one product
    that fits and one truncation.
    """
    room = HEADROOM_BITS - 1 - bits
    left = [1 << e if 0 <= e < 64 else 0 for e in exponents]
    total = multiply(x, remask(size.chosen(left)))
    lowest = min((e for e in exponents if e < 0), default=0)
    while lowest < 0:
        cut = min(-lowest, HEADROOM_BITS)
        taken = range(lowest, min(0, room - cut + 1))
        powers = [1 << max(e + cut, 0) if e in taken else 0 for e in exponents]
        total += exactly(multiply(x, remask(size.chosen(powers))), cut).shares()
        lowest = min((e for e in exponents if taken.stop <= e < 0), default=0)
    return total


def exactly(z: Additive, bits: int) -> Masked:
    """z / 2^bits, rounded to one of its two neighbours, 0 <= bits; nothing is left out of what is
    opened, so that 0 stays 0. 2 rounds."""
    return round_off(z, bits, exact=True).lift() if bits else remask(z)


def reciprocal(u: Masked) -> Masked:
    """1 / u for 1 <= u < 2, at scale 2^28, to 2^-27; bounded elsewhere. 15 rounds."""
    r = _started("RECIPROCAL", u, upper=2)
    for _ in range(NEWTON_STEPS):
        r = refined_reciprocal(r, u, MANTISSA_BITS, exactly)
    return r


def inverse_root(u: Masked) -> Masked:
    """1 / sqrt(u) for 1 <= u < 4, at scale 2^28, to 2^-27; bounded elsewhere. 19 rounds."""
    r = _started("RSQRT", u, upper=4)
    for _ in range(NEWTON_STEPS):
        r = refined_root(r, u, MANTISSA_BITS, exactly)
    return r


def _started(name: str, u: Masked, upper: int) -> Masked:
    """A spline's value, from u without its lowest bits."""
    excess = MANTISSA_BITS - SPLINE_BITS
    return evaluate(name, exactly(u.shares(), excess), SPLINE_BITS, upper).scale(1 << excess)


def _word(value: int) -> int:
    """The integer of a word that is equal modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
