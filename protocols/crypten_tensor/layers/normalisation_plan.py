"""The numbers of bits of a norm's sums: public integers, no arrays.

Values lie below 2^VALUE_BITS. Their squares are summed at the full scale 2^(2f) of a product, in
chunks that stay below 2^SUM_BITS, and only sums of several chunks lose bits, so that even a small
variance has far more bits than a value of the tensor.
"""

from __future__ import annotations

from protocols.errors import RangeError

VALUE_BITS = 6
"""|x| < 2^6: a sum of n squared deviations is below n · 2^12."""
SUM_BITS = 60
LIMIT_BITS = 8
"""Means are divided by n with a mantissa that leaves room for sums of 2^8 an element."""
WORD_BITS = 61
MANTISSA_BITS, MIN_MANTISSA_BITS = 20, 8
MEAN_MANTISSA_BITS = 26
"""The rounding of its mantissa changes a mean of values below 2^6 by less than a unit of 2^-20."""
MAX_FRACTION_BITS = (SUM_BITS - 1) // 2 - VALUE_BITS


def chunk_of(fraction_bits: int) -> int:
    """How many squares are summed before a truncation: 256 for f = 20.

    RangeError where not even two fit.
    """
    if fraction_bits > MAX_FRACTION_BITS:
        raise RangeError(
            f"squares of values up to {1 << VALUE_BITS} do not fit at fraction_bits = "
            f"{fraction_bits}; use at most {MAX_FRACTION_BITS}"
        )
    return 1 << (SUM_BITS - 2 * (fraction_bits + VALUE_BITS))


def lost_bits(count: int, fraction_bits: int) -> int:
    """How many bits a sum of `count` squares loses."""
    return (-(-count // chunk_of(fraction_bits)) - 1).bit_length()


def mantissa_bits(
    elements: int,
    fraction_bits: int,
    limit_bits: int = LIMIT_BITS,
    most_bits: int = MANTISSA_BITS,
) -> int:
    """Bits of the mantissa that divides a sum of `elements` numbers below 2^limit_bits."""
    room = WORD_BITS - fraction_bits - limit_bits - max(elements.bit_length(), 1)
    return min(most_bits, room)


def check_norm(count: int, fraction_bits: int) -> None:
    """Raise RangeError unless means and variances over `count` values fit."""
    chunks = max(count // chunk_of(fraction_bits), 1)
    if mantissa_bits(chunks, fraction_bits, 2 * VALUE_BITS) < MIN_MANTISSA_BITS:
        raise RangeError(f"a norm over {count} values does not fit; use smaller batches")
