"""How much memory a node's process takes: what every process takes, and the arrays of its dry run.

    program   the interpreter with everything loaded, kernels included
    table     at an owner: the code that reads tables, and its table while it is read
    network   the part of torch that checks the shapes of a job's own network
    frames    those that wait in queues of the transport, and pieces of keystreams
    arrays    the largest sum of all arrays at any time, with what the C library keeps beside them

The figures were measured in real runs; `tests/runs/test_estimates.py` compares them again.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from mpc_train.owners.columns import part_of

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

PROGRAM_BYTES = 448_000_000
TABLE_BYTES = 18_000_000
NETWORK_BYTES = 70_000_000
FRAME_BYTES = 8_000_000
KEPT = 1.3
"""What a process holds for each byte of its arrays: freed blocks lie between others."""
READ = 3
"""A table that is read takes this many times the bytes of its numbers."""


def process_bytes(job: Job, name: str, arrays: int) -> int:
    """The most that the process of a node takes, whose arrays take so much."""
    table = 0
    if name in job.owners:
        table = READ * 8 * job.data.rows[name] * part_of(job, name).width
    found = PROGRAM_BYTES + max(FRAME_BYTES + round(KEPT * arrays), table)
    found += TABLE_BYTES if name in job.owners else 0
    if job.privacy and job.trains:
        elements = sum(prod(shape) for shape in job.shapes.values())
        found += 8 * elements * (job.privacy.bands - 1)  # noise of the steps before
    return found + (NETWORK_BYTES if job.model.network is not None else 0)
