"""The plaintext twin's preparation: `[prepare]` applied to the pooled table, in float64.

`raw_inputs` starts from cells in the columns' own units, like scikit-learn's SimpleImputer,
StandardScaler and MinMaxScaler, without rounding to a declared range or to the ring's resolution. A
column whose training values are equal becomes 0, as the job's text says. `twin_parameters` computes
the same from an owner's terms, for tables that have nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.owners.local import Local
from mpc_train.privacy.statistics import statistics_plan
from mpc_train.tables.typed import TypedTable
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Rows = NDArray[np.int64]


def raw_terms(pipeline: Pipeline, table: TypedTable) -> Reals:
    """float64[B, terms]: numbers after clip and logarithm, in the column's units, NaN where
    missing; bits of levels and of missing cells, and numbers of levels, unchanged."""
    found = np.empty((table.rows, len(pipeline.terms)))
    for index, term in enumerate(pipeline.terms):
        place = table.names.index(term.column)
        values, missing = table.values[:, place], table.missing[:, place]
        if term.part == "level":
            found[:, index] = (values == term.level) & ~missing
        elif term.part == "missing":
            found[:, index] = missing
        elif term.part == "index":
            found[:, index] = np.where(missing, np.nan if term.fill is None else term.fill, values)
        else:
            number = np.where(missing, np.nan, values)
            number = number if term.clip is None else np.clip(number, *term.clip)
            if term.log is not None:
                number = np.log(number) if term.log == "log" else np.log1p(number)
            found[:, index] = number
    return found


def raw_inputs(job: Job, raw: Reals, training: Rows) -> tuple[Reals, dict[str, Reals]]:
    """The model's inputs, float64[rows, width], from `raw_terms` of all owners' rows, and their
    parameters, by the names of `Pipeline.shapes`, in the units of the terms."""
    pipeline = job.pipeline
    columns = []
    found: dict[str, list[float]] = {"center": [], "inverse": [], "fill": []}
    for index, term in enumerate(pipeline.terms):
        values = raw[:, index]
        if term.part != "number":
            columns.append(values)
            continue
        # A power is taken of the publicly scaled number; nothing else depends on center and scale.
        declared = term.power > 1 or not term.scaled
        center, scale = (0.0, 1.0) if declared else (term.center, term.scale)
        if declared:
            values = ((values - term.center) / term.scale) ** term.power
        if term.filled:
            there = ~np.isnan(values[training])
            mean = float(values[training][there].mean()) if there.any() else center
            values = np.where(np.isnan(values), mean, values)
            found["fill"].append((mean - center) / scale)
        elif term.fill is not None:
            values = np.where(np.isnan(values), term.fill * scale + center, values)
        if term.scaled:
            least, inverse = scaled_by(term, values[training])
            values = (values - least) * inverse
            found["center"].append((least - center) / scale)
            found["inverse"].append(inverse * scale)
        columns.append(values)
    products = [columns[i] * columns[j] for i, j in pipeline.interactions]
    named = {name: np.array(found[name.removeprefix("prepare.")]) for name in pipeline.shapes}
    return np.column_stack([*columns, *products]), named


def scaled_by(term: Term, values: Reals) -> tuple[float, float]:
    """(center, inverse) of a term's training values, missing ones filled in."""
    low, high = float(values.min()), float(values.max())
    if term.shared == "minmax":
        return low, 0.0 if low == high else 1 / (high - low)
    mean, deviation = float(values.mean()), float(values.std())
    return mean, 0.0 if low == high else 1 / deviation


def noisy_twin_parameters(
    job: Job, local: Local, training: Rows, noise: Callable[[int, Fraction], Reals]
) -> dict[str, Reals]:
    """The same of a job with `[privacy]`: from sums with noise, in the range of each term.

    noise: draws as many numbers of this variance. A mean and a variance beyond what a column can
    have are moved to the end of that.
    """
    plan, pipeline = statistics_plan(job), job.pipeline
    place = {index: number for number, index in enumerate(pipeline.filled)}
    floor = float(plan.least_deviation)
    found: dict[str, list[float]] = {"center": [], "inverse": [], "fill": []}

    def noisy(total: float) -> float:
        return total + float(noise(1, plan.variance(plan.bits))[0]) / 2.0**plan.bits

    for index in pipeline.secret:
        term = pipeline.terms[index]
        reach = 2.0**term.reach
        cells, rows = local.values[training, index] / reach, len(training)
        count = float(rows)
        if index in place:
            there = local.present[training, place[index]] == 1
            cells, count = cells[there], noisy(float(there.sum()))
            count = min(max(np.rint(count), plan.least), rows)
        mean = min(max(noisy(float(cells.sum())) / count, -1.0), 1.0)
        if index in place:
            found["fill"].append(mean * reach)
        if term.scaled:
            squares = min(max(noisy(float(cells @ cells)) / rows, 0.0), 1.0)
            variance = squares - count / rows * mean**2
            found["center"].append(mean * reach)
            found["inverse"].append(1 / (max(variance, floor**2) ** 0.5 * reach))
    return {name: np.array(found[name.removeprefix("prepare.")]) for name in pipeline.shapes}


def twin_parameters(pipeline: Pipeline, local: Local, training: Rows) -> dict[str, Reals]:
    """Centers, inverse scales and filled means of the pooled rows, by name."""
    place = {index: number for number, index in enumerate(pipeline.filled)}
    center, inverse, fill = [], [], []
    for index in pipeline.secret:
        term = pipeline.terms[index]
        cells = local.values[training, index]
        if index in place:
            there = local.present[training, place[index]] == 1
            mean = float(cells[there].mean()) if there.any() else 0.0
            fill.append(mean)
            cells = np.where(there, cells, mean)
        if term.scaled:
            least, factor = scaled_by(term, cells)
            center.append(least)
            inverse.append(factor)
    found = {"prepare.center": center, "prepare.inverse": inverse, "prepare.fill": fill}
    return {name: np.array(found[name]) for name in pipeline.shapes}
