"""Kernels of the ring Z_2^64: int64 arrays with wrap-around.

NumPy does the element-wise work and the products with a thin side, torch the matrix products: its
int64 kernel is vectorised (about 11 G multiply-adds a second and core), NumPy's is not. Both are
exact modulo 2^64.
"""

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.int64]

THIN = 2
"""Products with a side of at most this length are memory-bound and go through NumPy."""


def matmul(x: Words, y: Words) -> Words:
    """x @ y modulo 2^64, for int64[m, k] and int64[k, n]."""
    m, n = x.shape[0], y.shape[1]
    if n <= THIN:
        if x.flags.c_contiguous:
            return x @ np.ascontiguousarray(y)
        if n == 1:
            return np.add.reduce(x.T * y, axis=0).reshape(m, 1)
    product: Words = torch.matmul(_tensor(x), _tensor(y)).numpy()
    return product


def _tensor(x: Words) -> torch.Tensor:
    """x for torch, which takes neither negative strides nor, without a warning, read-only words."""
    usable = x.flags.writeable and all(stride >= 0 for stride in x.strides)
    return torch.from_numpy(x if usable else np.array(x, order="C"))


def shift_right(x: Words, bits: int) -> Words:
    """Logical shift: x as an integer in [0, 2^64), divided by 2^bits and rounded down."""
    shifted: Words = (x.view(np.uint64) >> np.uint64(bits)).view(np.int64)
    return shifted


def top_bit(x: Words) -> Words:
    """The most significant bit, as 0 or 1."""
    return shift_right(x, 63)
