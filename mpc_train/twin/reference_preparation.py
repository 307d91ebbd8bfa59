"""The plaintext twin's preparation: statistics of the pooled training rows, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpc_train.preparation.local import Local
from mpc_train.preparation.pipeline import Pipeline
from protocols.scaling import LEAST_EXPONENT

Reals = NDArray[np.float64]


def twin_parameters(
    pipeline: Pipeline, local: Local, training: NDArray[np.int64]
) -> dict[str, Reals]:
    """Centers, inverse scales and filled means of the pooled rows, by name.

    A column whose deviation is below the least one that shares tell from 0 counts as constant.
    """
    place = {index: number for number, index in enumerate(pipeline.filled)}
    center, inverse, fill = [], [], []
    for index in pipeline.secret:
        term = pipeline.terms[index]
        cells = local.values[training, index]
        if index in place:
            there = local.present[training, place[index]] == 1
            mean = float(cells[there].mean()) if there.any() else 0.0
            fill.append(mean)
            low, high = (cells[there].min(), cells[there].max()) if there.any() else (0.0, 0.0)
            cells = np.where(there, cells, mean)
        else:
            low, high = cells.min(), cells.max()
        if term.shared == "standard":
            center.append(float(cells.mean()))
            variance = float(cells.var())
            inverse.append(1.0 if variance < 4.0**LEAST_EXPONENT else variance**-0.5)
        elif term.shared == "minmax":
            center.append(float(low))
            inverse.append(1 / float(high - low) if high - low >= 2.0**-9 else 0.0)
    found = {"prepare.center": center, "prepare.inverse": inverse, "prepare.fill": fill}
    return {name: np.array(found[name]) for name in pipeline.shapes}
