"""Directories of a node: whether it can write, who else can enter, how much space there is, and how
long it takes until a file is safely on the disk.

What is written to try this out is removed again, whatever happens.
"""

import errno
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from parties.doctor.findings import Figures, Finding, Level, machine
from parties.files import open_to_others

MIB, GIB = 1 << 20, 1 << 30

MIN_SPACE_BYTES = 100 * MIB
"""Less is a problem: a node may write a log and small results only."""
GOOD_SPACE_BYTES = 2 * GIB

WRITES = 12
WRITE_BYTES = 64 << 10
SLOW_SYNC_S = 0.1
"""A disk of plates takes 0.02 s; a checkpoint has to wait for a few of them."""

Sync = Callable[[int], None]


def directory(title: str, path: Path, *, private: bool = True, sync: Sync = os.fsync) -> Finding:
    """Write, sync and remove a small file in `path`, or where it would be made.

    private: whether only its owner may enter it. sync: brings a descriptor's file to the disk.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    name = f"{title} {path}"
    if not there.is_dir():
        return _wrong(name, f"{there} is not a directory", "name another one in the node's file")
    if private and there == path and (reason := open_to_others(path)):
        return _wrong(name, *reason.split("; ", 1))
    try:
        free = shutil.disk_usage(there).free
        seconds = _write(there, sync)
    except OSError as error:
        return _wrong(name, *_reason(error, there))
    median = statistics.median(seconds)
    figures: Figures = {
        "free_bytes": free,
        "sync_median_ms": round(median * 1000, 2),
        "sync_max_ms": round(max(seconds) * 1000, 2),
    }
    text = f"{name}: {free / GIB:,.1f} GiB free, a synced write takes {median * 1000:.1f} ms"
    text += "" if there == path else "; it will be made"
    if free < MIN_SPACE_BYTES:
        return machine(
            "disk", Level.problem, text, "make room, or name a directory elsewhere", figures
        )
    if free < GOOD_SPACE_BYTES:
        return machine(
            "disk", Level.warning, text, "large models and checkpoints need more space", figures
        )
    if median > SLOW_SYNC_S:
        return machine(
            "disk",
            Level.warning,
            text,
            "checkpoints will hold up the run: name a directory on a local disk",
            figures,
        )
    return machine("disk", Level.passed, text, figures=figures)


def _write(folder: Path, sync: Sync) -> list[float]:
    """Seconds of each synced write. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=".doctor.", dir=folder)
    try:
        seconds = []
        for _ in range(WRITES):
            started = time.perf_counter()
            if os.write(descriptor, bytes(WRITE_BYTES)) < WRITE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)
            seconds.append(time.perf_counter() - started)
        return seconds
    finally:
        os.close(descriptor)
        os.unlink(name)


def _wrong(name: str, why: str, remedy: str) -> Finding:
    return machine("disk", Level.problem, f"{name}: {why}", remedy)


def _reason(error: OSError, there: Path) -> tuple[str, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full, or the quota is used up", "make room, or name another directory"
    if error.errno == errno.EROFS:
        return (
            "it lies on a read-only file system",
            "mount it for writing, or name a directory elsewhere",
        )
    return (
        f"{there} cannot be written ({error.strerror})",
        "let the node's user write there (chown), or name another directory",
    )
