"""Joining, slicing, scaling, embedding and dropping over masked tensors.

* join, part, scaled, shifted: concatenation, slices and public numbers, local.
* in_words: the same numbers for whoever reads the words alone, local.
* embed: rows of a table for private whole numbers. [x = k] for all k < n is a difference of
  threshold bits that have most of their comparison in common: 3 rounds and about n · 6 bits opened
  for each number, 1 round for the one-hot rows, and a matrix product. Exact. A number outside
  0 … n − 1 gives zeros, or the nearest end: the owner's data check keeps them out.
* drop_secretly: dropout by a mask that nobody knows, drawn by `coins`: neither any N − 1
  evaluators nor the dealer learn which elements are dropped. The mask's rounds go along with
  earlier ones; then 1 round forward and 1 backward, 8 bytes opened and 8 dealt for each element and
  direction, and what a coin costs.
* drop: dropout by a public mask, free. All nodes know which elements are dropped; their values
  remain secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from protocols.arrays import Words
from protocols.comparison.coins import coins, nearest
from protocols.comparison.compare import below
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares.arithmetic import matmul, remask, select
from protocols.shares.masked import Additive, Masked, MaskedBit, concatenate


class Join(Function):
    """Tensors one after the other along `dim`."""

    @staticmethod
    def forward(
        ctx: Any, first: MaskedTensor, others: Sequence[MaskedTensor], dim: int
    ) -> MaskedTensor:
        tensors = [first, *others]
        ctx.save_multiple_for_backward(([t.shape[dim] for t in tensors], dim))
        values = []
        for tensor in tensors:
            plain = tensor.plain_factor().in_full()
            values.append(plain.masked())
        return first.with_value(concatenate(values, dim), first.fraction_bits, Fraction(1))

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor, ...]:
        sizes, dim = ctx.saved_tensors
        found, start = [], 0
        for size in sizes:
            found.append(_slice(grad, dim % grad.dim(), start, start + size))
            start += size
        return tuple(found)


def _slice(x: MaskedTensor, dim: int, start: int, stop: int) -> MaskedTensor:
    index = (*[slice(None)] * dim, slice(start, stop))
    return x.linear_map(lambda value: value.select(index))


class Part(Function):
    """Elements by a public index of whole numbers and slices."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, index: Any) -> MaskedTensor:
        ctx.save_multiple_for_backward((tuple(x.shape), index))
        return x.linear_map(lambda value: value.select(index))

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, index = ctx.saved_tensors

        def placed(words: Words) -> Words:
            out = np.zeros(shape, np.int64)
            out[index] = words
            return out

        return grad.linear_map(lambda value: value.linear(shape, placed))


class Embed(Function):
    """table[x] for private whole numbers x of any shape and table[n, width]."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, table: MaskedTensor) -> MaskedTensor:
        hot = remask(one_hot(x, table.shape[0]))
        ctx.mark_non_differentiable(x)
        ctx.save_multiple_for_backward((hot, table.factor, tuple(table.shape)))
        rows = matmul(hot, table.masked()).reshape(*x.shape, table.shape[1])
        return table.with_value(rows)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        hot, _, shape = ctx.saved_tensors
        g = grad.masked().reshape(-1, shape[1])
        return grad.with_value(matmul(hot.transpose(1, 0), g))


def one_hot(x: MaskedTensor, count: int) -> Additive:
    """Summands of the bits [x = k] for 0 <= k < count, as words 0 and 1: [elements, count]."""
    source = x.plain_factor().in_full()
    value: Masked = source.masked().reshape(-1)
    half = 1 << (source.fraction_bits - 1)
    thresholds = [(2 * k + 1) * half for k in range(count - 1)]
    if not thresholds:
        shares = value.scale(0).shares()
        return shares.shift(1).reshape(-1, 1)
    bits = below(value, thresholds).shares().transpose(1, 0)

    def differences(words: Words) -> Words:
        return np.diff(words, axis=1, prepend=0, append=0)

    # [x = k] = [x < k + 1/2] − [x < k − 1/2]; the last one is 1 − [x < count − 3/2].
    last = np.zeros(count, np.int64)
    last[-1] = 1
    return bits.linear((value.shape[0], count), differences).shift(last)


class Drop(Function):
    """x · mask / kept for a public mask of 0 and 1 and the public share that is kept."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, mask: Words, kept: Fraction) -> MaskedTensor:
        ctx.save_multiple_for_backward((mask, kept))
        return x.with_value(x.masked().scale(mask), factor=x.factor / kept)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        mask, kept = ctx.saved_tensors
        return grad.with_value(grad.masked().scale(mask), factor=grad.factor / kept)


class DropSecretly(Function):
    """x · b / share for fresh coins b with probability `share`, which nobody knows.

    The same coins select the gradients. share: the kept part, as rounded by `coins.nearest`, so
    that the mean is that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, kept: Fraction) -> MaskedTensor:
        value, share = x.rounded(), nearest(kept)
        bits = coins(value.role, value.shape, kept)
        ctx.save_multiple_for_backward((bits, share))
        return _chosen(x, bits, share)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        return _chosen(grad, *ctx.saved_tensors)


def _chosen(x: MaskedTensor, bits: MaskedBit, share: Fraction) -> MaskedTensor:
    words = select(bits, x.rounded())
    return x.with_value(words, min(x.bits, x.fraction_bits), x.factor / share)


class Scale(Function):
    """x times a public number, exactly: the number is kept separate from the words."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, factor: Fraction) -> MaskedTensor:
        ctx.save_multiple_for_backward((factor,))
        return x.mul(factor)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (factor,) = ctx.saved_tensors
        return grad.mul(factor)


class InWords(Function):
    """x without a public number beside its words, and with all fractional bits."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor) -> MaskedTensor:
        return x.plain_factor().in_full().clone()

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        return grad.clone()


class Shift(Function):
    """x plus a public number."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, summand: Fraction) -> MaskedTensor:
        return x.add(summand)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        return grad.clone()


register("scaled", Scale)
register("shifted", Shift)
register("in_words", InWords)
register("join", Join)
register("part", Part)
register("embed", Embed)
register("drop", Drop)
register("drop_secretly", DropSecretly)
