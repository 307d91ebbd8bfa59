"""The public numbers of a matrix inversion (`matrix_inverse`), by integers alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from protocols.errors import RangeError

WORD_BITS = 61
FACTOR_BITS = 10
"""Fractional bits of ζ and ζ²."""
ENOUGH = Fraction(1, 1024)
"""How far from 1 the smallest part of T·Y may end."""
MAX_INVERSE_BITS, MAX_RESIDUAL_BITS = 22, 30
UNRESOLVED_BITS = 40
"""Fractional bits of `matrix_inverse.unresolved`."""
UNRESOLVED = 2.0**-17
"""Above it, a row takes part in a direction that was not inverted: the smallest eigenvalue that is
leaves ENOUGH² = 2^-20."""


@dataclass(frozen=True, slots=True)
class InversePlan:
    """The public numbers of an inversion.

    factors: ζ of each step, at scale 2^FACTOR_BITS. matrix_bits, inverse_bits, residual_bits:
    fractional bits of T, of Y and of the factor in brackets. growth: 2^growth bounds |Y|.
    """

    size: int
    factors: tuple[int, ...]
    matrix_bits: int
    inverse_bits: int
    residual_bits: int
    growth: int

    @property
    def rounds(self) -> int:
        return 4 * len(self.factors) - 2


def inverse_plan(size: int, least: Fraction) -> InversePlan:
    """For size × size matrices whose eigenvalues from `least` up are to be inverted.

    RangeError where the ring has no room: `least` below about 2^-24.
    """
    factors, low, growth = [], least, Fraction(1)
    while 1 - low > ENOUGH:
        factor = int(2 / (1 + low) * (1 << FACTOR_BITS))  # never 2, which would bring 1 to 0
        zeta = Fraction(factor, 1 << FACTOR_BITS)
        factors.append(factor)
        growth *= 2 * zeta
        low = min(low * zeta * (2 - zeta * low), zeta * (2 - zeta))
        low = Fraction(int(low * (1 << 60)), 1 << 60)
    bits = int(growth).bit_length()
    room = WORD_BITS - bits
    inverse_bits = min((room - 4) // 2, MAX_INVERSE_BITS)
    residual_bits = min(room - inverse_bits, MAX_RESIDUAL_BITS)
    matrix_bits = WORD_BITS - 2 - FACTOR_BITS - inverse_bits
    if inverse_bits < 14 or matrix_bits < 24:
        raise RangeError(f"an inverse of a matrix with eigenvalues down to {float(least):.1e}")
    return InversePlan(
        size,
        tuple(factors),
        matrix_bits,
        inverse_bits,
        residual_bits,
        bits,
    )
