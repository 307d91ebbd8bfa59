"""Means of secret sums over a public number of rows."""

from fractions import Fraction

from protocols.ring.rational import mantissa
from protocols.shares.arithmetic import remask, truncate
from protocols.shares.masked import Additive, Masked

MEAN_BITS = 20
KEPT_BITS = 4
"""A sum over n rows loses all but this many of log2(n) bits before it is divided by n."""


def mean_of(total: Additive | Masked, rows: int) -> Masked:
    """A sum over `rows` rows divided by their number: some units of error."""
    summands = total if isinstance(total, Additive) else total.shares()
    lost = max(0, (rows - 1).bit_length() - KEPT_BITS)
    if lost:
        summands = truncate(summands, lost).shares()
    whole, shift = mantissa(Fraction(1 << lost, rows), MEAN_BITS)
    scaled = summands.scale(whole)
    return truncate(scaled, shift) if shift else remask(scaled)
