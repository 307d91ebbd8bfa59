"""Real numbers as elements of Z_2^64: a real x is round(x · 2^f), two's complement.

A number that does not fit is an error here and does not wrap silently later: NaN, infinities and
magnitudes of 2^(62 − f) and more, the bound up to which truncation is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocols.arrays import Words
from protocols.errors import RangeError
from protocols.ring.rational import HEADROOM_BITS

MIN_FRACTION_BITS = 8
MAX_FRACTION_BITS = 26
"""With 26 bits a product still holds magnitudes up to 2^10."""


def check_fraction_bits(fraction_bits: int) -> int:
    """Return `fraction_bits` if a job may use it, else raise RangeError."""
    if not MIN_FRACTION_BITS <= fraction_bits <= MAX_FRACTION_BITS:
        raise RangeError(
            f"fraction_bits = {fraction_bits}: {MIN_FRACTION_BITS} to {MAX_FRACTION_BITS} possible"
        )
    return fraction_bits


def encode(values: NDArray[np.floating], fraction_bits: int) -> Words:
    """round(values · 2^f), ties to even; int64 of the same shape.

    Raises RangeError for a value that is not finite or not below 2^(62 − f) in magnitude; the
    message says where, never which value.
    """
    real = np.asarray(values, np.float64)
    limit = float(1 << (HEADROOM_BITS - fraction_bits))
    fits = np.abs(real) < limit
    if not fits.all():
        place = tuple(int(i) for i in np.argwhere(~fits)[0]) if real.ndim else ()
        raise RangeError(
            f"element {place} of shape {real.shape} is not finite or not below 2^"
            f"{HEADROOM_BITS - fraction_bits} in magnitude; scale it, or use fewer fraction_bits"
        )
    words: Words = np.rint(real * float(1 << fraction_bits)).astype(np.int64)
    return words


def decode(words: Words, fraction_bits: int) -> NDArray[np.float64]:
    """words / 2^f as float64, exact for magnitudes below 2^53."""
    return np.ldexp(np.asarray(words, np.int64).astype(np.float64), -fraction_bits)
