"""A recipient's table of results: coefficients, standard errors, p-values. In the clear.

From what is sealed beside the model (`mpc_train.jobs.job_regression`), for coefficient j, the
intercept last:

    variance_j = dispersion · scale_j² · inflation_j / 2^(D + L),    inflation = diag(Y) / 2^C
    dispersion = sum of squared residuals / (rows - coefficients),   1 for logistic and Poisson

and the statistic is coefficient / standard error: t with rows - coefficients degrees of freedom
where a dispersion was estimated, z elsewhere; p-values are two-sided. `inflation` is the variance
inflation factor (of a generalised one where rows have weights). An input that the others determine
has no standard error here, and neither has a constant one.

Coefficients are those of the model's inputs, as the job centres and scales them; `per_unit` is the
change for one unit of the column, where the input is the column centred and scaled.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr

from mpc_train.jobs.job_regression import (
    CHANGE,
    DISPERSION,
    INFLATION,
    SCALE,
    bounds_of,
    family_of,
    sizes_of,
)
from mpc_train.regression.scales import LEAST_EIGENVALUE

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Reals = NDArray[np.float64]
COEFFICIENTS_FILE = "coefficients.csv"
INTERCEPT = "(intercept)"
CONVERGED = 0.01
"""The last step was at most this part of a standard error."""
CONVERGED_PLAIN = 1e-3
"""Without standard errors: of the largest coefficient, or of 1."""


@dataclass(frozen=True)
class Row:
    """One coefficient; None: not estimable, or not asked for."""

    name: str
    coefficient: float
    std_error: float | None = None
    statistic: float | None = None
    p_value: float | None = None
    inflation: float | None = None
    per_unit: float | None = None


@dataclass(frozen=True)
class Results:
    """What a regression says. statistic: "t" or "z", "" without standard errors."""

    rows: tuple[Row, ...]
    statistic: str
    dispersion: float
    freedom: int
    converged: bool

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
        if not self.converged:
            found.append(
                "The last step still moved coefficients: not converged. Classes that an input "
                "separates, or too few steps (train.optimizer.steps)"
            )
        return found


def results(job: Job, tensors: Mapping[str, Reals]) -> Results:
    """The table from the opened tensors of a regression's job, by name."""
    family, bounds = family_of(job), bounds_of(job)
    values = np.append(tensors["weight"].reshape(-1), tensors["bias"].reshape(-1))
    names, units = [*job.pipeline.names, INTERCEPT], _units(job, tensors)
    change = np.abs(tensors[CHANGE])
    freedom = bounds.rows - bounds.columns
    if SCALE not in tensors:
        plain = tuple(
            Row(name, float(value), per_unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        )
        settled = change.max() <= CONVERGED_PLAIN * max(1.0, np.abs(values).max())
        return Results(plain, "", 1.0, freedom, bool(settled))
    sizes = sizes_of(job)
    dispersion = 1.0
    if family.has_dispersion:
        dispersion = float(tensors[DISPERSION][0]) / freedom
    inflation = tensors[INFLATION]
    variance = dispersion * tensors[SCALE] ** 2 * np.maximum(inflation, 0)
    errors = np.sqrt(variance / 2.0 ** (sizes.diagonal + sizes.count))
    known = (inflation <= float(1 / LEAST_EIGENVALUE)) & (errors > 0)
    statistic = np.divide(values, errors, out=np.zeros_like(values), where=known)

    def p_value(value: float) -> float:
        lower = -abs(value)
        return 2 * float(stdtr(freedom, lower) if family.has_dispersion else ndtr(lower))

    rows = []
    for j, name in enumerate(names):
        row = Row(name, float(values[j]), inflation=float(inflation[j]), per_unit=units[j])
        if known[j]:
            row = replace(
                row,
                std_error=float(errors[j]),
                statistic=float(statistic[j]),
                p_value=p_value(float(statistic[j])),
            )
        rows.append(row)
    settled = (change[known] <= CONVERGED * errors[known]).all()
    return Results(
        tuple(rows), "t" if family.has_dispersion else "z", dispersion, freedom, bool(settled)
    )


def _units(job: Job, tensors: Mapping[str, Reals]) -> list[float | None]:
    """The change for one unit of each column; None for the intercept and what is no such thing."""
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
