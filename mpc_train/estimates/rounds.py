"""What a federated job takes of memory, disk and network at each node and owner, from public sizes.

All that grows is a number of vectors of the update's size, so nothing is rehearsed. How many each
process holds at once was counted in the program and compared with real runs, which
`tests/bench/federated.py` repeats. Sums of squares, comparisons and labels come to the bytes of
`_CHECKED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mpc_train.estimates.memory import PROGRAM_BYTES
from mpc_train.jobs.schedule import GROUP_WORDS

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

OWNER_BYTES = 300_000_000
"""An owner that comes and goes, without its network and its rows."""
TRAINING_BYTES = 20_000_000
"""What PyTorch takes at a node that trains."""
_HELD = {"owner": 5, "first": 6, "other": 5, "dealer": 3}
"""Vectors at once; at the first evaluator besides the updates of owners that run no node."""
_MOST_CHECKED = 5120
"""As many numbers of an update are compared, or sums of its numbers."""
_CHECKED = {"evaluator": 27, "dealer": 80}
"""Bytes for each of them: from an evaluator to each other one, and from the dealer in all."""


@dataclass(frozen=True, slots=True)
class RoundsCost:
    """memory_bytes: the most that the process holds. disk_bytes: of rounds that are kept, in the
    end. sent_bytes, received_bytes: in one round in which all owners take part."""

    memory_bytes: int
    disk_bytes: int
    sent_bytes: int
    received_bytes: int


def rounds_costs(job: Job) -> dict[str, RoundsCost]:
    """By name, nodes before owners that come and go."""
    return {name: _cost(job, name) for name in (*job.nodes, *job.visitors)}


def _cost(job: Job, name: str) -> RoundsCost:
    size = sum(prod(shape) for _, shape in job.plain.tensors)
    vector = 8 * (size + job.sums_sizes)
    owns, first = name in job.owners, job.evaluators[0]
    others, away = len(job.evaluators) - 1, len(job.visitors)
    if name in job.visitors:
        memory = OWNER_BYTES + _HELD["owner"] * vector
        return RoundsCost(memory, 0, vector, vector)
    inside = [owner for owner in job.owners if owner in job.nodes]
    checked = len(job.owners) * min(size, _MOST_CHECKED)
    memory = PROGRAM_BYTES
    if owns:
        memory += TRAINING_BYTES + _HELD["owner"] * vector
    if name == job.dealer:
        memory += _HELD["dealer"] * vector
        summand = vector
        sent = summand + _CHECKED["dealer"] * checked
        sent += len(job.evaluators) * vector if owns else 0
        received = vector if owns else 0
        return RoundsCost(memory, 0, sent, received)
    group = 8 * min(GROUP_WORDS, len(job.owners) * size)
    memory += 2 * group + _HELD["first" if name == first else "other"] * vector
    exchanged = others * _CHECKED["evaluator"] * checked
    sent = received = exchanged
    sent += others * vector if owns else 0
    received += vector * sum(owner != name for owner in inside) + vector // len(job.evaluators)
    received += _CHECKED["dealer"] * checked // len(job.evaluators)
    if name == first:
        memory += away * vector
        sent += away * (others + 1) * vector + vector * sum(owner != name for owner in inside)
        received += (away + others) * vector
        return RoundsCost(memory, job.federated.rounds * vector, sent, received)
    sent += vector
    received += away * vector + (vector if owns else 0)
    return RoundsCost(memory, 0, sent, received)
