"""Names for arrays: what the numbers in them are."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int64]
"""Elements of Z_2^64, which wrap around."""
Octets = NDArray[np.uint8]
Positions = NDArray[np.int64]
"""Indices of rows or items."""
Reals = NDArray[np.float64]
Shape = tuple[int, ...]
