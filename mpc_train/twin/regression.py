"""Generalised linear models in the clear, float64, for comparison with `mpc_train.regression`.

Newton's method for maximum likelihood and for the L2 penalty, with the same number of steps, the
same start and the same range of linear predictors; with an L1 penalty each step's quadratic model
is minimised by coordinate descent, to the last digit, and steps continue until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.schedule import split, total_steps
from mpc_train.owners.row_norms import bounded_labels
from mpc_train.regression.family import Family
from mpc_train.regression.noise import noise_of
from mpc_train.regression.settings import family_of
from mpc_train.results.plain_model import means
from mpc_train.twin.private import Curator
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MAX_STEPS, MAX_SWEEPS = 200, 10_000


@dataclass(frozen=True)
class PlainFit:
    """coefficients, errors: [features + 1], the intercept last; errors are NaN with a penalty, with
    weights, and for columns that others determine. dispersion: 1 if the family has none."""

    coefficients: Reals
    errors: Reals
    dispersion: float


def fit_plain(
    family: Family,
    inputs: Reals,
    labels: Reals,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    steps: int = 50,
    weights: Reals | None = None,
) -> PlainFit:
    """Fit `labels` [rows] to `inputs` [rows, features]; penalties are on the mean loss.

    weights: how many times each row counts; means are still divided by the number of rows.
    """
    rows = len(labels)
    counts = np.ones(rows) if weights is None else weights
    x = np.column_stack([inputs, np.ones(rows)])
    columns = x.shape[1]
    free = np.append(np.ones(columns - 1), 0.0)
    found = np.zeros(columns)
    if family.logarithmic:
        found[-1] = np.log(labels.mean())
    information = np.eye(columns)
    for _ in range(MAX_STEPS if l1 else steps):
        residual, weight = _rows(family, x @ found, labels)
        information = x.T @ ((counts * weight)[:, None] * x) / rows + np.diag(l2 * free)
        gradient = x.T @ (counts * residual) / rows - l2 * free * found
        before = found
        if l1:
            found = _minimum(information, gradient, found, l1 * free)
            if np.abs(found - before).max() < 1e-12:
                break
        else:
            found = found + np.linalg.lstsq(information, gradient, rcond=None)[0]
    residual, _ = _rows(family, x @ found, labels)
    dispersion = 1.0
    if family.has_dispersion:
        dispersion = float(residual @ residual) / max(rows - columns, 1)
    errors = np.full(columns, np.nan)
    if not l1 and not l2 and weights is None:
        variance = dispersion * np.diag(np.linalg.pinv(information, hermitian=True)) / rows
        errors = np.where(determined(information), np.nan, np.sqrt(np.maximum(variance, 0)))
    return PlainFit(found, errors, dispersion)


def determined(information: Reals) -> NDArray[np.bool_]:
    """Which columns are part of a linear dependence, by the null space of H with its diagonal
    scaled to 1."""
    lengths = np.sqrt(np.diag(information))
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values, vectors = np.linalg.eigh(information * np.outer(scale, scale))
    null = vectors[:, values < 1e-10]
    found: NDArray[np.bool_] = (null**2).sum(axis=1) > 1e-12
    return found


def regression_twin(
    job: Job, inputs: Reals, labels: Reals, weights: Reals | None, curator: Curator
) -> dict[str, Reals]:
    """Weights of the job's regression on pooled rows, by the names of the model's tensors.
    curator: whose noise it has with `[privacy]`."""
    if job.privacy:
        found = private_fit(job, inputs, labels, curator)
    else:
        found = pooled_fit(job, inputs, labels, weights).coefficients
    return {"weight": found[:-1].reshape(1, -1), "bias": found[-1:]}


def pooled_fit(job: Job, inputs: Reals, labels: Reals, weights: Reals | None = None) -> PlainFit:
    """The job's regression on the training rows among all rows."""
    rows, _ = split(job)
    settings = job.train.optimizer
    return fit_plain(
        family_of(job),
        inputs[rows],
        labels[rows],
        l1=float(settings.l1),
        l2=float(settings.l2),
        steps=total_steps(job),
        weights=None if weights is None else weights[rows],
    )


GRID_BITS = 32
"""Fractional bits of a twin's noise."""


def private_fit(job: Job, inputs: Reals, labels: Reals, curator: Curator) -> Reals:
    """Coefficients of a regression whose sums have noise, on clipped rows; the intercept last.

    The mechanism of `mpc_train.privacy.newton` by other means: exact solutions in the place of an
    iteration over shares, and for a linear model the limit of its steps.
    """
    kind, sums = family_of(job), noise_of(job)
    assert sums is not None
    rows, _ = split(job)
    x = np.column_stack([inputs[rows], np.ones(len(rows))])
    y, columns = bounded_labels(job, labels, rows)[rows], x.shape[1]
    ridge = float(job.train.optimizer.l2) * len(rows)
    free = np.append(np.ones(columns - 1), 0.0)
    most = job.fixed_point.activation_limit

    def numbers(sigma: Fraction, count: int) -> Reals:
        return curator.drawn(job, sigma, count, GRID_BITS)

    def moments(weight: Reals) -> Reals:
        """With a diagonal of deviation σ and σ/√2 elsewhere: half the sum of a matrix of numbers
        with deviation σ and its transpose."""
        drawn = numbers(sums.information, columns * columns).reshape(columns, columns)
        found: Reals = x.T @ (weight[:, None] * x) + (drawn + drawn.T) / 2
        return found

    found = np.zeros(columns)
    if kind.name == "linear":
        information = moments(np.ones(len(y)))
        target = x.T @ y + numbers(sums.gradient, columns)
        damped = information + ridge * np.eye(columns)
        for _ in range(total_steps(job)):
            gradient = target - information @ found - ridge * free * found
            found = found + np.linalg.solve(damped, gradient)
        return found
    if kind.logarithmic:
        total = float(y.sum() + numbers(sums.labels, 1)[0])
        found[-1] = np.log(np.clip(total / len(y), 2.0**-6, 2.0**12))
    for _ in range(total_steps(job)):
        residual, weight = _rows(kind, x @ found, y)
        gradient = x.T @ residual + numbers(sums.gradient, columns) - ridge * free * found
        damped = moments(weight) + ridge * np.eye(columns)
        found = np.clip(found + np.linalg.solve(damped, gradient), -most, most)
    return found


def _rows(family: Family, z: Reals, y: Reals) -> tuple[Reals, Reals]:
    ones = np.ones(len(y))
    if family.name == "linear":
        return y - z, ones
    if family.name == "logistic":
        mean = 1 / (1 + np.exp(-z))
        return y - mean, mean * (1 - mean)
    mean = means(family, z)
    return (y - mean, mean) if family.name == "poisson" else (y / mean - 1, ones)


def _minimum(information: Reals, gradient: Reals, at: Reals, penalty: Reals) -> Reals:
    """The minimum of the quadratic model around `at` with Σ penalty · |coefficient|."""
    found = at.copy()
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for j in range(len(found)):
            slope = gradient[j] - information[j] @ (found - at)
            target = information[j, j] * found[j] + slope
            new = np.sign(target) * max(abs(target) - penalty[j], 0.0) / information[j, j]
            largest = max(largest, abs(new - found[j]))
            found[j] = new
        if largest < 1e-14:
            break
    return found
