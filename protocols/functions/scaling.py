"""Extremes and exact rounding down of secret numbers, for as many elements as a table has columns.

Scaling of a column with secret magnitude is in `magnitude`.
"""

from __future__ import annotations

from protocols.comparison.compare import maximum, negative
from protocols.errors import RangeError
from protocols.shares.arithmetic import remask, round_off
from protocols.shares.masked import Additive, Masked, concatenate


def extremes(low: Masked, high: Masked) -> tuple[Masked, Masked]:
    """The smallest of `low` and the largest of `high` along the last axis, which is removed.

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
        raise RangeError(f"rounding by {bits} bits; it must be 1 to 62")
    rounded = round_off(z, bits, exact=True).lift()
    rest = remask(z - rounded.scale(1 << bits).shares())
    # z < t·2^bits: t was rounded up.
    up = negative(rest.narrowed(bits + 1) if bits < 62 else rest)
    return remask(rounded.shares() - up.shares())
