"""Functions of one variable as splines, and softmax from them.

A spline is a piecewise quadratic a + b·x + c·x² whose coefficients are public-integer combinations
of threshold bits, hence local; b and c are masked once and multiplied with x and x². Six rounds,
however many pieces. Knots and coefficients come from `spline_tables` and become integers at the
job's scale here, by rational arithmetic alone; `constants_digest` is what all nodes compare.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np

from protocols.arrays import Words
from protocols.comparison.compare import below, maximum, weighted
from protocols.comparison.tournament import tournament
from protocols.errors import RangeError
from protocols.functions import spline_tables
from protocols.functions.refinement import refined_reciprocal
from protocols.functions.spline_tables import SplineTable
from protocols.ring.rational import HEADROOM_BITS
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import Masked

TABLE_BITS = 44
KNOT_BITS = 10
ALL_PAIRS = 16
"""Up to this many classes the maximum compares all pairs at once."""
MAX_CLASSES = 1024
"""The sum of the exponentials stays within the reciprocal's table."""
TABLES = (
    *("SIGMOID", "TANH", "EXP", "RECIPROCAL", "RSQRT", "ROOT", "LOG", "SOFTPLUS"),
    *("SMOOTH_RELU", "GELU", "SILU", "ELU"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Spline:
    """A table at a job's scale f.

    knots: integers at scale 2^f, ascending. base: (a, b, c) above the last knot. steps:
    int64[3, knots], what a bit [x < knot] adds to a, b and c. a has scale 2^(2f), b and c 2^f.
    """

    knots: tuple[int, ...]
    base: tuple[int, int, int]
    steps: Words


@cache
def spline_at(name: str, fraction_bits: int, upper: int | None = None) -> Spline:
    """Table `name` of `spline_tables` at scale 2^fraction_bits; cut at `upper` if given.

    What rounding c to 2^-f loses moves into b and a, and what rounding b loses into a, by the best
    approximation on the piece: the error stays within the table's bound.
    """
    table: SplineTable = getattr(spline_tables, name)
    one = 1 << fraction_bits
    below_all = round(Fraction(table.below, 1 << TABLE_BITS) * one * one)
    above_all = round(Fraction(table.above, 1 << TABLE_BITS) * one * one)
    knots = [Fraction(knot, 1 << KNOT_BITS) for knot in table.knots]
    regions = [(below_all, 0, 0)]
    for piece, left, right in zip(table.pieces, knots, knots[1:], strict=False):
        regions.append(_rounded(piece, left, right, one))
    regions.append((above_all, round(Fraction(table.slope, 1 << TABLE_BITS) * one), 0))
    if upper is not None:
        knots = [knot for knot in knots if knot < upper]
        regions = regions[: len(knots) + 1]
    steps = np.diff(np.array(regions, np.int64), axis=0).T
    return Spline(
        tuple(round(knot * one) for knot in knots), regions[-1], np.ascontiguousarray(-steps)
    )


def _rounded(
    piece: tuple[int, int, int], left: Fraction, right: Fraction, one: int
) -> tuple[int, int, int]:
    a, b, c = (Fraction(value, 1 << TABLE_BITS) for value in piece)
    c_word = round(c * one)
    lost = c - Fraction(c_word, one)
    b += lost * (left + right)
    a -= lost * (left * left + 6 * left * right + right * right) / 8
    b_word = round(b * one)
    a += (b - Fraction(b_word, one)) * (left + right) / 2
    return round(a * one * one), b_word, c_word


def evaluate(name: str, x: Masked, fraction_bits: int, upper: int | None = None) -> Masked:
    """The function `name` of x at scale 2^fraction_bits, |x| < 2^(31 - fraction_bits / 2).

    6 rounds: 3 for the bits (the first together with the last of a truncation), 1 for the
    coefficients, 2 for the truncation. Error: the table's bound plus three units of 2^-f, and what
    rounding the slopes costs: up to |x| units where the pieces are wide. Raises RangeError where
    squares of values between the knots do not fit.
    """
    spline = spline_at(name, fraction_bits, upper)
    if max(map(abs, spline.knots)) > 1 << (HEADROOM_BITS // 2):
        raise RangeError(
            f"{name}: squares up to its last knot do not fit with fraction_bits = "
            f"{fraction_bits}; use fewer, or a lower upper limit"
        )
    # |x − knot| < 2^(63 − fraction_bits) with room to spare.
    bits = below(x if x.early else x.narrowed(64 - fraction_bits), spline.knots)
    square = truncate(multiply(x, x), fraction_bits)
    base = np.array(spline.base, np.int64).reshape(3, *([1] * len(x.shape)))
    sums = weighted(bits, spline.steps).shift(base)
    slopes = remask(sums.select(slice(1, 3)))
    total = multiply(slopes.select(0), x) + multiply(slopes.select(1), square) + sums.select(0)
    return truncate(total, fraction_bits)


def sigmoid(x: Masked, fraction_bits: int) -> Masked:
    """1 / (1 + exp(−x)) within 2^-14; exactly 0 below −10 and 1 from 10 on."""
    return evaluate("SIGMOID", x, fraction_bits)


def tanh(x: Masked, fraction_bits: int) -> Masked:
    """tanh(x) within 2^-14; exactly −1 below −5.25 and 1 from 5.25 on."""
    return evaluate("TANH", x, fraction_bits)


def exp(x: Masked, fraction_bits: int) -> Masked:
    """exp(x) for x <= 0 within 2^-14; exactly 0 below −11 and 1 from 0 on."""
    return evaluate("EXP", x, fraction_bits)


def reciprocal(x: Masked, fraction_bits: int, upper: int = 1024) -> Masked:
    """1 / x for 1 <= x <= upper <= 1024; 1 below 1.

    Within 2^-13 for upper <= 64 and at least 18 fraction bits; 8·10^-4 with 14.
    """
    return evaluate("RECIPROCAL", x, fraction_bits, upper)


def rsqrt(x: Masked, fraction_bits: int, upper: int = 1024) -> Masked:
    """1 / sqrt(x) for 1/4 <= x <= upper <= 1024; 2 below 1/4.

    Above `upper` the result has no meaning. Nobody sees x, so there is no error: the caller must
    guarantee the bound (`inverse_root` accepts x of any magnitude). Within 2^-11 with at least 18
    fraction bits; 2·10^-3 with 14.
    """
    return evaluate("RSQRT", x, fraction_bits, upper)


def divide(a: Masked, b: Masked, fraction_bits: int) -> Masked:
    """a / b for 2^-9 <= b < 2^10, |a| <= 2^10 and |a / b| <= 2^10; 0 where b is below 2^-9.

    b is brought into [1, 2) by a power of two that stays secret, its reciprocal is refined by two
    Newton steps. Error: about |a / b| · 2^-16 and a few units of 2^-f. Some twenty rounds: meant
    for the few quotients of a metric.
    """
    f = fraction_bits
    # Powers 2^-e for 2^e <= b < 2^(e+1), at scale 2^9: [b < 2^e] takes the larger one.
    exponents = range(-9, 10)
    powers = [0, *(1 << (9 - e) for e in exponents)]
    steps = np.array([powers[k] - powers[k + 1] for k in range(len(exponents))], np.int64)
    if b.early is not None and b.early.bits < f + max(exponents) + 2:
        b = replace(b, early=None)  # a truncation by many bits leaves too few for the thresholds
    bits = below(b, [1 << (f + e) for e in exponents])
    power = remask(weighted(bits, steps).shift(powers[-1]))
    unit = truncate(multiply(b, power), 9)
    r = evaluate("RECIPROCAL", unit, f, upper=2)
    for _ in range(2):
        r = refined_reciprocal(r, unit, f, truncate)
    return truncate(multiply(truncate(multiply(a, power), 9), r), f)


def softmax(x: Masked, fraction_bits: int) -> Masked:
    """Softmax along the last axis for up to 1024 classes, each output within 2^-12.

    The maximum, exp, reciprocal of the sum and one product. Above 16 classes the maximum is that of
    a tournament: fewer comparisons, more rounds.
    """
    classes = x.shape[-1]
    if classes > MAX_CLASSES:
        raise ValueError(f"softmax: at most {MAX_CLASSES} classes, not {classes}")
    if classes <= ALL_PAIRS:
        top, _ = maximum(x)
    else:
        best, _ = tournament(x.transpose(len(x.shape) - 1, *range(len(x.shape) - 1)))
        top = best.reshape(*x.shape[:-1], 1)
    exponentials = exp(x - top, fraction_bits)
    total = exponentials.sum(axis=-1, keepdims=True)
    scale = reciprocal(total, fraction_bits, upper=classes)
    return truncate(multiply(exponentials, scale), fraction_bits)


def constants_digest(fraction_bits: int) -> bytes:
    """SHA-256 of every spline constant at this scale: all nodes of a job must agree on it."""
    tables = [
        (name, spline.knots, spline.base, spline.steps.tolist())
        for name in TABLES
        for spline in [spline_at(name, fraction_bits)]
    ]
    return hashlib.sha256(json.dumps(tables).encode()).digest()
