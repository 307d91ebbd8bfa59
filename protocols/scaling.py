"""Scales of columns that stay secret: 1 / sqrt(variance), extremes, exact rounding down.

Meant for as many elements as a table has columns, not rows: exact to a few units of the scale
rather than cheap.
"""

from __future__ import annotations

import numpy as np

from protocols.arithmetic import multiply, remask, round_off, select, truncate
from protocols.comparison import below, maximum, negative, weighted
from protocols.errors import RangeError
from protocols.functions import evaluate
from protocols.masked import Additive, Masked, concatenate

VARIANCE_BITS = 36
"""Fractional bits of a variance: it is at most 2^8 and is told from 0 from 2^-16 on."""
LEAST_EXPONENT, MOST_EXPONENT = -8, 4
"""4^-8 <= variance < 4^4; below, a column counts as constant."""
NEWTON_STEPS = 2


def inverse_deviation(variance: Masked, fraction_bits: int) -> Masked:
    """1 / sqrt(v) at scale 2^f for 2^-16 <= v < 2^8 at scale 2^36; exactly 1 below 2^-16.

    v is brought into [1, 4) by a power of 4 that stays secret, 1 / sqrt comes from a spline and two
    Newton steps: relative error 2^(3 - f). 26 rounds.
    """
    f = fraction_bits
    exponents = range(LEAST_EXPONENT, MOST_EXPONENT)
    top = MOST_EXPONENT - 1
    # Powers 4^(top - e) and 2^(top - e) for 4^e <= v < 4^(e + 1): [v < 4^e] takes the larger one.
    bits = below(variance.narrowed(64), [_threshold(e) for e in exponents])
    constant, larger = bits.select(0), bits.select(slice(1, None))
    steps = np.array(
        [[base ** (top - e + 1) - base ** (top - e) for e in exponents[1:]] for base in (4, 2)],
        np.int64,
    )
    power, root_power = (remask(weighted(larger, row).shift(1)) for row in steps)
    # v · 4^(top - e) = u · 4^top with 1 <= u < 4
    u = truncate(multiply(variance, power), VARIANCE_BITS + 2 * top - f)
    r = evaluate("RSQRT", u, f, upper=4)
    for _ in range(NEWTON_STEPS):
        square = truncate(multiply(r, r), f)
        rest = -truncate(multiply(u, square), f).shift(-(3 << f))
        r = truncate(multiply(r, rest), f + 1)
    inverse = truncate(multiply(r, root_power), top)
    return remask(inverse.shares() + select(constant, -inverse.shift(-(1 << f))))


def _threshold(exponent: int) -> int:
    return 1 << (VARIANCE_BITS + 2 * exponent)


def extremes(low: Masked, high: Masked) -> tuple[Masked, Masked]:
    """The least of `low` and the largest of `high` along the last axis, which goes.

    All pairs are compared: meant for as many elements as there are owners.
    """
    shape = low.shape[:-1]
    if low.shape[-1] == 1:
        return low.reshape(*shape), high.reshape(*shape)
    both = concatenate([(-low).reshape(1, *low.shape), high.reshape(1, *high.shape)])
    top = maximum(both)[0].reshape(2, *shape)
    return -top.select(0), top.select(1)


def floor_quotient(z: Additive, bits: int) -> Masked:
    """floor(z / 2^bits) exactly, for -2^62 <= z < 2^62: a truncation, and a comparison that takes
    back what it rounded up. 6 rounds. Raises RangeError for bits outside 1 … 62."""
    if not 1 <= bits <= 62:
        raise RangeError(f"rounding by {bits} bits: 1 to 62 are possible")
    rounded = round_off(z, bits, exact=True).lift()
    rest = remask(z - rounded.scale(1 << bits).shares())
    # z < t·2^bits: t was rounded up.
    up = negative(rest.narrowed(bits + 1) if bits < 62 else rest)
    return remask(rounded.shares() - up.shares())
