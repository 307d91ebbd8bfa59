"""What a job will cost: rounds, bytes, memory and time, from a dry run (`rehearsal`).

Rounds and bytes are those of a run, up to what no job says: frames that announce new keys after
hours, and the reconnection of a lost connection. Memory and time are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from mpc_train.admission.load import job_from_bytes
from mpc_train.base.problem import JobProblem
from mpc_train.checkpoints.keeper import KEPT
from mpc_train.checks.check import check_job
from mpc_train.errors import JobError
from mpc_train.estimates.memory import process_bytes
from mpc_train.estimates.rehearsal import Rehearsed, Spent, rehearse
from mpc_train.estimates.rounds import rounds_costs
from mpc_train.estimates.speed import Speed

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

PHASES = ("link", "share", "train", "evaluate", "reveal")


@dataclass(frozen=True, slots=True)
class Link:
    """The network between any two nodes. rtt_s: of a round trip. bytes_s: sent by a node."""

    rtt_s: float
    bytes_s: float


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one node sends, receives and takes. disk_bytes: of checkpoints and of material stored
    ahead, besides results."""

    bytes_sent: int
    bytes_received: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """One phase: the rounds of the evaluators, bytes by node, and seconds for computing, for
    waiting and for sending."""

    rounds: int
    bytes_sent: dict[str, int]
    bytes_received: dict[str, int]
    compute_s: float
    wait_s: float
    send_s: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.wait_s + self.send_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """A whole run. training_rounds: of the steps alone, as a run's record counts them."""

    phases: dict[str, PhaseCost]
    nodes: dict[str, NodeCost]
    training_rounds: int
    dealer_bytes: int

    @property
    def rounds(self) -> int:
        return sum(phase.rounds for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())


def estimate(job: Job, link: Link, speed: Speed, joined: int | None = None) -> Estimate:
    """The cost of the job on machines of this speed. joined: see `rehearse`. Raises JobError for a
    federated job."""
    if job.federates:
        raise JobError(
            f"{job.name}: how long owners of a federated job train is theirs to say; mpc-train job "
            "check shows the memory of each, and the bytes of a round"
        )
    nodes = rehearse(job, joined)
    return Estimate(
        {name: _phase(nodes, name, link, speed) for name in PHASES if _has(nodes, name)},
        {
            name: NodeCost(
                node.channel.bytes_sent,
                node.channel.bytes_received,
                process_bytes(job, name, node.arrays),
                sum(_disk(job, nodes, name)),
            )
            for name, node in nodes.items()
        },
        max(node.rounds for node in nodes.values()),
        nodes[job.dealer].channel.bytes_sent,
    )


def _has(nodes: Mapping[str, Rehearsed], phase: str) -> bool:
    spent = [node.phases.get(phase, Spent()) for node in nodes.values()]
    return any(one.rounds or one.sent for one in spent)


def _disk(job: Job, nodes: Mapping[str, Rehearsed], name: str) -> tuple[int, int]:
    """Bytes of checkpoints, of which one more is there while it is written, and of the evaluator's
    share of what the dealer sends ahead; shares differ by a few frames."""
    if name not in job.evaluators:
        return 0, 0
    stored = 0
    if job.train.preprocess:
        dealt = nodes[job.dealer].phases
        sent = sum(dealt.get(phase, Spent()).sent for phase in ("train", "evaluate"))
        stored = -(-sent // len(job.evaluators))
    return (KEPT + 1) * nodes[name].checkpoint, stored


def _phase(nodes: Mapping[str, Rehearsed], phase: str, link: Link, speed: Speed) -> PhaseCost:
    spent = {name: node.phases.get(phase, Spent()) for name, node in nodes.items()}
    rounds = max(one.rounds for one in spent.values())
    return PhaseCost(
        rounds,
        {name: one.sent for name, one in spent.items()},
        {name: one.received for name, one in spent.items()},
        max(speed.seconds(one) for one in spent.values()),
        rounds * link.rtt_s,
        max(max(one.sent, one.received) for one in spent.values()) / link.bytes_s,
    )


@lru_cache(16)
def _needs(body: bytes) -> dict[str, tuple[int, tuple[int, int]]]:
    job = job_from_bytes(body)
    if job.federates:
        return {
            name: (cost.memory_bytes, (cost.disk_bytes, 0))
            for name, cost in rounds_costs(job).items()
        }
    nodes = rehearse(job, brief=True)
    return {
        name: (process_bytes(job, name, node.arrays), _disk(job, nodes, name))
        for name, node in nodes.items()
    }


def memory_needs(job: Job) -> dict[str, int]:
    """The most bytes that each node's process holds, by name; of a federated job also the owners
    that come and go."""
    return {name: memory for name, (memory, _) in _needs(job.to_bytes()).items()}


def disk_needs(job: Job) -> dict[str, tuple[int, int]]:
    """Bytes of each node's checkpoints, and of what it stores of the dealer's material, by name."""
    return {name: disk for name, (_, disk) in _needs(job.to_bytes()).items()}


def with_rows(job: Job, rows: Mapping[str, int]) -> Job:
    """The job with other numbers of rows. Raises JobError if it does not allow them."""
    unknown = [name for name in rows if name not in job.data.rows]
    if unknown:
        raise JobError(
            f"--rows {', '.join(unknown)}: no owner of the job; its owners are "
            + ", ".join(job.owners)
        )
    data = msgspec.structs.replace(job.data, rows=job.data.rows | dict(rows))
    changed = msgspec.structs.replace(job, data=data)
    try:
        check_job(changed)
    except JobProblem as problem:
        said = "; ".join(f"{key}: {message}" for key, message in problem.said)
        raise JobError(f"with these rows: {said}") from problem
    return changed
