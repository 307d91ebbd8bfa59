"""Public numbers by integers alone, the same on every machine; no floating point, no arrays."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

ROOT_BITS = 40
"""Fractional bits of 1 / sqrt(v) in `inverse_root`, which is at most 1."""
FACTOR_BITS = 20
"""A quotient of `inverse_root` stays below 2^20 as a word."""


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
