"""Kernels of the ring Z_2^64: int64 arrays with wrap-around.

Matrix products use one of three methods, all exact modulo 2^64: 8-bit limbs on the processor's tile
unit, if it has one and `calibrate` found it faster; through torch, whose int64 kernel is vectorised
(about 11 G multiply-adds a second and core; NumPy's is not); and where one side is thin, through a
loop that reads the other matrix once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protocols.arrays import Words
from protocols.ring import kernels, tiles

if TYPE_CHECKING:
    import torch

Pairs = Sequence[tuple[Words, Words]]
Bilinear = Callable[[Pairs, bool], Words]
"""Σ B(x, y) over pairs, or with True its negative: a new array. The two products of an evaluator
are one sum, which a matrix product makes in one go."""

THIN = 12
"""Products with a side of at most this length are bound by memory rather than by arithmetic."""
MIN_TILED = 1 << 15
"""Multiply-adds below which rewriting the operands as tiles costs more than it saves."""

_tile_gain = 0.0


def summed(product: Callable[[Words, Words], Words]) -> Bilinear:
    """The sum over pairs for a B that is made pair by pair; B returns an array of its own."""

    def total(pairs: Pairs, negative: bool) -> Words:
        z = np.asarray(product(*pairs[0]))
        for x, y in pairs[1:]:
            z += product(x, y)
        return np.negative(z, out=z) if negative else z

    return total


def sum_of_products(pairs: Pairs, negative: bool = False) -> Words:
    """Σ x @ y modulo 2^64 over pairs of int64[m, k] and int64[k, n], or its negative.

    A new array in row-major order.
    """
    m, n = pairs[0][0].shape[0], pairs[0][1].shape[1]
    if _tiles_pay(m, n, sum(x.shape[1] for x, _ in pairs)):
        return tiles.sum_of_products(pairs, negative)
    return _sum_without_tiles(pairs, negative)


def _product(x: Words, y: Words) -> Words:
    m, n = x.shape[0], y.shape[1]
    if m <= min(n, THIN):
        return _thin(x, y)
    if n <= THIN:
        return np.ascontiguousarray(_thin(y.T, x.T).T)
    import torch  # here: a coordinator, which multiplies nothing, does not load it

    product: Words = torch.matmul(_tensor(x), _tensor(y)).numpy()
    return product


_sum_without_tiles = summed(_product)


def _tiles_pay(m: int, n: int, k: int) -> bool:
    """Tiles are 32 by 32 with 64 steps: a product is made as if it had these sizes."""
    work = m * n * k
    if work < MIN_TILED:
        return False
    padded = (-m % 32 + m) * (-n % 32 + n) * (-k % 64 + k)
    return padded <= 1.25 * _tile_gain * work


def calibrate(clock: Callable[[], float]) -> float:
    """Measure how much faster the tile unit multiplies, and use the result from now on.

    Returns the ratio, 0 where there is no such unit; before the first call it is not used. Takes
    about 2 ms. Both ways give the same words, so nodes need not agree on it.
    """
    global _tile_gain
    _tile_gain = 0.0
    if tiles.grant():
        x = np.arange(128 * 256).reshape(128, 256)
        seconds = []
        for product in (_product, lambda x, y: tiles.sum_of_products([(x, y)])):
            product(x, x.T)
            begin = clock()
            for _ in range(3):
                product(x, x.T)
            seconds.append(clock() - begin)
        _tile_gain = seconds[0] / seconds[1]
    return _tile_gain


def _thin(x: Words, y: Words) -> Words:
    """x @ y for an x of few rows, without a copy of y if it or its transpose is in row order."""
    out = np.empty((x.shape[0], y.shape[1]), np.int64)
    if y.T.flags.c_contiguous:
        kernels.thin_product_transposed(np.ascontiguousarray(x), y.T, out)
    else:
        kernels.thin_product(np.ascontiguousarray(x), np.ascontiguousarray(y), out)
    return out


def _tensor(x: Words) -> torch.Tensor:
    """x for torch, which takes neither negative strides nor, without a warning, read-only words."""
    import torch

    usable = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x if usable else np.array(x, order="C"))
