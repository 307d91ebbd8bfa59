"""Convolutions over masked feature maps: columns once, then ring products.

x: [channels, rows, *sizes] (channels first, one or two spatial axes). The columns of x are made
once, for the product and for the weight's gradient. Products stay summands, so that a convolution
costs one truncation, as a matrix product does: no rounds of its own. Error: as of a matrix product,
half a unit of 2^-f for each rounded factor and one for the truncation.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from protocols.arrays import Words
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.layers.window import Window, columns, from_columns
from protocols.crypten_tensor.per_row import RowGradient
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring import products as ring
from protocols.shares.arithmetic import bilinear
from protocols.shares.masked import Additive, Masked

SMALL = 1 << 15
"""Batched products of at most this many multiply-adds each go through NumPy, all at once."""


def batched_products(pairs: ring.Pairs, negative: bool = False) -> Words:
    """Σ x[b, m, k] @ y[b, k, n] modulo 2^64 over pairs, or its negative."""
    (count, m, k), n = pairs[0][0].shape, pairs[0][1].shape[2]
    if count > 1 and m * k * n <= SMALL:
        return _small_products(pairs, negative)
    out = np.empty((count, m, n), np.int64)
    for index in range(count):
        one = [(x[index], y[index]) for x, y in pairs]
        out[index] = ring.sum_of_products(one, negative)
    return out


_small_products = ring.summed(np.matmul)


def batched(name: str, x: Masked, y: Masked) -> Additive:
    """Summands of x[b, m, k] @ y[b, k, n]. No communication."""
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[1]:
        raise ValueError(f"{name}: shapes {x.shape} and {y.shape} do not fit")
    return bilinear(name, batched_products, x, y, (x.shape[0], x.shape[1], y.shape[2]))


class Convolution(Function):
    """y = x ⋆ weight + bias for weight[out, channels / groups, *kernel], bias[out]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: MaskedTensor,
        weight: MaskedTensor,
        bias: MaskedTensor | None,
        window: Window,
        groups: int,
    ) -> MaskedTensor:
        channels, rows, *sizes = x.shape
        outputs = window.outputs(tuple(sizes))
        taps = channels // groups * prod(window.kernel)
        w = weight.masked().reshape(groups, -1, taps)
        total = rows * prod(outputs)
        cols = x.masked().linear(
            (groups, taps, total), lambda words: columns(words, window).reshape(groups, taps, total)
        )
        ctx.save_multiple_for_backward((x, weight, bias is not None, cols, w, window))
        product = batched("conv", w, cols).reshape(-1, rows, *outputs)
        y = MaskedTensor(product, bits=x.bits + weight.bits, factor=x.factor * weight.factor)
        if bias is None:
            return y
        return y.add(bias.reshape(-1, 1, *(1 for _ in sizes)))

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor | RowGradient, ...]:
        x, weight, has_bias, cols, w, window = ctx.saved_tensors
        groups, taps, total = cols.shape
        g = grad.masked().reshape(groups, -1, total)
        to_x = grad
        if x.requires_grad:
            shape = tuple(x.shape)
            back = batched("conv to input", w.transpose(0, 2, 1), g)
            summed = back.linear(
                shape,
                lambda words: from_columns(words.reshape(groups * taps, total), window, shape),
            )
            to_x = _product(summed, grad, weight)
        if weight.keeps_rows:
            return (to_x, *_by_rows(ctx.saved_tensors, grad))
        to_weight = batched("conv to weight", g, cols.transpose(0, 2, 1)).reshape(*weight.shape)
        found = [to_x, _product(to_weight, grad, x)]
        if has_bias:
            found.append(grad.sum([axis for axis in range(grad.dim()) if axis != 0]))
        return tuple(found)


def _by_rows(saved: tuple[Any, ...], grad: MaskedTensor) -> list[RowGradient]:
    """The gradients of each row for weight and bias, formed: a kernel has few elements.

    They are rounded to words here, so that each is within a truncation's bound. 2 rounds.
    """
    x, weight, has_bias, cols, _, _ = saved
    groups, taps, _ = cols.shape
    if groups != 1:
        raise NotImplementedError("gradients by rows: not for convolutions in groups")
    rows, outputs = x.shape[1], weight.shape[0]
    g = grad.masked().reshape(outputs, rows, -1).transpose(1, 0, 2)
    by_row = batched("conv to rows", g, cols.reshape(taps, rows, -1).transpose(1, 2, 0))
    found = [RowGradient(_product(by_row.reshape(rows, -1), grad, x), None)]
    if has_bias:
        sums = g.sum(2).shares().scale(1 << x.bits)
        found.append(RowGradient(_product(sums, grad, x), None))
    return found


def _product(value: Additive, one: MaskedTensor, other: MaskedTensor) -> MaskedTensor:
    return MaskedTensor(value, bits=one.bits + other.bits, factor=one.factor * other.factor)


class BatchedMatmul(Function):
    """x[b, m, k] @ y[b, k, n]: attention's scores and mixtures."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, y: MaskedTensor) -> MaskedTensor:
        ctx.save_multiple_for_backward((x, y))
        return _product(batched("bmm", x.masked(), y.masked()), x, y)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor, MaskedTensor]:
        x, y = ctx.saved_tensors
        g = grad.masked()
        to_x = batched("bmm to left", g, y.masked().transpose(0, 2, 1))
        to_y = batched("bmm to right", x.masked().transpose(0, 2, 1), g)
        return _product(to_x, grad, y), _product(to_y, grad, x)


register("convolve", Convolution)
register("batched_matmul", BatchedMatmul)
