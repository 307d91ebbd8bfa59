"""How public factors are applied to secret words: one integer factor before and one shift after.

Integer and rational arithmetic on public numbers only, so that the checks of a job and the steps of
a run use the same functions and get the same integers (`representable`, `sgd`, `gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from mpc_train.base.bounds import WORD_BITS, bit_length
from protocols.errors import RangeError
from protocols.ring.rational import HEADROOM_BITS, mantissa

RATE_BITS = 12
"""Learning rate over batch size is rounded to this many significant bits: 1 part in 8192."""
MIN_FACTOR_BITS = 10
"""Momentum and decay have at least this many significant bits, and half as large an error."""
MAX_SHIFT = HEADROOM_BITS - 22
"""A longer shift would leave no room for updates up to 1 at 20 fraction bits."""
MANTISSA_BITS = 12
"""Bits of the factor of each tensor, when all are brought to one scale."""
NORM_FACTOR_BITS = 14
"""Fractional bits of min(1, limit / ‖g‖), the factor that clips gradients."""


@lru_cache(256)
def coefficients(
    rate: Fraction,
    weight: Fraction,
    factor: Fraction,
    excess_bits: int,
    weight_decay: Fraction,
    previous: Fraction,
) -> tuple[int, int, int, int]:
    """Integer factors of gradient, w and v, and a shift: (gradient's, shift, w's, v's).

    After the shift they are rate · weight · factor, rate · weight · weight_decay and rate ·
    previous.
    """
    whole, shift = fold(rate * weight * factor, excess_bits)
    decay, carried = rate * weight * weight_decay, rate * previous
    # A gradient with few bits, or a rate that is a power of two, leaves a short shift, but the
    # other factors need a longer one.
    for other in (decay, carried):
        if other:
            spare = MIN_FACTOR_BITS - shift - bit_length(other)
            more = max(0, min(spare, MAX_SHIFT - shift))
            whole, shift = whole << more, shift + more
    return whole, shift, round(decay * (1 << shift)), round(carried * (1 << shift))


def fold(factor: Fraction, excess_bits: int) -> tuple[int, int]:
    """(m, s): multiplying by m and truncating by s bits applies `factor` and drops `excess_bits`.

    If one or two fewer bits of the mantissa save a byte of every opened element, they are dropped.
    A factor that is too small for the longest shift keeps fewer bits, in the end none: then it
    would not change a weight. Raises RangeError if not even the excess fits.
    """
    whole, shift = mantissa(factor, RATE_BITS)
    total = shift + excess_bits
    spare = total % 8
    if whole.bit_length() == RATE_BITS and spare in (1, 2):
        whole, total = round(Fraction(whole, 1 << spare)), total - spare
    if total < 1:
        whole, total = whole << (1 - total), 1
    most = HEADROOM_BITS - 2
    if excess_bits > most:
        raise RangeError(f"gradients with {excess_bits} bits more than weights do not fit the ring")
    if total > most:
        whole, total = round(factor * (1 << (most - excess_bits))), most
    return whole, total


def brought_together(
    finenesses: Sequence[Fraction], words_per_unit: Fraction, limit: Fraction
) -> tuple[list[int], int]:
    """For gradients with these words for 1: integer factors and a shift.

    Multiplied and shifted right, they all have `words_per_unit` for 1. limit: the bound of a
    gradient's magnitude, which determines the length of the mantissas; 12 bits unless the ring is
    too small. RangeError if not even one bit is left.
    """
    room = WORD_BITS - bit_length(limit * words_per_unit)
    shift = min(room, max(0, bit_length(max(finenesses) / words_per_unit)) + MANTISSA_BITS)
    wholes = [round(words_per_unit * (1 << max(shift, 0)) / each) for each in finenesses]
    if shift < 1 or 0 in wholes:
        raise RangeError("gradients do not fit the ring; lower gradient_limit")
    return wholes, shift
