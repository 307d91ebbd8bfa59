"""Products with 1 / sqrt(x) for x of any magnitude, for adaptive optimizers and norms.

A spline of 1 / sqrt(x) in x itself would need coefficients from 2^-30 to 2^30. Here x is first
brought into [1, 64) by a power of 64 that stays secret, and the root's power of 8 goes with the
factor:

    x = v · 2^low · 64^j, 1 <= v < 64,    1 / sqrt(x) = (1 / sqrt(v)) · 8^-j · 2^(-low / 2).

1. Thresholds [x < 2^(low + 6k)] for each k, all from one digit table. Both powers are public
   combinations of their bits: 64^(K − j) and 8^(K − j) for K octaves of 64, masked afresh.
2. v = x · 64^(K − j), truncated to 10 fractional bits, and the factor times 8^(K − j), truncated
   likewise: together.
3. 1 / sqrt(v) as a piecewise quadratic of 12 pieces. v < 2^16 as a word, so that its thresholds
   have four digits. v² stays below 2^32 and is masked without truncation.
4. The product, which is left as summands: the caller's truncation follows.

Rounds before the summands are available: 3 for the thresholds (2 where x comes out of a
truncation), 1 for the powers, 1 and 2 for v and its thresholds, 1 for the coefficients, 1 for the
root: 9.
Error: 2^-10.8 of the result from the spline; the rounding of v adds at most as much again and
averages out. All of it is element-wise over any number of elements, so that one call serves all
parameters of a model.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np

from protocols.arrays import Words
from protocols.comparison.compare import below, weighted
from protocols.errors import RangeError
from protocols.functions.spline_tables import ROOT
from protocols.functions.splines import KNOT_BITS, TABLE_BITS
from protocols.ring.rational import (
    FACTOR_BITS,
    HEADROOM_BITS,
    OCTAVE_BITS,
    ROOT_BITS,
    RootRange,
    mantissa,
)
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import Additive, Masked

ROOT_POWER_BITS = 3
UNIT_BITS = 10
"""Fractional bits of v; the knots of the table are multiples of its unit."""
MANTISSA_BITS, MIN_MANTISSA_BITS = 12, 7


def times_inverse_root(factor: Masked, x: Masked, where: RootRange, scale: Fraction) -> Additive:
    """Summands of round(factor · scale) / sqrt(x) · 2^40, all as words, scale public.

    factor, x: one shape; x within `where`, by the caller's bound. |factor · scale| / sqrt(x) is to
    stay below 2^17, so that every product fits. The caller's truncation removes the factor of 40
    bits. Opened by an evaluator for an element: about 3 bytes for each octave, 10 for the 12 pieces
    and 68 for products and re-masking. RangeError for a scale that does not fit.
    """
    value = x if x.early is not None else x.narrowed(where.top + 2)
    # 1
    steps = where.octaves - 1
    power = root_power = None
    if steps:
        bits = below(value, [1 << (where.low + OCTAVE_BITS * k) for k in range(1, where.octaves)])
        weights = np.array([_steps(64, steps), _steps(8, steps)], np.int64)
        both = [weighted(bits, row).shift(1) for row in weights]
        power, root_power = remask(both[0]), remask(both[1])
    # 2
    excess = where.top - OCTAVE_BITS - UNIT_BITS
    scaled = x.shares() if power is None else multiply(x, power)
    unit = truncate(scaled, excess) if excess > 0 else remask(scaled.scale(1 << -excess))
    whole, shift = folded(scale, where)
    grown = factor.shares() if root_power is None else multiply(factor, root_power)
    grown = grown.scale(whole)
    moved = truncate(grown, shift) if shift else remask(grown)
    # 3, 4
    return multiply(moved, _root_of_unit(unit))


def _steps(base: int, count: int) -> list[int]:
    """What bit k = 1 … count, [x < 2^(low + 6k)], adds to 1 to make base^(number of ones)."""
    return [base ** (count + 1 - k) - base ** (count - k) for k in range(1, count + 1)]


def folded(scale: Fraction, where: RootRange) -> tuple[int, int]:
    """(m, s): by m the factor is multiplied, and s bits are rounded off, before its product with
    the root. s leaves room for a result of FACTOR_BITS bits. RangeError for a scale that does not
    fit."""
    scale = scale / 8 ** (where.octaves - 1) / Fraction(2) ** (where.low // 2)
    if scale >= 1 << MANTISSA_BITS - 1:
        return round(scale), 0
    whole, shift = mantissa(scale, MANTISSA_BITS)
    over = shift - (HEADROOM_BITS - 1 - FACTOR_BITS - ROOT_POWER_BITS)
    if over > MANTISSA_BITS - MIN_MANTISSA_BITS or not whole:
        raise RangeError(f"a factor of about 2^-{shift} is too small for this scale")
    if over > 0:
        whole, shift = round(Fraction(whole, 1 << over)), shift - over
    return whole, shift


def _root_of_unit(v: Masked) -> Masked:
    """1 / sqrt(v) at scale 2^40 for 1 <= v <= 64 at scale 2^10. 4 rounds."""
    width = UNIT_BITS + OCTAVE_BITS + 1
    v = v.narrowed(width) if v.early is None else replace(v, early=replace(v.early, bits=width))
    bits = below(v, ROOT.knots[1:-1])
    square = remask(multiply(v, v))
    table = _table()
    steps = np.ascontiguousarray(-np.diff(table, axis=0).T)
    constant, linear, quadratic = (
        weighted(bits, step).shift(int(base)) for step, base in zip(steps, table[-1], strict=True)
    )
    return remask(multiply(remask(linear), v) + multiply(remask(quadratic), square) + constant)


@cache
def _table() -> Words:
    """Coefficients [pieces, 3] of 1, v and v²: at scales 2^40, 2^30 and 2^20.

    The rounding error of the last is moved into the others, by the best approximation on the piece.
    """
    rows = []
    knots = [Fraction(knot, 1 << KNOT_BITS) for knot in ROOT.knots]
    for piece, left, right in zip(ROOT.pieces, knots, knots[1:], strict=False):
        a, b, c = (Fraction(value, 1 << TABLE_BITS) for value in piece)
        square = round(c * (1 << ROOT_BITS - 2 * UNIT_BITS))
        lost = c - Fraction(square, 1 << ROOT_BITS - 2 * UNIT_BITS)
        b += lost * (left + right)
        a -= lost * (left * left + 6 * left * right + right * right) / 8
        rows.append([round(a * (1 << ROOT_BITS)), round(b * (1 << ROOT_BITS - UNIT_BITS)), square])
    return np.array(rows, np.int64)
