"""Roughly how much memory a node needs, and how many rows fit at a time, from the job alone.

In a small job the larger part is a process that has loaded the program. To it are added

    rows     Δ and a share of λ at an evaluator, λ at the dealer, with copies while rows are shared
             in and scaled; at an owner its own table besides
    weights  with the optimizer's state for them
    work     the largest of: a training step of a batch, a chunk of rows that is evaluated, a chunk
             of a regression's equations

The cost of each was measured in separate processes; `tests/runs/test_footprint.py` compares it with
whole runs: within 30 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import is_newton, split_sizes
from mpc_train.networks.footprint import WORD, row_bytes
from mpc_train.regression.scales import CHUNK_ELEMENTS
from mpc_train.training.chunk_sizes import (
    MAX_PAIRED_ROWS,
    PAIR_BYTES,
    PAIRS_AT_ONCE,
    chunk_rows,
    evaluated_bytes,
)

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Costs:
    """The measured figures of a role.

    program: bytes of a process that trains next to nothing. shared, scaled: words for each word of
    all rows, while rows are shared in, without and with scaling over shares; kept, kept_scaled:
    afterwards. weight, moment: bytes for a weight, and for a moment of an adaptive rule. step: of a
    batch, as a part of `row_bytes` of all nodes together. chunk: of a chunk, as a part of those of
    the largest node. product: bytes for an element of a regression's chunk.
    """

    program: int
    shared: float
    scaled: float
    kept: float
    kept_scaled: float
    weight: int
    moment: int
    step: float
    chunk: float
    product: int


EVALUATOR = Costs(432_000_000, 2.2, 9.3, 2.2, 4.2, 200, 370, 0.75, 1.0, 75)
DEALER = Costs(428_000_000, 2.1, 5.1, 1.1, 1.1, 120, 250, 0.4, 0.6, 57)
TABLE_BYTES = 15_000_000
"""The code that reads tables, at an owner."""
NETWORK_BYTES = 70_000_000
"""The part of torch that checks the shapes of a job's own network, at every node."""
STEP_BYTES = 20_000_000
"""The constant part of a step: frames that wait, pieces of keystreams."""


def memory_needs(job: Job) -> dict[str, int]:
    """The most bytes that each node's process holds, by name."""
    found = {}
    for name in job.nodes:
        table = _table_bytes(job, name)
        if name == job.dealer or name in job.evaluators:
            costs = DEALER if name == job.dealer else EVALUATOR
            found[name] = costs.program + max(_sharing(job, costs) + table, _working(job, costs))
        else:
            found[name] = EVALUATOR.program + 2 * table
        found[name] += TABLE_BYTES if name in job.owners else 0
        found[name] += NETWORK_BYTES if job.model.network is not None else 0
    return found


def _words(job: Job) -> int:
    """Bytes of all rows as words: inputs, labels and weights."""
    return WORD * job.rows * (job.widths[0] + job.outputs + bool(job.weight))


def _table_bytes(job: Job, name: str) -> int:
    if name not in job.owners:
        return 0
    return WORD * job.data.rows[name] * (len(job.pipeline.terms) + 1)


def _sharing(job: Job, costs: Costs) -> int:
    return round((costs.shared if job.pipeline.trivial else costs.scaled) * _words(job))


def _working(job: Job, costs: Costs) -> int:
    kept = round((costs.kept if job.pipeline.trivial else costs.kept_scaled) * _words(job))
    weights = sum(prod(shape) for shape in job.shapes.values())
    moments = {"sgd": 0, "newton": 0, "rmsprop": 1}.get(job.train.optimizer.name, 2)
    kept += weights * (costs.weight + moments * costs.moment)
    return kept + max(_step(job, costs), _evaluation(job, costs))


def _step(job: Job, costs: Costs) -> int:
    if not is_newton(job):
        batch = job.train.batch_size * sum(row_bytes(job.graph))
        return STEP_BYTES + round(costs.step * batch)
    elements = split_sizes(job)[0] * (job.widths[0] + 1)
    data = round(WORD * elements * (1 if costs is DEALER else 2))
    return STEP_BYTES + data + costs.product * min(elements, CHUNK_ELEMENTS)


def _evaluation(job: Job, costs: Costs) -> int:
    """Bytes of one chunk of the rows over which metrics are taken."""
    found, held_out = 0, split_sizes(job)[1]
    for metrics in (job.reveal.metrics, job.reveal.per_party):
        if metrics:
            rows = min(chunk_rows(job, metrics), held_out)
            found = max(found, rows * evaluated_bytes(job, metrics))
        if "auc" in metrics and held_out <= MAX_PAIRED_ROWS:
            found = max(found, PAIR_BYTES * min(held_out**2 // 2, PAIRS_AT_ONCE))
    return round(costs.chunk * found)
