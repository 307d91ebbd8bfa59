"""Normalisation over masked tensors: batch, layer, group and instance norm from one function.

`standardize` gives every row of x[rows, n] mean 0 and variance 1. What a row is, and which scale
and shift follow, is up to the caller.

1. mean = Σ x / n. 2 rounds.
2. variance = Σ (x − mean)² / n: squares are summed in chunks of at most 512 and truncated there, so
   that |x − mean| < 2^6 fits whatever n. 4 rounds.
3. 1 / sqrt(variance + eps): `inverse_root`, about 17 rounds on as many elements as there are rows.
4. One product with x − mean. 2 rounds.

Only step 4 is as large as x. Preconditions, stated bounds of the job: |x| < 2^6 (activation limit)
and a variance below 2^12. Error of an output y: y · (2^-18 + 2^(1-f) / variance + 2^(2-f) ·
sqrt(variance)) for the roundings of root and variance, and 2^(1-f) / sqrt(variance) for that of the
mean: rows of a spread below 2^-6 are normalised roughly.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from protocols import ring
from protocols.arithmetic import bilinear, multiply, remask, truncate
from protocols.comparison import below, weighted
from protocols.crypten_backend import MaskedTensor
from protocols.functions import evaluate
from protocols.layers import Function, register
from protocols.masked import Additive, Masked
from protocols.rational import mantissa
from protocols.role import Words

CHUNK = 512
LIMIT_BITS = 8
"""Means and variances are divided by n with a mantissa that leaves room for sums of 2^8 an
element."""
MOST_MANTISSA = 20
LEAST_POWER, MOST_POWER = -9, 5
"""inverse_root serves 4^-9 <= v < 4^6."""


def inverse_root(v: Masked, fraction_bits: int) -> Masked:
    """1 / sqrt(v) for 2^-18 <= v < 2^12, within 2^-17 of it and two units of 2^-f.

    v is brought into [1, 4) by a power of four that stays secret; the spline of the root on it is
    within 2^-12 and one Newton step squares that. About 17 rounds, few elements.
    """
    f = fraction_bits
    powers = range(LEAST_POWER, MOST_POWER + 1)
    # [v < 4^e] moves from 4^-e to 4^-(e − 1), at scale 4^MOST_POWER; likewise for 2^-e.
    fours = [4 ** (MOST_POWER - e) for e in powers]
    twos = [2 ** (MOST_POWER - e) for e in powers]
    bits = below(v, [round(Fraction(4) ** e * (1 << f)) for e in powers[1:]])
    four, two = (remask(weighted(bits, _falls(some)).shift(some[-1])) for some in (fours, twos))
    unit = truncate(multiply(v, four), 2 * MOST_POWER)
    root = evaluate("RSQRT", unit, f, upper=4)
    # r (3 − u r²) / 2
    square = truncate(multiply(root, root), f)
    error = -truncate(multiply(unit, square), f).shift(-(3 << f))
    root = truncate(multiply(root, error), f + 1)
    return truncate(multiply(root, two), MOST_POWER)


def _falls(values: list[int]) -> Words:
    return np.array([a - b for a, b in pairwise(values)], np.int64)


def over(total: Additive, count: int, fraction_bits: int, chunk: int = 1) -> Masked:
    """total · chunk / count, for sums of at most count / chunk elements below 2^8. 2 rounds."""
    lanes = max((count // chunk).bit_length(), 1)
    whole, shift = mantissa(
        Fraction(chunk, count), min(MOST_MANTISSA, 61 - fraction_bits - LIMIT_BITS - lanes)
    )
    return truncate(total.scale(whole), shift) if shift else remask(total.scale(whole))


def _row_products(x: Words, y: Words) -> Words:
    """Σ over the last axis of x · y."""
    return np.einsum("...i,...i->...", x, y)


def inner(x: Masked, y: Masked) -> Additive:
    """Summands of Σ over the last axis of x · y. No communication."""
    return bilinear("inner", ring.summed(_row_products), x, y, x.shape[:-1])


def variance(centred: Masked, fraction_bits: int) -> Masked:
    """Σ x² / n over the last axis, |x| < 2^6. 4 rounds."""
    rows, count = centred.shape
    if count <= CHUNK:
        return over(truncate(inner(centred, centred), fraction_bits).shares(), count, fraction_bits)
    chunks = -(-count // CHUNK)

    def split(words: Words) -> Words:
        padded = np.zeros((rows, chunks * CHUNK), np.int64)
        padded[:, :count] = words
        return padded.reshape(rows, chunks, CHUNK)

    parts = centred.linear((rows, chunks, CHUNK), split)
    means = truncate(inner(parts, parts), fraction_bits + CHUNK.bit_length() - 1)
    return over(means.sum(axis=1).shares(), count, fraction_bits, CHUNK)


class Standardize(Function):
    """(x − mean) / sqrt(variance + eps) for each row of x[rows, n], and mean and variance [rows].

    The last two have no gradient. Backward: r · (g − mean(g) − y · mean(g · y)).
    """

    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, eps: Fraction
    ) -> tuple[MaskedTensor, MaskedTensor, MaskedTensor]:
        source = x._plain_factor()._in_full()
        value, f = source.masked(), source.fraction_bits
        rows, count = value.shape
        mean = over(value.sum(axis=1).shares(), count, f)
        centred = value - mean.reshape(rows, 1)
        spread = variance(centred, f)
        root = inverse_root(spread.shift(round(eps * (1 << f))), f).reshape(rows, 1)
        y = source.with_value(truncate(multiply(centred, root), f))
        found = (y, source.with_value(mean), source.with_value(spread))
        ctx.mark_non_differentiable(list(found[1:]))
        ctx.save_multiple_for_backward((y.masked(), root))
        return found

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

    A gradient goes to x alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, mean: MaskedTensor, spread: MaskedTensor, eps: Fraction
    ) -> MaskedTensor:
        f = x.fraction_bits
        root = inverse_root(spread.masked().shift(round(eps * (1 << f))), f)
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
