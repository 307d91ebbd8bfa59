"""What a federated job takes of memory, disk and network at each node and owner, from public sizes.

All that grows is a number of vectors of the update's size, so nothing is rehearsed. How many each
process holds at once was counted in the program and compared with real runs, which
`tests/bench/federated.py` repeats; so were the bytes of comparisons.
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
_SUMS = 5120
"""As many numbers of an update are compared, or sums of them if it has more."""


@dataclass(frozen=True, slots=True)
class _Checks:
    """Bytes that comparisons take in a round: at all, for each owner, for each number that is
    compared, and in addition where it is a sum."""

    each_round: int
    owner: int
    number: float
    summed: float

    def bytes_of(self, owners: int, size: int) -> int:
        number = self.number + self.summed * (size > _SUMS)
        return self.each_round + owners * (self.owner + round(number * min(size, _SUMS)))


_OPENED = _Checks(420, 140, 8.8, 8)
"""From an evaluator to each other one."""
_DEALT = _Checks(390, 520, 63.3, 0)
"""From the dealer to all."""


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
    inside = sum(owner != name and owner in job.nodes for owner in job.owners)
    dealt = _DEALT.bytes_of(len(job.owners), size)
    memory = PROGRAM_BYTES
    if owns:
        memory += TRAINING_BYTES + _HELD["owner"] * vector
    if name == job.dealer:
        memory += _HELD["dealer"] * vector
        sent = vector + dealt + (len(job.evaluators) * vector if owns else 0)
        return RoundsCost(memory, 0, sent, vector if owns else 0)
    memory += 16 * min(GROUP_WORDS, len(job.owners) * size)
    memory += _HELD["first" if name == first else "other"] * vector
    sent = received = others * _OPENED.bytes_of(len(job.owners), size)
    sent += others * vector if owns else 0
    received += inside * vector + (vector + dealt) // len(job.evaluators)
    if name == first:
        # What owners that come and go send and fetch, and the others' masked summands.
        sent += away * (others + 1) * vector + inside * vector
        received += (away + others) * vector
        memory += away * vector
        return RoundsCost(memory, job.federated.rounds * vector, sent, received)
    return RoundsCost(memory, 0, sent + vector, received + away * vector + (vector if owns else 0))
