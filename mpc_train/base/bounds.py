"""How many bits words may have: integer arithmetic on public numbers, no arrays."""

from __future__ import annotations

from fractions import Fraction

from protocols.errors import RangeError
from protocols.ring.rational import HEADROOM_BITS, RootRange, octaves

WORD_BITS = 61
"""Words stay below 2^61 before a truncation, so that rounding never reaches its bound of 2^62."""
EXTRA_BITS = 6
"""How many more fractional bits gradients have than weights."""
CLASS_WEIGHT_BITS = 12
"""Public weights of classes are rounded to multiples of 2^-12."""
SQUARE_BITS = 36
"""Fractional bits of a gradient's squared norm, or fewer if the ring requires it."""


def bit_length(value: Fraction) -> int:
    """The smallest b with value <= 2^b, for a value above 0; b may be negative."""
    bits = value.numerator.bit_length() - value.denominator.bit_length()
    return bits + 1 if value > Fraction(2) ** bits else bits


def gradient_bits(fraction_bits: int, gradient_limit: Fraction) -> int:
    """Fractional bits of gradients: 6 more than weights, or fewer if squares would not fit."""
    return min(fraction_bits + EXTRA_BITS, (WORD_BITS - 1 - 2 * bit_length(gradient_limit)) // 2)


def norm_range(elements: int, gradient_limit: Fraction, limit: Fraction, bits: int) -> RootRange:
    """Where max(‖g‖², limit²) lies, with `bits` fractional bits; its root may not fit the ring."""
    least = round(limit**2 * (1 << bits))
    most = round(elements * gradient_limit**2 * (1 << bits))
    return octaves(max(least, 1), max(most, least, 1))


def norm_bits(elements: int, gradient_limit: Fraction, limit: Fraction, bits_of_one: int) -> int:
    """Fractional bits of ‖g‖², even, for gradients with `bits_of_one`; RangeError if limit² would
    be less than 2^8 words."""
    most = WORD_BITS - 4 - bit_length(elements * gradient_limit**2)
    bits = min(SQUARE_BITS, most, 2 * bits_of_one - 1) & ~1
    # The root's octaves end at multiples of six bits: two or four bits fewer may fit if these do
    # not.
    while bits > 0 and norm_range(elements, gradient_limit, limit, bits).top >= HEADROOM_BITS:
        bits -= 2
    if limit**2 * Fraction(2) ** bits < 1 << 8:
        raise RangeError(
            f"a norm of {float(limit):g} cannot be told from rounding over {elements} weights with "
            f"gradient_limit = {gradient_limit}; lower gradient_limit or raise the norm"
        )
    return bits
