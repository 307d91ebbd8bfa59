"""Kernels of the ring Z_2^64: int64 arrays with wrap-around.

Matrix products go through torch, whose int64 kernel is vectorised (about 11 G multiply-adds a
second and core; NumPy's is not); where one side is thin, through a loop that reads the other
matrix once. All are exact modulo 2^64.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from protocols import kernels

Words = NDArray[np.int64]

THIN = 12
"""Products with a side of at most this length are bound by memory rather than by arithmetic."""


def matmul(x: Words, y: Words) -> Words:
    """x @ y modulo 2^64, for int64[m, k] and int64[k, n]; a new array in row-major order."""
    m, n = x.shape[0], y.shape[1]
    if m <= min(n, THIN):
        return _thin(x, y)
    if n <= THIN:
        return np.ascontiguousarray(_thin(y.T, x.T).T)
    product: Words = torch.matmul(_tensor(x), _tensor(y)).numpy()
    return product


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
    usable = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x if usable else np.array(x, order="C"))


def shift_right(x: Words, bits: int) -> Words:
    """Logical shift: x as an integer in [0, 2^64), divided by 2^bits and rounded down."""
    shifted: Words = (x.view(np.uint64) >> np.uint64(bits)).view(np.int64)
    return shifted
