"""Newton steps over shares, for any objective: a fixed number of times equations, penalty and
step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.regression.course import COEFFICIENTS, RegressionCourse
from mpc_train.regression.equations import Data, equations
from mpc_train.regression.family import Family
from mpc_train.regression.rows import logarithm_of_mean
from mpc_train.regression.scales import COEFFICIENT_BITS, PENALTY_BITS, PREDICTOR_BITS, Scales
from protocols.ring.rational import mantissa
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from protocols.shares.masked import Masked, concatenate, public

Step = Callable[[Masked | None, Masked, Masked], tuple[Masked, Masked]]
"""From H with its penalty (None: that of the previous step), g and the coefficients: the change and
the new coefficients."""


@dataclass(frozen=True, slots=True)
class Iterated:
    """Where the iteration ended, all secret.

    coefficients, change: [columns, 1] at scale 2^COEFFICIENT_BITS, the intercept last; change is
    the last step. squares: the sum of squared residuals before the last step, if requested.
    """

    coefficients: Masked
    change: Masked
    squares: Masked | None


def iterate(
    role: Role,
    family: Family,
    data: Data,
    sizes: Scales,
    steps: int,
    step: Step,
    done: Callable[[int], None],
    seen: Callable[[Masked], None],
    course: RegressionCourse,
    *,
    squares: bool = False,
) -> Iterated:
    """Take `steps` steps from zero, from `start`, or from where `course` is; steps count from 1.

    H is computed once a session if weights are constant. done: called with each step's number.
    seen: called with each change. squares: whether the last step adds up squared residuals.
    """
    change = public(role, np.zeros((sizes.bounds.columns, 1), np.int64))
    coefficients = course.values.get(COEFFICIENTS, change)
    total: Masked | None = None
    first = course.begun + 1
    for number in range(first, steps + 1):
        if number > first:
            course.keep(number - 1)
        role.begin_step(number)
        if number == 1 and family.logarithmic:
            coefficients = start(role, data, sizes)
        sums = equations(
            family,
            data,
            coefficients,
            sizes,
            information=number == first or family.weights_vary,
            squares=squares and number == steps,
        )
        information = None if sums.information is None else ridged(sums.information, sizes)
        gradient = penalised(sums.gradient, coefficients, sizes)
        change, coefficients = step(information, gradient, coefficients)
        course.values[COEFFICIENTS] = coefficients
        total = sums.squares
        seen(change)
        role.finish()
        done(number)
    return Iterated(coefficients, change, total)


def start(role: Role, data: Data, sizes: Scales) -> Masked:
    """The start for a logarithmic link: zeros and, as the intercept, the logarithm of the mean
    label."""
    zeros = public(role, np.zeros((sizes.bounds.columns - 1, 1), np.int64))
    log = logarithm_of_mean([chunk.labels for chunk in data]).scale(
        1 << (COEFFICIENT_BITS - PREDICTOR_BITS)
    )
    return concatenate([zeros, log.reshape(1, 1)])


def ridged(information: Masked, sizes: Scales) -> Masked:
    """H with the L2 penalty on its diagonal, except at the intercept."""
    whole = of_mean(sizes.bounds.ridge, sizes) * Fraction(2) ** (sizes.moment_bits - sizes.diagonal)
    penalty = np.full(sizes.bounds.columns, round(whole), np.int64)
    penalty[-1] = 0
    return information.shift(np.diag(penalty))


def penalised(gradient: Masked, coefficients: Masked, sizes: Scales) -> Masked:
    """g minus the L2 penalty's gradient. 2 rounds, shared with those of g."""
    ridge = sizes.bounds.ridge
    if not ridge:
        return gradient
    bits = sizes.gradient_bits - sizes.gradient - COEFFICIENT_BITS
    whole, shift = mantissa(of_mean(ridge, sizes) * Fraction(2) ** bits, PENALTY_BITS)
    words = np.full((sizes.bounds.columns, 1), whole, np.int64)
    words[-1] = 0
    pull = coefficients.scale(words)
    return gradient - (truncate(pull.shares(), shift) if shift else pull).narrowed(64)


def of_mean(penalty: Fraction, sizes: Scales) -> Fraction:
    """A penalty on the mean loss, for sums that are divided by 2^L instead of the number of
    rows."""
    return penalty * Fraction(sizes.bounds.rows, 1 << sizes.count)
