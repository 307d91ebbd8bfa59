"""A job's training in one process, on rows in the clear at one owner: what came out, opened.

Over shares it is the program's own training; nothing of it is replaced but the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.owners.table import Table
from mpc_train.preparation.combined import Parameters
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.run.phases.train import train_model
from mpc_train.training.range_guard import RangeGuard
from mpc_train.twin.training import pooled_inputs
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.reveal import RevealGate
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached, shared_in


def shared_rows(job: Job, role: Role, tables: Sequence[Table]) -> Shared:
    """All owners' rows, prepared in the clear and brought by the first evaluator."""
    inputs = pooled_inputs(job, tables)[0]
    labels = np.concatenate([table.labels for table in tables])[:, None]
    if job.outputs > 1:
        labels = np.eye(job.outputs)[labels[:, 0].astype(np.int64)]
    x, y = shared_in(role, inputs, labels)
    return Shared(x, y, Parameters(None, None, None))


@dataclass(frozen=True)
class Outcome:
    """weights: of the model after each step that was asked for, by name. out_of_range: what the
    guard told, None without one."""

    trace: list[dict[str, Reals]]
    out_of_range: bool | None

    @property
    def weights(self) -> dict[str, Reals]:
        return self.trace[-1]


def trained_over_shares(
    job: Job, tables: Sequence[Table], evaluators: int = 2, guarded: bool = False
) -> Outcome:
    """A training over shares; with `guarded` to the guard's bit at the end."""

    def run(role: Role, guard: RangeGuard | None) -> list[dict[str, Any]]:
        shared = shared_rows(job, role, tables)
        tensors = train_model(job, role, None, shared, {}, lambda _: None, guard).model.tensors
        return [parts_of({name: tensors[name] for name in job.shapes})]

    return in_lockstep(job, run, evaluators, guarded)


def in_lockstep(
    job: Job,
    run: Callable[[Role, RangeGuard | None], list[dict[str, Any]]],
    evaluators: int,
    guarded: bool,
) -> Outcome:
    """What `run` gives at every role, opened, and what the guard that it was given tells."""

    def program(role: Role) -> tuple[list[dict[str, Any]], bool | None]:
        with attached(role, job.fraction_bits):
            guard = RangeGuard(role) if guarded else None
            found = run(role, guard)
            return found, None if guard is None else _told(job, guard)

    results = run_lockstep(program, evaluators)
    assert len({told for _, told in results}) == 1
    scale = 2.0**-job.fraction_bits
    trace = [
        {name: combine_masked([part[name] for part in parts]) * scale for name in parts[0]}
        for parts in zip(*(found for found, _ in results), strict=True)
    ]
    return Outcome(trace, results[0][1])


def parts_of(tensors: Mapping[str, MaskedTensor]) -> dict[str, Any]:
    return {name: shares_of(tensor.masked()) for name, tensor in tensors.items()}


def _told(job: Job, guard: RangeGuard) -> bool:
    try:
        guard.decide(RevealGate(agreed_outputs(job)), total_steps(job))
    except RangeError:
        return True
    return False
