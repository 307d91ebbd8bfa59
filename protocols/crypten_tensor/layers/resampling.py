"""Linear interpolation between the points of a feature map; over two axes it is bilinear.

x: [channels, rows, *sizes]. An output is the sum of two neighbours along each axis, by public
weights: no rounds and nothing opened, but for the truncation that whoever needs the result asks
for. Where all weights are multiples of a power of two (factors 2, 4, 8, … without aligned corners)
they are exact, and the truncation is short. Elsewhere they are rounded to 2^-f, an output's weights
still adding up to 1, so that a constant stays what it is: within 2^-f of the largest neighbour for
each weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Shape, Words


@dataclass(frozen=True, eq=False)
class Interpolation:
    """One map. taps: for each neighbour its place along each axis, and its weights, int64[*outputs]
    at scale 2^bits."""

    sizes: Shape
    outputs: Shape
    bits: int
    taps: list[tuple[tuple[Words, ...], Words]]

    def forward(self, words: Words) -> Words:
        """int64[..., *sizes] to int64[..., *outputs], at a scale 2^bits as large."""
        found = np.zeros((*words.shape[:2], *self.outputs), np.int64)
        for places, weights in self.taps:
            where: Any = (..., *np.ix_(*places))
            found += words[where] * weights
        return found

    def backward(self, words: Words) -> Words:
        """The adjoint of `forward`."""
        found = np.zeros((*words.shape[:2], *self.sizes), np.int64)
        for places, weights in self.taps:
            part = words * weights
            for axis, (where, size) in enumerate(zip(places, self.sizes, strict=True), 2):
                part = _added(part, axis, where, size)
            found += part
        return found


def _added(words: Words, axis: int, where: Words, size: int) -> Words:
    """Element k along an axis added to element where[k] of `size`."""
    shape = (*words.shape[:axis], size, *words.shape[axis + 1 :])
    found = np.zeros(shape, np.int64)
    to, given = np.moveaxis(found, axis, 0), np.moveaxis(words, axis, 0)
    for place, target in enumerate(where.tolist()):
        to[target] += given[place]
    return found


def interpolation(sizes: Shape, outputs: Shape, align: bool, fraction_bits: int) -> Interpolation:
    """From `sizes` to `outputs`, as torch.nn.functional.interpolate(size=outputs)."""
    axes = [_neighbours(size, count, align) for size, count in zip(sizes, outputs, strict=True)]
    whole = 1
    for _, _, _, denominator in axes:
        whole *= denominator
    places, parts = [], []
    for sides in product((0, 1), repeat=len(axes)):
        weights: Any = np.ones((), np.int64)
        for side, (_, _, upper, denominator) in zip(sides, axes, strict=True):
            weights = np.multiply.outer(weights, upper if side else denominator - upper)
        ends = (axis[:2] for axis in axes)
        places.append(tuple(pair[side] for side, pair in zip(sides, ends, strict=True)))
        parts.append(weights)
    common = gcd(whole, *(int(np.gcd.reduce(part, axis=None)) for part in parts))
    whole, parts = whole // common, [part // common for part in parts]
    bits = whole.bit_length() - 1
    if whole != 1 << bits or bits > fraction_bits:
        bits = fraction_bits
        rounded = [((part << (bits + 1)) + whole) // (2 * whole) for part in parts]
        # The largest weight takes what rounding leaves.
        most, rest = np.argmax(parts, axis=0), (1 << bits) - sum(rounded)
        parts = [part + rest * (most == number) for number, part in enumerate(rounded)]
    return Interpolation(sizes, outputs, bits, list(zip(places, parts, strict=True)))


def _neighbours(size: int, count: int, align: bool) -> tuple[Words, Words, Words, int]:
    """The lower and the upper neighbour of each output along an axis, and the upper one's weight
    over a common denominator."""
    at = np.arange(count, dtype=np.int64)
    if align:
        denominator = max(count - 1, 1)
        source = at * (size - 1) if count > 1 else at * 0
    else:
        denominator = 2 * count
        source = np.maximum((2 * at + 1) * size - count, 0)
    lower = np.minimum(source // denominator, size - 1)
    return lower, np.minimum(lower + 1, size - 1), source - lower * denominator, denominator


class Resampled(Function):
    """x between its points, on a grid of `outputs`."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, outputs: Shape, align: bool) -> MaskedTensor:
        source = x._plain_factor()._in_full()
        made = interpolation(tuple(x.shape[2:]), outputs, align, source.fraction_bits)
        ctx.save_multiple_for_backward((tuple(x.shape), made))
        shape = (*x.shape[:2], *outputs)
        return source.with_value(
            source.masked().linear(shape, made.forward), source.bits + made.bits
        )

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, made = ctx.saved_tensors
        words = grad.masked().linear(shape, made.backward)
        return grad.with_value(words, grad.bits + made.bits)


register("resampled", Resampled)
