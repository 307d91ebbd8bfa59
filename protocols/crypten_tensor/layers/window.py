"""Sliding windows over feature maps: the elements in each, and the maps from and to columns.

A feature map is int64[channels, rows, *sizes], channels first: a product with a weight is then
contiguous. Everything here is linear, without constants, and the same for Δ and for λ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from protocols.arrays import Shape, Words


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, stride, padding and dilation for each spatial axis, as in torch.nn.Conv2d.

    round_up: a last window that hangs over the end counts (torch's ceil_mode, for pools).
    """

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    round_up: bool = False

    def outputs(self, sizes: Shape) -> Shape:
        """How many windows fit along each axis. Raises ValueError if none does."""
        found = tuple(self._along(axis, size) for axis, size in enumerate(sizes))
        if any(count < 1 for count in found):
            raise ValueError(f"a window of {self.kernel} does not fit {list(sizes)}")
        return found

    def _along(self, axis: int, size: int) -> int:
        stride, padding = self.stride[axis], self.padding[axis]
        room = size + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        count = (room + (stride - 1 if self.round_up else 0)) // stride + 1
        # As in torch, a window that would start in the padding at the end is omitted.
        if self.round_up and (count - 1) * stride >= size + padding:
            count -= 1
        return count

    def positions(self, axis: int, size: int, count: int) -> Words:
        """int64[kernel, count]: where each tap of each window lies along an axis, or outside it."""
        taps = np.arange(self.kernel[axis]) * self.dilation[axis] - self.padding[axis]
        return taps[:, None] + np.arange(count) * self.stride[axis]

    def taps(self, sizes: Shape) -> list[tuple[Words, ...]]:
        """For each element of the kernel and each axis: its position in each window.

        A tap outside the map moves to the nearest one of its window inside: a maximum does not
        change by seeing an element twice.
        """
        axes = []
        for axis, (size, count) in enumerate(zip(sizes, self.outputs(sizes), strict=True)):
            where = self.positions(axis, size, count)
            inside = (where >= 0) & (where < size)
            if not inside.any(axis=0).all():
                raise ValueError(
                    f"a window of {self.kernel} does not cover any element of {list(sizes)}"
                )
            first, last = inside.argmax(axis=0), len(where) - 1 - inside[::-1].argmax(axis=0)
            tap = np.clip(np.arange(len(where))[:, None], first, last)
            axes.append(np.take_along_axis(where, tap, axis=0))
        return list(product(*axes))

    def inside(self, sizes: Shape) -> Words:
        """int64[*outputs]: how many taps of each window lie inside the map."""
        counts = np.ones((), np.int64)
        for axis, (size, count) in enumerate(zip(sizes, self.outputs(sizes), strict=True)):
            where = self.positions(axis, size, count)
            counts = np.multiply.outer(counts, ((where >= 0) & (where < size)).sum(axis=0))
        return counts


def _padded_sizes(window: Window, sizes: Shape) -> Shape:
    """Sizes with padding in front, and behind as far as the last window reaches."""
    reach = (
        (count - 1) * stride + dilation * (kernel - 1) + 1
        for count, stride, dilation, kernel in zip(
            window.outputs(sizes), window.stride, window.dilation, window.kernel, strict=True
        )
    )
    return tuple(max(r, s + p) for r, s, p in zip(reach, sizes, window.padding, strict=True))


def _inner(window: Window, sizes: Shape) -> Any:
    """The index of the map itself in the padded one."""
    return (..., *(slice(p, p + s) for p, s in zip(window.padding, sizes, strict=True)))


def _taps_of_padded(window: Window, outputs: Shape) -> list[Any]:
    """For each element of the kernel: the index of what it sees of the padded map."""
    axes = [
        [
            slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride)
            for tap in range(kernel)
        ]
        for kernel, dilation, stride, count in zip(
            window.kernel, window.dilation, window.stride, outputs, strict=True
        )
    ]
    return [(..., *tap) for tap in product(*axes)]


def columns(words: Words, window: Window) -> Words:
    """int64[channels · kernel, rows · outputs]: every window as a column; zeros in the padding."""
    channels, rows, *sizes = words.shape
    padded = words
    target = _padded_sizes(window, tuple(sizes))
    if target != tuple(sizes):
        padded = np.zeros((channels, rows, *target), np.int64)
        padded[_inner(window, tuple(sizes))] = words
    outputs = window.outputs(tuple(sizes))
    out = np.empty((channels, prod(window.kernel), rows, *outputs), np.int64)
    for place, tap in enumerate(_taps_of_padded(window, outputs)):
        out[:, place] = padded[tap]
    return out.reshape(channels * prod(window.kernel), -1)


def from_columns(words: Words, window: Window, shape: Shape) -> Words:
    """The adjoint of `columns`: every column added to where its window lies; int64[shape]."""
    channels, rows, *sizes = shape
    outputs = window.outputs(tuple(sizes))
    split = words.reshape(channels, prod(window.kernel), rows, *outputs)
    padded = np.zeros((channels, rows, *_padded_sizes(window, tuple(sizes))), np.int64)
    for place, tap in enumerate(_taps_of_padded(window, outputs)):
        padded[tap] += split[:, place]
    kept: Words = padded[_inner(window, tuple(sizes))]
    return kept


def window_sums(words: Words, window: Window) -> Words:
    """int64[channels, rows, *outputs]: the sum of every window."""
    channels, rows, *sizes = words.shape
    outputs = window.outputs(tuple(sizes))
    split = columns(words, window).reshape(channels, prod(window.kernel), rows, *outputs)
    return split.sum(axis=1)


def spread_sums(words: Words, window: Window, shape: Shape) -> Words:
    """The adjoint of `window_sums`."""
    kernel = prod(window.kernel)
    repeated = np.broadcast_to(words[:, None], (words.shape[0], kernel, *words.shape[1:]))
    return from_columns(repeated, window, shape)


def candidates(words: Words, window: Window) -> Words:
    """int64[kernel, channels, rows, *outputs]: what each element of the kernel sees."""
    return np.stack([words[_grid(tap)] for tap in window.taps(words.shape[2:])])


def from_candidates(words: Words, window: Window, shape: Shape) -> Words:
    """The adjoint of `candidates`."""
    out = np.zeros(shape, np.int64)
    for tap, part in zip(window.taps(shape[2:]), words, strict=True):
        grid = _grid(tap)
        if all(isinstance(axis, slice) for axis in grid[1:]):
            out[grid] += part
        else:
            np.add.at(out, grid, part)
    return out


def _grid(tap: tuple[Words, ...]) -> Any:
    """An index for positions along each axis: slices where all are evenly spaced."""
    slices = []
    for where in tap:
        step = int(where[1] - where[0]) if len(where) > 1 else 1
        if step < 1 or (np.diff(where) != step).any():
            return (..., *np.ix_(*tap))
        slices.append(slice(int(where[0]), int(where[-1]) + 1, step))
    return (..., *slices)
