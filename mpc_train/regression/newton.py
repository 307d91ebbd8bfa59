"""Newton's method over shares for a generalised linear model.

Each step solves H · step = g (`scales` names the quantities):

1. S: inverse roots of H's diagonal, so that columns have one length whatever their unit.
2. T = S H S / 2^C and its inverse Y.
3. coefficients += S Y S g · 2^(G − D − C), and the L2 penalty's part in g and H.

An inexact Y or S slows the convergence by as much and moves no fixed point: coefficients are as
exact as g, and only standard errors are as exact as Y. H is computed once where weights are
constant (linear, gamma).

Rounds of a step: 11 for S, 4 for T, `InversePlan.rounds` (46 for 30 features, 50 for 200), 6 for
the step, and those of the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.regression.equations import Data, equations
from mpc_train.regression.family import Family
from mpc_train.regression.rows import logarithm_of_mean
from mpc_train.regression.scales import (
    COARSE_SCALE_BITS,
    COEFFICIENT_BITS,
    PENALTY_BITS,
    PREDICTOR_BITS,
    SCALE_BITS,
    SCALE_RANGE_BITS,
    Scales,
)
from protocols.functions.inverse_root import times_inverse_root
from protocols.functions.matrix_inverse import inverse
from protocols.ring.rational import ROOT_BITS, mantissa, root_range
from protocols.roles.role import Role
from protocols.shares.arithmetic import matmul, multiply, truncate
from protocols.shares.masked import Masked, concatenate, public

ROOT_RESULT_BITS = 16
"""S comes out of the inverse root below 2^16 as a word of 4 fractional bits, 16 more are kept."""


@dataclass(frozen=True, slots=True)
class Solver:
    """S [columns] at scale 2^SCALE_BITS, T and Y of one H."""

    scale: Masked
    matrix: Masked
    inverse: Masked


@dataclass(frozen=True, slots=True)
class Fit:
    """Where the iteration ended, all secret.

    coefficients, change: [columns, 1] at scale 2^COEFFICIENT_BITS, the intercept last; change is
    the last step. solver: of the last step. squares: the sum of squared residuals before the last
    step, where the family has a dispersion.
    """

    coefficients: Masked
    change: Masked
    solver: Solver
    squares: Masked | None


def fit(
    role: Role,
    family: Family,
    data: Data,
    sizes: Scales,
    steps: int,
    done: Callable[[int], None],
    seen: Callable[[Masked], None] = lambda change: None,
) -> Fit:
    """`steps` Newton steps from zero, or from `start`; steps count from 1. seen: is shown each
    step."""
    coefficients = public(role, np.zeros((sizes.bounds.columns, 1), np.int64))
    solver: Solver | None = None
    change: Masked | None = None
    squares = None
    for number in range(1, steps + 1):
        role.begin_step(number)
        if number == 1 and family.logarithmic:
            coefficients = start(role, data, sizes)
        last = number == steps
        fresh = solver is None or family.weights_vary
        found = equations(
            family,
            data,
            coefficients,
            sizes,
            information=fresh,
            squares=last and family.has_dispersion,
        )
        if found.information is not None:
            solver = solver_of(ridged(found.information, sizes), sizes)
        assert solver is not None
        gradient = penalised(found.gradient, coefficients, sizes)
        change = newton_step(solver, gradient, sizes)
        coefficients, squares = coefficients + change, found.squares
        seen(change)
        role.finish()
        done(number)
    assert solver is not None and change is not None
    return Fit(coefficients, change, solver, squares)


def start(role: Role, data: Data, sizes: Scales) -> Masked:
    """Zeros and, as the intercept, the logarithm of the mean label: for a logarithmic link."""
    zeros = public(role, np.zeros((sizes.bounds.columns - 1, 1), np.int64))
    log = logarithm_of_mean([chunk.labels for chunk in data]).scale(
        1 << (COEFFICIENT_BITS - PREDICTOR_BITS)
    )
    return concatenate([zeros, log.reshape(1, 1)])


def ridged(information: Masked, sizes: Scales) -> Masked:
    """H with the L2 penalty on its diagonal, the intercept left out."""
    whole = of_mean(sizes.bounds.ridge, sizes) * Fraction(2) ** (sizes.moment_bits - sizes.diagonal)
    penalty = np.full(sizes.bounds.columns, round(whole), np.int64)
    penalty[-1] = 0
    return information.shift(np.diag(penalty))


def penalised(gradient: Masked, coefficients: Masked, sizes: Scales) -> Masked:
    """g less the L2 penalty's gradient. 2 rounds, in common with those of g."""
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
    """A penalty of the mean loss, for sums that are divided by 2^L instead of the rows."""
    return penalty * Fraction(sizes.bounds.rows, 1 << sizes.count)


def solver_of(information: Masked, sizes: Scales) -> Solver:
    """1 and 2, for H at scale 2^moment_bits."""
    scale = inverse_roots(information, sizes)
    matrix = scaled(information, scale, sizes)
    return Solver(scale, matrix, inverse(matrix, sizes.plan))


def inverse_roots(information: Masked, sizes: Scales) -> Masked:
    """1: S [columns] at scale 2^SCALE_BITS, within a few per cent of 1 / √(diag H). 11 rounds.

    A diagonal below 2^-24 is taken as that: a column of zeros has S = 2^12.
    """
    columns, role = sizes.bounds.columns, information.role
    index = np.arange(columns)
    bits = sizes.moment_bits
    least = 1 << (bits - 2 * SCALE_RANGE_BITS)
    diagonal = information.select((index, index)).narrowed(64).shift(least)
    where = root_range(least, (1 << bits) + least)
    one = public(role, np.ones((columns,), np.int64))
    lowered = ROOT_RESULT_BITS - SCALE_RANGE_BITS
    half = Fraction(1 << (bits // 2)) * (Fraction(181, 128) if bits % 2 else 1)
    found = times_inverse_root(one, diagonal, where, half * (1 << lowered))
    return truncate(found, ROOT_BITS - SCALE_BITS + lowered)


def scaled(information: Masked, scale: Masked, sizes: Scales) -> Masked:
    """2: T = S H S / 2^C at scale 2^matrix_bits. 4 rounds."""
    columns = sizes.bounds.columns
    half = truncate(multiply(information, scale.reshape(1, columns)), SCALE_BITS)
    whole = multiply(half, scale.reshape(columns, 1))
    bits = sizes.moment_bits + SCALE_BITS + sizes.columns
    return truncate(whole, bits - sizes.plan.matrix_bits)


def newton_step(solver: Solver, gradient: Masked, sizes: Scales) -> Masked:
    """3: the step at scale 2^COEFFICIENT_BITS. 6 rounds."""
    coarse = truncate(solver.scale.shares(), SCALE_BITS - COARSE_SCALE_BITS).reshape(-1, 1)
    bits = COARSE_SCALE_BITS + sizes.gradient_bits
    lengths = truncate(multiply(coarse, gradient), bits - sizes.scaled_bits)
    bits = sizes.plan.inverse_bits + sizes.scaled_bits
    direction = truncate(matmul(solver.inverse, lengths), bits - sizes.direction_bits)
    bits = COARSE_SCALE_BITS + sizes.direction_bits + sizes.unit
    return truncate(multiply(coarse, direction), bits - COEFFICIENT_BITS)
