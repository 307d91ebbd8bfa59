"""What keeps the secrets of a running node out of files and away from other programs.

    core dumps      none: neither the limit nor the kernel's flag allows one
    debuggers       other programs of the same user cannot attach or read its memory (Linux)
    swap            with `lock_memory`, pages that were used once stay in memory (mlockall)

A program with the rights of root still can, and Python leaves copies of secrets in memory that
nobody can wipe: see `SECURITY.md`.
"""

import contextlib
import ctypes
import os
import resource
import sys

from parties.errors import ProcessError

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def guard() -> None:
    """Allow this process no core dump and, on Linux, no debugger of the same user. What a platform
    does not offer is left out: nothing here makes a node fail."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_memory() -> None:
    """Keep every page of this process in memory from its first use on, now and later.

    Raises ProcessError where the platform or the user's limit does not allow it.
    """
    if sys.platform != "linux":
        raise ProcessError("lock_memory: only Linux can keep the memory of a node out of swap")
    # Without MCL_ONFAULT all that is mapped would be read in: PyTorch maps gigabytes it never uses.
    if _libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        why = os.strerror(ctypes.get_errno())
        raise ProcessError(
            f"lock_memory: the memory of this node cannot be locked ({why}); raise the limit of "
            "its user (ulimit -l unlimited, LimitMEMLOCK=infinity), or remove the key"
        )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
