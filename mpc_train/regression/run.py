"""A job's regression at every computing node: from training rows to a model and its statistics.

The counterpart of `mpc_train.training.trainer` for `optimizer = { name = "newton" }`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.jobs.schedule import split, total_steps
from mpc_train.jobs.sealed import (
    CHANGE,
    DEPENDENCE,
    DISPERSION,
    INFLATION,
    SCALE,
    regression_shapes,
)
from mpc_train.regression.course import RegressionCourse
from mpc_train.regression.equations import at_scale, prepared
from mpc_train.regression.family import Family
from mpc_train.regression.lasso import fit_lasso
from mpc_train.regression.newton import fit
from mpc_train.regression.noise import noise_of
from mpc_train.regression.rows import mean_of
from mpc_train.regression.scales import COEFFICIENT_BITS, PREDICTOR_BITS
from mpc_train.regression.settings import family_of, sizes_of
from mpc_train.training.range_guard import RangeGuard, rows_looked_at, words_of
from mpc_train.training.trainer import Training
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.matrix_inverse import unresolved
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Regressed:
    """tensors: weight [1, inputs] and bias [1], as in torch.nn.Linear. secret: the other sealed
    tensors, as in `regression_shapes`."""

    family: Family
    tensors: dict[str, MaskedTensor]
    secret: dict[str, Masked]
    training: Training

    def evaluated(self, inputs: MaskedTensor) -> MaskedTensor:
        """Outputs for rows [rows, inputs]; for a logarithmic link, means."""
        outputs = _predictor(inputs, self.tensors)
        if not self.family.logarithmic:
            return outputs
        f = outputs.fraction_bits
        mean = mean_of(self.family, at_scale(outputs.masked(), f, PREDICTOR_BITS))
        return MaskedTensor(at_scale(mean, PREDICTOR_BITS, f))


def _predictor(inputs: MaskedTensor, tensors: Mapping[str, MaskedTensor]) -> MaskedTensor:
    found: MaskedTensor = inputs.matmul(tensors["weight"].t()).add(tensors["bias"])
    return found


def regress(
    job: Job,
    role: Role,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    done: Callable[[int], None],
    weights: MaskedTensor | None = None,
    guard: RangeGuard | None = None,
    course: RegressionCourse | None = None,
) -> Regressed:
    """Fit the job's regression to its training rows among `inputs` and `labels`.

    weights: how many times each row counts, [rows, 1]; None: once. Steps count from 1; `done` is
    called with the number of each finished step. guard: checks coefficients, all their changes, and
    linear predictors of some rows. course: where it goes on, and what later sessions need.
    """
    family, sizes, settings = family_of(job), sizes_of(job), job.train.optimizer
    rows, _ = split(job)
    counts = None if weights is None else weights.masked()
    data = prepared(inputs.masked(), labels.masked(), rows, job.fraction_bits, sizes, counts)
    training, before = Training(), role.rounds
    begin = time.perf_counter()

    def timed(number: int) -> None:
        nonlocal begin
        now = time.perf_counter()
        training.steps.add(now - begin)
        begin = now
        done(number)

    # The ring is sized for twice the bounds that a job states.
    most = int(2 * sizes.bounds.coefficient)

    def seen(change: Masked) -> None:
        if guard is not None:
            guard.sample(change, most << COEFFICIENT_BITS)
            guard.end_step()

    steps = total_steps(job)
    secret: dict[str, Masked] = {}
    if settings.l1:
        penalty = Fraction(settings.l1)
        sparse = fit_lasso(role, family, data, sizes, penalty, steps, timed, seen, course)
        coefficients, change = sparse.coefficients, sparse.change
    else:
        found = fit(role, family, data, sizes, steps, timed, seen, course, noise_of(job))
        coefficients, change = found.coefficients, found.change
        index = np.arange(sizes.bounds.columns)
        solver = found.solver
        secret = {SCALE: solver.scale, INFLATION: solver.inverse.select((index, index))}
        if job.reveal.statistics:
            secret[DEPENDENCE] = unresolved(solver.matrix, solver.inverse, sizes.plan)
        if found.unresolved is not None:
            secret[DEPENDENCE] = found.unresolved
        if found.squares is not None:
            secret[DISPERSION] = found.squares
    secret[CHANGE] = change.reshape(-1)
    training.rounds = role.rounds - before
    values = truncate(coefficients.shares(), COEFFICIENT_BITS - job.fraction_bits).reshape(-1)
    tensors = {
        "weight": MaskedTensor(values.select(slice(0, -1)).reshape(1, -1)),
        "bias": MaskedTensor(values.select(slice(-1, None))),
    }
    if guard is not None:
        guard.look(coefficients, most << COEFFICIENT_BITS)
        predictor = _predictor(inputs[rows_looked_at(job)], tensors)
        guard.look(*words_of(predictor, most))
        guard.settle()
    wanted = {name: secret[name] for name in regression_shapes(job)}
    if course is not None:
        course.values = wanted | {name: tensor.masked() for name, tensor in tensors.items()}
    return Regressed(family, tensors, wanted, training)


def regressed(job: Job, values: Mapping[str, Masked]) -> Regressed:
    """The regression that was over before this session. values: those of its course."""
    tensors = {name: MaskedTensor(values[name]) for name in job.shapes}
    secret = {name: values[name] for name in regression_shapes(job)}
    return Regressed(family_of(job), tensors, secret, Training())
