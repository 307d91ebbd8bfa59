"""How a training process uses memory: it keeps freed memory, because the next step needs the same,
and frees what came from rows when their sums are computed.

A step frees all that it allocates, some of it in the transport's thread. By default the C library
returns large blocks to the system and gets new ones, filled with zeros page by page: about a
thousand page faults per step at the dealer, a tenth of its time.
"""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

KEPT_BYTES = 256 << 20
"""Free memory beyond this is returned to the system."""
OWN_MAPPING_BYTES = 32 << 20
"""Blocks from this size on get their own mapping: glibc's maximum for this option."""
COLLECTED_OBJECTS = 20_000
"""The number of new objects after which the collector examines them."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def settle() -> None:
    """Called before the first step: existing objects stay to the end, and freed memory is kept.

    The collector does not examine existing objects again, and seldom runs: a step leaves no cycles.
    If the C library is not glibc, its settings do not change.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_OBJECTS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
