"""A recipient's table of results: coefficients, standard errors, p-values. In the clear.

From the tensors that are sealed with the model (`mpc_train.regression.settings`), for coefficient
j, the intercept last:

    variance_j = dispersion · scale_j² · inflation_j / 2^(D + L),    inflation = diag(Y) / 2^C
    dispersion = sum of squared residuals / (rows - coefficients),   1 for logistic and Poisson

and the statistic is coefficient / standard error: t with rows - coefficients degrees of freedom if
a dispersion was estimated, otherwise z; p-values are two-sided. `inflation` is the variance
inflation factor (a generalised one if rows have weights). None of the inputs that determine one
another has a standard error here, and neither has a constant one.

If the iteration did not converge, coefficients are those of an intermediate point, and nothing has
a standard error. For classes (and for counts that are all 0 in a group) the likely reason is that
an input separates them: the likelihood then grows without limit, and each step moves such a
coefficient further in the same direction.

Coefficients are those of the model's inputs, as the job centres and scales them; `per_unit` is the
change for one unit of the column, if the input is the column, centred and scaled.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, stdtr

from mpc_train.jobs.schedule import split_sizes, total_steps
from mpc_train.jobs.sealed import CHANGE, DEPENDENCE, DISPERSION, INFLATION, SCALE
from mpc_train.regression.settings import bounds_of, family_of, sizes_of
from protocols.arrays import Reals
from protocols.functions.matrix_inverse_plan import UNRESOLVED

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.regression.family import Family

COEFFICIENTS_FILE = "coefficients.csv"
INTERCEPT = "(intercept)"
CONVERGED = 0.01
"""Converged if the last step was at most this part of a standard error."""
CONVERGED_PLAIN = 1e-3
"""Without standard errors: this part of the largest coefficient, or of 1."""
CREEPING = 1e-3
"""If inputs can separate classes: a last step above this part of its coefficient, or of a standard
error if that is larger, still moves. A regular iteration ends far below. With separation, step k
moves by 1/k of the coefficient, and the size of steps decreases with the weights of the rows, so
that it also falls below a standard error."""
ENOUGH_STEPS = 6
"""After this many steps a regular iteration for classes or counts has converged."""
AT_LIMIT = 1 - 2.0**-10
"""A coefficient of this part of its limit was moved to it."""
MIN_TOLD = 0.1
"""Without standard errors: `CREEPING` does not distinguish smaller coefficients from 0."""
NOT_CONVERGED = "not converged"
DEPENDENT = "determined by other inputs or constant"
EXACT = "every row is fitted exactly"
"""Then no residuals are left from which to estimate errors."""


@dataclass(frozen=True)
class Row:
    """One coefficient; None: not estimable, or not requested."""

    name: str
    coefficient: float
    std_error: float | None = None
    statistic: float | None = None
    p_value: float | None = None
    inflation: float | None = None
    per_unit: float | None = None
    note: str | None = None
    """Why a number is missing."""


@dataclass(frozen=True)
class Results:
    """The results of a regression. statistic: "t" or "z", "" without standard errors.

    separated: it did not converge, and probably because an input separates the classes. unsolved:
    with noise, why the coefficients have no meaning; empty if they have.
    """

    rows: tuple[Row, ...]
    statistic: str
    dispersion: float
    freedom: int
    converged: bool
    separated: bool
    unsolved: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the coefficients has to know, in sentences that do not name inputs."""
        if self.unsolved:
            return (self.unsolved,)
        if self.converged and any(row.note == DEPENDENT for row in self.rows):
            return (
                f"Inputs without a standard error are {DEPENDENT}: their coefficients are one of "
                "many choices that predict the same, and have no meaning by themselves. Remove "
                "such inputs out",
            )
        if self.converged:
            return ()
        known = "The regression did not converge: its last step still moved coefficients"
        without = ", so none has a standard error or p-value" if self.statistic else ""
        if self.separated:
            return (
                f"{known}{without}. Probably an input, or several together, separate the labels "
                "perfectly: then no finite coefficients exist. Remove that input, or add a "
                "penalty (train.optimizer.l2)",
            )
        return (f"{known}{without}. Allow more steps (train.optimizer.steps)",)

    def to_csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        for row in self.rows:
            writer.writerow(["" if value is None else value for value in astuple(row)])
        return text.getvalue().encode()

    def lines(self) -> list[str]:
        """The table for people."""
        names = [row.name for row in self.rows]
        width = max(len(name) for name in (*names, "input"))
        heads = ["coefficient"]
        if self.statistic:
            heads += ["std error", self.statistic, "p", "inflation"]
        found = [f"{'input':<{width}}" + "".join(f"{head:>13}" for head in heads)]
        for row in self.rows:
            cells = [f"{row.coefficient:>13.5f}"]
            if self.statistic:
                cells += [_cell(row.std_error, ".5f"), _cell(row.statistic, ".3f")]
                cells += [_cell(row.p_value, ".3g"), _cell(row.inflation, ".2f")]
            found.append(f"{row.name:<{width}}" + "".join(cells))
        if self.statistic == "t":
            found.append(f"Dispersion {self.dispersion:.6g} with {self.freedom} degrees of freedom")
        return [*found, *self.warnings]


def results(job: Job, tensors: Mapping[str, Reals]) -> Results:
    """The table from the opened tensors of a regression's job, by name."""
    values = np.append(tensors["weight"].reshape(-1), tensors["bias"].reshape(-1))
    names, units = [*job.pipeline.names, INTERCEPT], _units(job, tensors)
    if job.privacy:
        return _noisy(job, tensors, values, names, units)
    family, bounds = family_of(job), bounds_of(job)
    change = np.abs(tensors[CHANGE])
    freedom = bounds.rows - bounds.columns
    if SCALE not in tensors:
        plain = tuple(
            Row(name, float(value), per_unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        )
        settled = change.max() <= CONVERGED_PLAIN * max(1.0, np.abs(values).max())
        settled &= not _creeps(family, change, values, np.full_like(values, MIN_TOLD))
        separated = not settled and _separated(job, tensors[CHANGE], values)
        plain = plain if settled else tuple(replace(row, note=NOT_CONVERGED) for row in plain)
        return Results(plain, "", 1.0, freedom, bool(settled), separated)
    sizes = sizes_of(job)
    dispersion = 1.0
    if family.has_dispersion:
        dispersion = float(tensors[DISPERSION][0]) / freedom
    inflation = tensors[INFLATION]
    variance = dispersion * tensors[SCALE] ** 2 * np.maximum(inflation, 0)
    errors = np.sqrt(variance / 2.0 ** (sizes.diagonal + sizes.count))
    alone = (tensors[DEPENDENCE] <= UNRESOLVED) & (tensors[SCALE] > 0) & (inflation > 0)
    known = alone & (errors > 0)
    settled = bool((change[known] <= CONVERGED * errors[known]).all())
    little = CONVERGED_PLAIN * np.maximum(1.0, np.abs(values))
    settled &= bool((change <= little)[alone & ~known].all())
    settled &= not _creeps(family, change[known], values[known], errors[known])
    statistic = np.divide(values, errors, out=np.zeros_like(values), where=known)

    def p_value(value: float) -> float:
        lower = -abs(value)
        return 2 * float(stdtr(freedom, lower) if family.has_dispersion else ndtr(lower))

    rows = []
    for j, name in enumerate(names):
        row = Row(name, float(values[j]), inflation=float(inflation[j]), per_unit=units[j])
        if not known[j] or not settled:
            note = EXACT if settled else NOT_CONVERGED
            row = replace(row, note=note if alone[j] else DEPENDENT)
        else:
            row = replace(
                row,
                std_error=float(errors[j]),
                statistic=float(statistic[j]),
                p_value=p_value(float(statistic[j])),
            )
        rows.append(row)
    separated = not settled and _separated(job, tensors[CHANGE], values)
    statistic_name = "t" if family.has_dispersion else "z"
    return Results(tuple(rows), statistic_name, dispersion, freedom, settled, separated)


def _noisy(
    job: Job,
    tensors: Mapping[str, Reals],
    values: Reals,
    names: list[str],
    units: list[float | None],
) -> Results:
    """The table of a regression whose steps had noise: no last step is small, because each has
    noise of its own, but for a linear one, whose steps share theirs."""
    family = family_of(job)
    solved = total_steps(job) if family.weights_vary else 1
    most = AT_LIMIT * float(job.fixed_point.activation_limit)
    unsolved = ""
    if (tensors[DEPENDENCE] > UNRESOLVED * solved).any():
        unsolved = (
            "With its noise the matrix of a step had no inverse: the coefficients have no meaning. "
            "Do not use them. Another job with a larger penalty (train.optimizer.l2), a larger ε, "
            "fewer inputs or more rows costs its budget anew"
        )
    elif family.weights_vary and (np.abs(values) >= most).any():
        unsolved = (
            "Noise moved a coefficient to its limit (fixed_point.activation_limit): the "
            "coefficients have no meaning. Do not use them. Another job with a larger penalty "
            "(train.optimizer.l2), a larger ε, or fewer inputs costs its budget anew"
        )
    settled = not unsolved
    if not family.weights_vary:
        little = CONVERGED_PLAIN * max(1.0, np.abs(values).max())
        settled &= bool(np.abs(tensors[CHANGE]).max() <= little)
    note = None if settled else NOT_CONVERGED
    rows = tuple(
        Row(name, float(value), per_unit=unit, note=note)
        for name, value, unit in zip(names, values, units, strict=True)
    )
    freedom = split_sizes(job)[0] - len(values)
    return Results(rows, "", 1.0, freedom, settled, False, unsolved)


def _creeps(family: Family, change: Reals, values: Reals, errors: Reals) -> bool:
    """Whether a coefficient still moves, even if only a little, in a model where it can move for
    ever."""
    if family.has_dispersion:
        return False
    return bool((change > CREEPING * np.maximum(np.abs(values), errors)).any())


def _separated(job: Job, change: Reals, values: Reals) -> bool:
    """Whether a fit that did not converge looks like one that cannot: after enough steps, the
    coefficient that moves most moves away from 0."""
    settings = job.train.optimizer
    if family_of(job).has_dispersion or settings.l1 or settings.l2:
        return False
    most = int(np.argmax(np.abs(change)))
    return total_steps(job) >= ENOUGH_STEPS and bool(change[most] * values[most] > 0)


def _units(job: Job, tensors: Mapping[str, Reals]) -> list[float | None]:
    """The change for one unit of each column; None for the intercept and everything else."""
    weights = tensors["weight"].reshape(-1)
    inverse = dict(zip(job.pipeline.scaled, tensors.get("prepare.inverse", ()), strict=True))
    label = float(job.label.scale) if job.model.kind == "linear" else 1.0
    found: list[float | None] = [None] * (len(weights) + 1)
    for place, term in enumerate(job.pipeline.terms):
        if term.power == 1 and term.log is None:
            steep = float(inverse.get(place, 1.0)) / term.scale
            found[place] = float(weights[place]) * steep * label
    return found


def _cell(value: float | None, form: str) -> str:
    return f"{'-':>13}" if value is None else f"{value:>13{form}}"
