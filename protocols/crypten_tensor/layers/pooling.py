"""Pools over masked feature maps: maxima by a tournament, means as public factors.

x: [channels, rows, *sizes]. A maximum of k elements takes k − 1 comparisons in ceil(log2 k)
rounds of the tournament: 4 or 5 rounds, 28 or 32 bits and 8 bytes opened for each comparison
(after a truncation by 20 bits). All pairs at once would take fewer rounds and k/2 times as many
comparisons. The result is exact; of equal elements the later one of a pair wins, and the gradient
goes there alone, as it goes to one of them in torch. A mean is a sum and a public factor: exact,
and no rounds.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from protocols.arrays import Shape, Words
from protocols.comparison.tournament import route, tournament
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.layers.window import (
    Window,
    candidates,
    from_candidates,
    spread_sums,
    window_sums,
)
from protocols.crypten_tensor.tensor import MaskedTensor


class MaxPool(Function):
    """The maximum of every window; padding never wins."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, window: Window) -> MaskedTensor:
        source = x.positive_factor()
        value = source.masked()
        shape = (prod(window.kernel), *x.shape[:2], *window.outputs(tuple(x.shape[2:])))
        top, levels = tournament(value.moved(shape, lambda words: candidates(words, window)))
        ctx.save_multiple_for_backward((tuple(x.shape), window, levels))
        return source.with_value(top)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, window, levels = ctx.saved_tensors
        routed = route(grad.masked(), levels, prod(window.kernel))
        back = routed.linear(shape, lambda words: from_candidates(words, window, shape))
        return grad.with_value(back)


class AveragePool(Function):
    """The mean of every window. divisor: what its sum is divided by, None for its own taps."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, window: Window, divisor: int | None) -> MaskedTensor:
        sizes = tuple(x.shape[2:])
        target = (*x.shape[:2], *window.outputs(sizes))
        divisors: Any = divisor
        if divisors is None:
            divisors = window.inside(sizes)
            if (divisors == divisors.flat[0]).all():
                divisors = divisors.flat[0]
        ctx.save_multiple_for_backward((tuple(x.shape), window, divisors))
        sums = x.linear_map(lambda v: v.linear(target, lambda words: window_sums(words, window)))
        return _divided(sums, divisors)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, window, divisors = ctx.saved_tensors
        parts = _divided(grad, divisors)
        return parts.linear_map(
            lambda v: v.linear(shape, lambda words: spread_sums(words, window, shape))
        )


class AdaptiveAveragePool(Function):
    """Means over sizes that come as near as possible to `outputs` for each axis, as in torch."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, outputs: Shape) -> MaskedTensor:
        matrices = [_bins(size, count) for size, count in zip(x.shape[2:], outputs, strict=True)]
        divisors: Any = np.ones((), np.int64)
        for matrix in matrices:
            divisors = np.multiply.outer(divisors, matrix.sum(axis=1))
        if (divisors == divisors.flat[0]).all():
            divisors = divisors.flat[0]
        ctx.save_multiple_for_backward((tuple(x.shape), matrices, divisors))
        target = (*x.shape[:2], *outputs)
        sums = x.linear_map(lambda v: v.linear(target, lambda words: _along(words, matrices)))
        return _divided(sums, divisors)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, matrices, divisors = ctx.saved_tensors
        turned = [matrix.T for matrix in matrices]
        parts = _divided(grad, divisors)
        return parts.linear_map(lambda v: v.linear(shape, lambda words: _along(words, turned)))


def _divided(x: MaskedTensor, divisors: Any) -> MaskedTensor:
    if np.ndim(divisors) == 0:
        return x.mul(Fraction(1, int(divisors)))
    return x.mul(1.0 / divisors)


def _bins(size: int, count: int) -> Words:
    """int64[count, size] of 0 and 1: which elements each output averages."""
    where = np.arange(count)
    starts, ends = where * size // count, -(-(where + 1) * size // count)
    at = np.arange(size)
    return ((at >= starts[:, None]) & (at < ends[:, None])).astype(np.int64)


def _along(words: Words, matrices: list[Words]) -> Words:
    """words[channels, rows, *sizes] with each matrix applied to its axis."""
    for axis, matrix in enumerate(matrices, 2):
        words = np.moveaxis(np.moveaxis(words, axis, -1) @ matrix.T, -1, axis)
    return np.ascontiguousarray(words)


register("max_pool", MaxPool)
register("average_pool", AveragePool)
register("adaptive_average_pool", AdaptiveAveragePool)
