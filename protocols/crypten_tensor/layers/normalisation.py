"""Normalisation over masked tensors: batch, layer, group and instance norm from one function.

`standardize` gives every row of x[rows, n] mean 0 and variance 1. The caller decides what a row is,
and which scale and shift follow.

1. mean = Σ x / n. 2 rounds.
2. z = Σ (x − mean)² at the full scale 2^(2f) of a product, or somewhat below it if a row is longer
   than a chunk (`normalisation_plan`), so that small variances keep their digits. 1 round, 2 if a
   row has several chunks.
3. 1 / sqrt(z / n + eps): `inverse_root`, about 18 rounds on as many elements as there are rows.
4. One product with x − mean. 2 rounds.

Only step 4 is as large as x. Preconditions, stated bounds of the job: |x| < 2^6 (activation limit),
2f <= 48. Error of an output y: y · 2^-17 for the root, and 2^(1-f) / sqrt(variance + eps) for the
roundings of x and of the mean. Works for any n and any variance, even 0: with n = 2, where y is ±1
except for eps, the small remaining gradient is as exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from protocols.arrays import Words
from protocols.comparison.compare import below, weighted
from protocols.crypten_tensor.layers.normalisation_plan import (
    LIMIT_BITS,
    MANTISSA_BITS,
    MEAN_MANTISSA_BITS,
    SUM_BITS,
    VALUE_BITS,
    chunk_of,
    lost_bits,
    mantissa_bits,
)
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.refinement import refined_root
from protocols.functions.splines import evaluate
from protocols.ring import products
from protocols.ring.rational import mantissa
from protocols.ring.rational import root as root_of
from protocols.shares.arithmetic import bilinear, multiply, remask, truncate
from protocols.shares.masked import Additive, Masked, public


def inverse_root(z: Masked, one: Fraction, least: int, most: int, fraction_bits: int) -> Masked:
    """1 / sqrt(v) at scale 2^f, where z holds v as words of `one` for 1.

    least, most: public bounds, least <= z < most <= 2^61; v > 2^-20. z is brought into [1, 4) by a
    power of four that stays secret; the spline of the root on it is within 2^-12 and one Newton
    step squares that. Within 2^-17 of it and two units of 2^-f. About 18 rounds, few elements.
    """
    f = fraction_bits
    low, high = ((bound.bit_length() - 1) // 2 for bound in (least, most - 1))
    powers = range(low, high + 1)
    # [z < 4^k] moves from 4^(high − k) to 4^(high − k + 1); likewise for 2^(high − k).
    fours, twos = ([base ** (high - k) for k in powers] for base in (4, 2))
    if len(powers) > 1:
        bits = below(z, [4**k for k in powers[1:]])
        four, two = (remask(weighted(bits, _falls(some)).shift(some[-1])) for some in (fours, twos))
        scaled = multiply(z, four)
    else:
        scaled, two = z.shares(), public(z.role, np.ones(z.shape, np.int64))
    excess = 2 * high - f
    unit = truncate(scaled, excess) if excess > 0 else remask(scaled.scale(1 << -excess))
    root = evaluate("RSQRT", unit, f, upper=4)
    root = refined_root(root, unit, f, truncate)
    whole, shift = mantissa(root_of(one) / (1 << high), MANTISSA_BITS)
    return truncate(multiply(root, two).scale(whole), shift)


def _falls(values: list[int]) -> Words:
    return np.array([a - b for a, b in pairwise(values)], np.int64)


def over(
    total: Additive,
    count: int,
    fraction_bits: int,
    chunk: int = 1,
    limit_bits: int = LIMIT_BITS,
    most_bits: int = MANTISSA_BITS,
) -> Masked:
    """total · chunk / count, for sums of at most count / chunk elements below 2^limit_bits.

    2 rounds.
    """
    bits = mantissa_bits(count // chunk, fraction_bits, limit_bits, most_bits)
    whole, shift = mantissa(Fraction(chunk, count), bits)
    return truncate(total.scale(whole), shift) if shift else remask(total.scale(whole))


def _mean(x: Masked, fraction_bits: int) -> Masked:
    """The mean of each row of x[rows, n], |x| < 2^6, to a unit. 2 rounds, 4 for long rows."""
    count, exact = x.shape[1], (VALUE_BITS, MEAN_MANTISSA_BITS)
    lost = 0
    if count & (count - 1):
        lost = MEAN_MANTISSA_BITS - mantissa_bits(count, fraction_bits, *exact)
    total = x.sum(axis=1).shares()
    if lost:
        total = truncate(total, lost).shares()
    return over(total, count, fraction_bits, 1 << lost, *exact)


def _row_products(x: Words, y: Words) -> Words:
    """Σ over the last axis of x · y."""
    return np.einsum("...i,...i->...", x, y)


def inner(x: Masked, y: Masked) -> Additive:
    """Summands of Σ over the last axis of x · y. No communication."""
    return bilinear("inner", products.summed(_row_products), x, y, x.shape[:-1])


@dataclass(frozen=True, slots=True)
class Squares:
    """Σ x² of each row, int64[rows], as words of `one` for a mean square of 1."""

    total: Masked
    count: int
    lost_bits: int
    """How many bits the sum is below the scale 2^(2f) of a product."""
    fraction_bits: int

    @property
    def one(self) -> int:
        return self.count << (2 * self.fraction_bits - self.lost_bits)

    def mean(self) -> Masked:
        """The mean square at scale 2^f. 4 rounds."""
        chunk = min(chunk_of(self.fraction_bits), 1 << (self.count.bit_length() - 1))
        lowered = self.fraction_bits - self.lost_bits + chunk.bit_length() - 1
        total = truncate(self.total.shares(), lowered).shares()
        return over(total, self.count, self.fraction_bits, chunk, 2 * VALUE_BITS)


def squares(centred: Masked, fraction_bits: int) -> Squares:
    """Σ x² over the last axis of x[rows, n], with all bits that fit. 1 or 2 rounds."""
    rows, count = centred.shape
    chunk = chunk_of(fraction_bits)
    if count <= chunk:
        return Squares(remask(inner(centred, centred)), count, 0, fraction_bits)
    chunks = -(-count // chunk)

    def split(words: Words) -> Words:
        padded = np.zeros((rows, chunks * chunk), np.int64)
        padded[:, :count] = words
        return padded.reshape(rows, chunks, chunk)

    parts = centred.linear((rows, chunks, chunk), split)
    lost = lost_bits(count, fraction_bits)
    total = truncate(inner(parts, parts), lost).sum(axis=1)
    return Squares(total, count, lost, fraction_bits)


def _root_of_variance(found: Squares, eps: Fraction, more_bits: int = 0) -> Masked:
    """1 / sqrt(mean square + eps) at scale 2^f, for mean squares below 2^(12 + more_bits)."""
    floor = max(round(eps * found.one), 1)
    most = found.one << (2 * VALUE_BITS + more_bits)
    return inverse_root(
        found.total.shift(floor), Fraction(found.one), floor, most, found.fraction_bits
    )


class Standardize(Function):
    """(x − mean) / sqrt(variance + eps) for each row of x[rows, n].

    kept: mean and variance [rows] as well; they have no gradient. Backward:
    r · (g − mean(g) − y · mean(g · y)).
    """

    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, eps: Fraction, kept: bool = False
    ) -> MaskedTensor | tuple[MaskedTensor, MaskedTensor, MaskedTensor]:
        source = x.plain_factor().in_full()
        value, f = source.masked(), source.fraction_bits
        mean = _mean(value, f)
        centred = value - mean.reshape(-1, 1)
        spread = squares(centred, f)
        root = _root_of_variance(spread, eps).reshape(-1, 1)
        y = source.with_value(truncate(multiply(centred, root), f))
        ctx.save_multiple_for_backward((y.masked(), root))
        if not kept:
            return y
        statistics = source.with_value(mean), source.with_value(spread.mean())
        ctx.mark_non_differentiable(list(statistics))
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        y, root = ctx.saved_tensors
        g, f = grad.masked(), grad.fraction_bits
        rows, count = y.shape
        mean = over(g.sum(axis=1).shares(), count, f).reshape(rows, 1)
        along = over(truncate(inner(g, y), f).shares(), count, f).reshape(rows, 1)
        rest = (g - mean).scale(1 << f).shares() - multiply(y, along)
        return grad.with_value(multiply(truncate(rest, f), root), 2 * f)


class StandardizeBy(Function):
    """(x − mean) / sqrt(variance + eps) for statistics [rows, 1] that are given, as in evaluation.

    Only x gets a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, mean: MaskedTensor, spread: MaskedTensor, eps: Fraction
    ) -> MaskedTensor:
        f = x.fraction_bits
        # With as many more bits as eps needs, because a variance may be as small. It is n / (n − 1)
        # times that of a batch, at most twice.
        more = min(f, SUM_BITS - f - 2 * VALUE_BITS - 1)
        variance = Squares(spread.masked().scale(1 << more), 1, f - more, f)
        root = _root_of_variance(variance, eps, 1)
        factor = x.with_value(root, f, Fraction(1))
        ctx.mark_non_differentiable([mean, spread])
        ctx.save_multiple_for_backward((factor,))
        return x.sub(mean).mul(factor)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (factor,) = ctx.saved_tensors
        return grad.mul(factor)


register("standardize", Standardize)
register("standardize_by", StandardizeBy)
