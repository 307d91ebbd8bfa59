"""A table that a child process reads: its reader then takes no memory of the process that trains.

Polars and what it leaves behind take about 60 MB, of which a process never gets rid again. The
child is forked, so it needs neither the job nor the node's file again, and it ends when the rows
are here. They come through a pipe and are never on a disk. If anything goes wrong there, the table
is read in this process instead, which then raises the error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from io import BytesIO
from typing import Any

import numpy as np

from mpc_train.owners.table import Table


def read_apart(read: Callable[[], Table]) -> Table:
    """What `read` gives: a table without tokens and raw cells. For use while no other thread of
    this process does anything. Raises the errors of `read`."""
    if sys.platform != "linux":
        return read()
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(ours)
            # What is wrong with a table is said once, by the process that reads it again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            with os.fdopen(theirs, "wb") as out:
                out.write(_packed(read()))
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as source:
            content = source.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    _, status = os.waitpid(child, 0)
    return _unpacked(content) if status == 0 else read()


def _packed(table: Table) -> bytes:
    out = BytesIO()
    found: dict[str, Any] = {
        one.name: np.asarray(getattr(table, one.name))
        for one in fields(Table)
        if getattr(table, one.name) is not None
    }
    found["warnings"] = np.array(table.warnings, np.str_)
    np.savez(out, allow_pickle=False, **found)
    return out.getvalue()


def _unpacked(content: bytes) -> Table:
    with np.load(BytesIO(content), allow_pickle=False) as found:
        arrays: dict[str, Any] = {name: found[name] for name in found.files}
    warnings = tuple(str(one) for one in arrays.pop("warnings"))
    return Table(**arrays, warnings=warnings)
