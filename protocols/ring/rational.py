"""Public numbers by integers alone, the same on every machine; no floating point, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

from protocols.errors import RangeError

HEADROOM_BITS = 62
"""A truncation is exact for −2^62 <= z < 2^62."""
OCTAVE_BITS = 6
ROOT_BITS = 40
"""Fractional bits of 1 / sqrt(v) in `inverse_root`, which is at most 1."""
MANTISSA_BITS = 28
"""Fractional bits of reciprocals and inverse roots in `magnitude`: products stay below 2^60."""
FACTOR_BITS = 20
"""A quotient of `inverse_root` stays below 2^20 as a word."""


MIN_FACTOR = Fraction(1, 1 << 30)
"""Scales that are at least this, after the powers that go with them, have a mantissa that fits."""


@dataclass(frozen=True, slots=True)
class RootRange:
    """Where x lies: 2^low <= x < 2^(low + 6 · octaves) as words; low is even."""

    low: int
    octaves: int

    @property
    def top(self) -> int:
        return self.low + OCTAVE_BITS * self.octaves


def octaves(least: int, most: int) -> RootRange:
    """The range for words from `least` to `most`, whether or not the ring has room for it."""
    low = (least.bit_length() - 1) & ~1
    return RootRange(low, max(1, -((low - most.bit_length()) // OCTAVE_BITS)))


def root_range(least: int, most: int) -> RootRange:
    """The range for words from `least` to `most`; RangeError where the ring has no room."""
    if not 1 <= least <= most:
        raise RangeError("the root needs words of at least 1")
    found = octaves(least, most)
    if found.top > HEADROOM_BITS - 1:
        raise RangeError(f"a root of words up to 2^{found.top}: at most 2^{HEADROOM_BITS - 1} fit")
    return found


def root(value: Fraction, bits: int = 60) -> Fraction:
    """sqrt(value) of a public number to about `bits` significant bits, by integers alone."""
    if value <= 0:
        return Fraction(0)
    length = value.numerator.bit_length() - value.denominator.bit_length()
    shift = 2 * bits - length
    shift += shift & 1
    scaled = value * (Fraction(2) ** shift)
    return Fraction(isqrt(int(scaled))) / (Fraction(2) ** (shift // 2))


def exponential(value: Fraction) -> Fraction:
    """e^value of a public number by its series, the same on every machine: to about 2^-60."""
    term = total = Fraction(1)
    for k in range(1, 200):
        term = term * value / k
        term = Fraction(round(term * (1 << 80)), 1 << 80)
        total += term
        if abs(term) < Fraction(1, 1 << 70) and k > value:
            break
    return total


def mantissa(factor: Fraction, bits: int) -> tuple[int, int]:
    """(m, k) with m / 2^k the nearest to `factor` of at most `bits` bits; k >= 0 is least.

    Rational rounding only, so that every machine gets the same integers. Raises RangeError where
    the factor is too large for k >= 0.
    """
    if factor == 0:
        return 0, 0
    magnitude = abs(factor)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    shift = max(bits - exponent, 0)
    value = round(factor * (1 << shift))
    while abs(value) >= 1 << bits:
        if shift == 0:
            raise RangeError(f"a factor of about 2^{exponent} does not fit {bits} bits")
        shift -= 1
        value = round(factor * (1 << shift))
    while shift and value % 2 == 0:
        value //= 2
        shift -= 1
    return value, shift
