"""The pipeline in float64, by given parameters: for a recipient, and for the plaintext twin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.owners.local import Local
from protocols.arrays import Reals


def applied(pipeline: Pipeline, local: Local, parameters: Mapping[str, Reals]) -> Reals:
    """The model's inputs, float64[rows, width].

    parameters: by the names of `Pipeline.shapes`, as `combined.parameters` finds them.
    """
    values = local.values.copy()
    if pipeline.filled:
        filled = list(pipeline.filled)
        values[:, filled] += (1 - local.present) * parameters["prepare.fill"]
    if pipeline.scaled:
        scaled = list(pipeline.scaled)
        centered = values[:, scaled] - parameters["prepare.center"]
        values[:, scaled] = centered * parameters["prepare.inverse"]
    products = [values[:, i] * values[:, j] for i, j in pipeline.interactions]
    return np.column_stack([values, *products])
