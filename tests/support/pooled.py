"""A job's training in one process, on rows in the clear at one owner: what came out, opened.

Over shares it is the program's own training; nothing of it is replaced but the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpc_train.data import Table
from mpc_train.jobs.job import Job
from mpc_train.preparation.combined import Parameters
from mpc_train.preparation.sharing import Shared
from mpc_train.program import _trained
from mpc_train.twin.reference import pooled_inputs
from protocols import crypten_functions
from protocols.crypten_backend import MaskedTensor, attach, detach
from protocols.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of

Reals = np.ndarray


def shared_rows(job: Job, role: Role, tables: Sequence[Table]) -> Shared:
    """All owners' rows, prepared in the clear and brought by the first evaluator."""
    inputs = pooled_inputs(job, tables)[0]
    labels = np.concatenate([table.labels for table in tables])[:, None]
    if job.outputs > 1:
        labels = np.eye(job.outputs)[labels[:, 0].astype(np.int64)]
    mine = role.index == 0
    x, y = (
        MaskedTensor(value if mine else None, src=0, shape=value.shape)
        for value in (inputs, labels)
    )
    return Shared(x, y, Parameters(None, None, None))


def trained_weights(job: Job, tables: Sequence[Table], evaluators: int = 2) -> dict[str, Reals]:
    """The model's tensors after training over shares."""

    def program(role: Role) -> Mapping[str, Any]:
        crypten_functions.install()
        attach(role, job.fraction_bits)
        np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
        try:
            shared = shared_rows(job, role, tables)
            found = _trained(job, role, None, shared, {}, lambda _: None)
            return {name: shares_of(found.model.tensors[name].masked()) for name in job.shapes}
        finally:
            detach()

    results = run_lockstep(program, evaluators)
    scale = 2.0**-job.fraction_bits
    return {
        name: combine_masked([result[name] for result in results]) * scale for name in results[0]
    }
