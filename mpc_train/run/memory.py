"""What a process that trains does with memory: keep it, for the next step asks for the same, and
let go of what came from rows once their sums are there.

A step frees all that it allocates, some of it in the transport's thread. By default the C library
hands large blocks back to the system and takes new ones, filled with zeros page by page: about a
thousand page faults a step at the dealer, a tenth of its time.
"""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

KEPT_BYTES = 256 << 20
"""Free memory beyond this is handed back."""
OWN_MAPPING_BYTES = 32 << 20
"""Blocks from here on get a mapping of their own: the most that glibc can be told."""
COLLECTED_OBJECTS = 20_000
"""So many new objects make the collector look through them."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def settle() -> None:
    """Before the first step: what is there now stays to the end, and what is freed is kept.

    The collector does not look again through what exists, and seldom for more: a step leaves no
    cycles. Where the C library is not glibc, its own way with memory stays.
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
