"""How a process that works for long uses memory: it keeps what it has freed, because the next step
or question needs the same.

A step frees all that it allocates, some of it in the transport's thread. By default the C library
returns large blocks to the system and gets new ones, filled with zeros page by page: about a
thousand page faults per step at the dealer, a tenth of its time.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

KEPT_BYTES = 256 << 20
"""Free memory beyond this is returned to the system."""
OWN_MAPPING_BYTES = 32 << 20
"""Blocks from this size on get their own mapping: glibc's maximum for this option."""
COLLECTED_OBJECTS = 20_000
"""The number of new objects after which the collector examines them."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def settle() -> None:
    """Called before the first step, frame or question: existing objects stay to the end, and freed
    memory is kept.

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


def peak_rss_mb() -> float:
    """The largest resident size of this process so far, in MB of 10^6 bytes.

    What `resource` says on Linux includes the process that started it, whose own peak counts there;
    the kernel's status of a process does not.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
