"""Kernels of the ring Z_2^64: int64 arrays with wrap-around.

Matrix products use one of four methods, all exact modulo 2^64: 8-bit limbs on the processor's tile
unit, if it has one (`tiles`); multiplications of vectors of words, or of 32-bit halves (`panels`);
torch's int64 kernel; and where one side is thin, a loop that reads the other matrix once.
`calibrate` measures which of the first three is the fastest here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protocols.arrays import Words
from protocols.ring import kernels, panels, tiles

if TYPE_CHECKING:
    import torch

Pairs = Sequence[tuple[Words, Words]]
Bilinear = Callable[[Pairs, bool], Words]
"""Σ B(x, y) over pairs, or with True its negative: a new array. The two products of an evaluator
are one sum, which a matrix product makes in one go."""

THIN, THIN_BESIDE_PANELS = 12, 4
"""Products with a side of at most this length are bound by memory rather than by arithmetic. The
loops for them multiply whole words, which costs more where panels are the faster way."""
MIN_TILED = 1 << 15
"""Multiply-adds below which rewriting the operands as tiles costs more than it saves."""

_tile_gain = 0.0
"""How much faster tiles are than the faster one of the two other ways; 0: they are not used."""
_by_panels = True
"""Whether panels are faster than torch here."""


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
    thin = THIN_BESIDE_PANELS if _by_panels else THIN
    if m <= min(n, thin):
        return _sum_of_thin(pairs, negative)
    if n <= thin:
        turned = _sum_of_thin([(y.T, x.T) for x, y in pairs], negative)
        return np.ascontiguousarray(turned.T)
    return (panels.sum_of_products if _by_panels else _sum_by_torch)(pairs, negative)


def inner(x: Words, y: Words) -> Words:
    """Σ x · y modulo 2^64 over two vectors, int64[1]."""
    out = np.empty((1, 1), np.int64)
    rows = (np.ascontiguousarray(one).reshape(1, -1) for one in (x, y))
    kernels.thin_product_transposed(*rows, out)
    return out.reshape(1)


def _by_torch(x: Words, y: Words) -> Words:
    import torch  # here: a coordinator, which multiplies nothing, does not load it

    product: Words = torch.matmul(_tensor(x), _tensor(y)).numpy()
    return product


_sum_by_torch = summed(_by_torch)


def _tiles_pay(m: int, n: int, k: int) -> bool:
    """Tiles are 32 by 32 with 64 steps: a product is made as if it had these sizes."""
    work = m * n * k
    if work < MIN_TILED:
        return False
    padded = (-m % 32 + m) * (-n % 32 + n) * (-k % 64 + k)
    return padded <= 1.25 * _tile_gain * work


def calibrate(clock: Callable[[], float]) -> None:
    """Measure which way multiplies fastest, and use it from now on.

    Before the first call that is panels. Takes 1 to 15 ms. All ways give the same words, so nodes
    need not agree on it.
    """
    global _tile_gain, _by_panels
    ways = [_sum_by_torch, panels.sum_of_products]
    if tiles.grant():
        ways.append(tiles.sum_of_products)
    x = np.arange(64 * 256).reshape(64, 256)
    seconds = []
    for way in ways:
        way([(x, x.T)], False)
        begin = clock()
        for _ in range(3):
            way([(x, x.T)], False)
        seconds.append(clock() - begin)
    _by_panels = seconds[1] < seconds[0]
    _tile_gain = min(seconds[:2]) / seconds[2] if len(seconds) > 2 else 0.0


def _thin(x: Words, y: Words) -> Words:
    """x @ y for an x of few rows, without a copy of y if it or its transpose is in row order."""
    out = np.empty((x.shape[0], y.shape[1]), np.int64)
    if y.T.flags.c_contiguous:
        kernels.thin_product_transposed(np.ascontiguousarray(x), y.T, out)
    else:
        kernels.thin_product(np.ascontiguousarray(x), np.ascontiguousarray(y), out)
    return out


_sum_of_thin = summed(_thin)


def _tensor(x: Words) -> torch.Tensor:
    """x for torch, which takes neither negative strides nor, without a warning, read-only words."""
    import torch

    usable = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x if usable else np.array(x, order="C"))
