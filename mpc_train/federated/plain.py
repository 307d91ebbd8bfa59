"""The same rounds in the clear: what a federated run is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.federated.rules import Global

if TYPE_CHECKING:
    from mpc_train.federated.local import Owner
    from mpc_train.jobs.job import Job


def plain_rounds(
    job: Job, owners: Mapping[str, Owner], present: Sequence[Sequence[str]] = ()
) -> Global:
    """The global model after all rounds of plain federated averaging, of updates that are clipped
    but not rounded.

    present: who takes part in each round; empty: all owners.
    """
    model = Global(next(iter(owners.values())).initial())
    for number in range(1, job.federated.rounds + 1):
        names = present[number - 1] if present else tuple(owners)
        total, rows = np.zeros_like(model.weights), 0
        for name in names:
            update, _ = owners[name].update(model.weights, number)
            norm = float(np.linalg.norm(update))
            weight = 1 if job.federated.weighting == "equal" else owners[name].rows
            total += weight * update * min(1.0, float(job.federated.clip) / norm)
            rows += weight
        model.move(job.federated, total / rows)
    return model
