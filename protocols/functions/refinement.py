"""Newton steps that square the relative error of a spline's reciprocal or inverse root."""

from __future__ import annotations

from collections.abc import Callable

from protocols.shares.arithmetic import multiply
from protocols.shares.masked import Additive, Masked

Rounding = Callable[[Additive, int], Masked]
"""Brings a product back to its scale: `arithmetic.truncate`, or one that rounds exactly."""


def refined_reciprocal(r: Masked, u: Masked, bits: int, rounded: Rounding) -> Masked:
    """r · (2 − u · r), nearer to 1 / u; all at scale 2^bits. Two products."""
    rest = -rounded(multiply(u, r), bits).shift(-(2 << bits))
    return rounded(multiply(r, rest), bits)


def refined_root(r: Masked, u: Masked, bits: int, rounded: Rounding) -> Masked:
    """r · (3 − u · r²) / 2, nearer to 1 / sqrt(u); all at scale 2^bits. Three products."""
    square = rounded(multiply(r, r), bits)
    rest = -rounded(multiply(u, square), bits).shift(-(3 << bits))
    return rounded(multiply(r, rest), bits + 1)
