"""exp(x) with a bounded relative error, for x in a public range.

`splines.exp` has a bounded absolute error, for x <= 0. A regression with a logarithmic link needs
exp of both signs, and as many digits of small values as of large ones:

    exp(x) = exp(a) · exp(b),   a the middle of the half-open interval of length 1/2 that x is in.

1. Thresholds [x < knot] at every half, all from one digit table. Their sums give a and exp(a), both
   exact to the last bit whatever x is, and x is clamped to the ends of the range by the outer two.
2. b = x − a lies within ±1/4. A polynomial of degree 4, its fifth power economised, is exact to
   2^-20 there.
3. The product of both, which is left as summands: the caller's truncation follows.

Rounds before the summands are available: 3 for the thresholds, 1 for b and exp(a), 2 for b², 2 for
the
polynomial: 8. Opened by an evaluator for an element: a comparison a knot and about 45 bytes.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np

from protocols.arrays import Words
from protocols.comparison.compare import below, weighted
from protocols.errors import RangeError
from protocols.ring.rational import exponential
from protocols.shares.arithmetic import multiply, remask, select, truncate
from protocols.shares.masked import Additive, Masked

STEP = Fraction(1, 2)
POLYNOMIAL_BITS = 24
WORD_BITS = 61
MAX_BITS = 22
"""Of x: the polynomial is evaluated at scale 2^60 and keeps 16 bits of its coefficients."""


def exponential_bits(most: Fraction) -> int:
    """Fractional bits of the summands of `relative_exp` up to `most`."""
    return POLYNOMIAL_BITS + _power_bits(most)


def relative_exp(x: Masked, fraction_bits: int, least: Fraction, most: Fraction) -> Additive:
    """Summands of exp(max(least, min(x, most))) at scale 2^exponential_bits(most).

    x: at scale 2^fraction_bits. Relative error: 2^-19, and |x − a| · 2^-fraction_bits from what
    rounding x means. RangeError for ends that are not multiples of 1/2, or too many bits.
    """
    f, role = fraction_bits, x.role
    if f > MAX_BITS or least >= most or any(end % STEP for end in (least, most)):
        raise RangeError("exp needs ends that are multiples of 1/2 and at most 22 fraction bits")
    # 1
    knots, middles, powers = _tables(f, least, most)
    bits = below(x if x.early else x.narrowed(64 - f), knots)
    low, high = bits.select(0), bits.select(-1)
    inner = bits.select(slice(1, -1))
    clamped = select(high, x) - select(low, x)
    clamped = clamped + low.shares().scale(knots[0]) - high.shares().scale(knots[-1])
    middle = weighted(inner, middles[1]) if len(knots) > 2 else None
    offset = clamped.shift(knots[-1] - int(middles[0]))
    b = remask(offset if middle is None else offset - middle)
    role.issue("exp", x.size, len(knots))
    # 2
    extra = min(20, WORD_BITS - 1 - 2 * f)
    c1, c2, c3, c4 = (round(c * (1 << extra)) for c in _coefficients())
    square = truncate(multiply(b, b), f)
    upper = multiply(square, b.scale(c3) + square.scale(c4))
    lower = (b.scale(c1) + square.scale(c2)).shares().scale(1 << f)
    total = (upper + lower).shift(1 << (2 * f + extra))
    polynomial = truncate(total, 2 * f + extra - POLYNOMIAL_BITS)
    # 3
    if len(knots) == 2:
        return polynomial.shares().scale(int(powers[0]))
    power = remask(weighted(inner, powers[1]).shift(int(powers[0])))
    return multiply(polynomial, power)


def _power_bits(most: Fraction) -> int:
    """Fractional bits of exp(a), so that its product with the polynomial stays below 2^61."""
    top = exponential(most)
    return WORD_BITS - POLYNOMIAL_BITS - 1 - max(int(top).bit_length(), 0)


def _coefficients() -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Of b, b², b³, b⁴: Taylor's, with b⁵ / 120 replaced by its best cubic within ±1/4."""
    h = STEP / 2
    fifth = Fraction(1, 120)
    return (
        1 - fifth * 5 * h**4 / 16,
        Fraction(1, 2),
        Fraction(1, 6) + fifth * 20 * h**2 / 16,
        Fraction(1, 24),
    )


Steps = tuple[int, Words]


@cache
def _tables(f: int, least: Fraction, most: Fraction) -> tuple[tuple[int, ...], Steps, Steps]:
    """Knots at scale 2^f; for a and exp(a) the value on the last interval and what each inner bit
    [x < knot] adds to it."""
    count = int((most - least) / STEP)
    places = [least + STEP * k for k in range(count + 1)]
    scale = 1 << _power_bits(most)
    knots = tuple(round(place * (1 << f)) for place in places)
    middles = [round((place + STEP / 2) * (1 << f)) for place in places[:-1]]
    powers = [round(exponential(place + STEP / 2) * scale) for place in places[:-1]]
    return knots, _steps(middles), _steps(powers)


def _steps(values: list[int]) -> Steps:
    return values[-1], np.array([low - high for low, high in pairwise(values)], np.int64)
