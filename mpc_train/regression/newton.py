"""Newton's method over shares for a generalised linear model.

Each step solves H · step = g (`scales` names the quantities):

1. S: inverse roots of H's diagonal, which give all columns the same length, whatever their unit.
2. T = S H S / 2^C and its inverse Y.
3. coefficients += S Y S g · 2^(G − D − C), and the L2 penalty's part in g and H.

An inexact Y or S slows the convergence accordingly but does not move the fixed point: coefficients
are as exact as g, and only standard errors are limited to the precision of Y. H is computed once if
weights are constant (linear, gamma).

Rounds of a step: 11 for S, 4 for T, `InversePlan.rounds` (46 for 30 features, 50 for 200), 6 for
the step, and those of the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.regression.course import UNRESOLVED, RegressionCourse
from mpc_train.regression.equations import Data
from mpc_train.regression.family import Family
from mpc_train.regression.iteration import iterate
from mpc_train.regression.noise import Noise
from mpc_train.regression.scales import (
    COARSE_SCALE_BITS,
    COEFFICIENT_BITS,
    SCALE_BITS,
    SCALE_RANGE_BITS,
    Scales,
)
from protocols.functions.inverse_root import times_inverse_root
from protocols.functions.matrix_inverse import inverse, unresolved
from protocols.ring.rational import ROOT_BITS, root_range
from protocols.roles.role import Role
from protocols.shares.arithmetic import matmul, multiply, truncate
from protocols.shares.masked import Masked, public

ROOT_RESULT_BITS = 16
"""The inverse root gives S below 2^16 as a word with 4 fractional bits; 16 more are kept."""


@dataclass(frozen=True, slots=True)
class Solver:
    """S [columns] at scale 2^SCALE_BITS, T and Y for one H."""

    scale: Masked
    matrix: Masked
    inverse: Masked


@dataclass(frozen=True, slots=True)
class Fit:
    """Where the iteration ended, all secret.

    coefficients, change: [columns, 1] at scale 2^COEFFICIENT_BITS, the intercept last; change is
    the last step. solver: that of the last step. squares: the sum of squared residuals before the
    last step, if the family has a dispersion. unresolved: with noise, how far the matrices of all
    steps could not be inverted, added up, [columns] at scale 2^UNRESOLVED_BITS.
    """

    coefficients: Masked
    change: Masked
    solver: Solver
    squares: Masked | None
    unresolved: Masked | None = None


def fit(
    role: Role,
    family: Family,
    data: Data,
    sizes: Scales,
    steps: int,
    done: Callable[[int], None],
    seen: Callable[[Masked], None] = lambda change: None,
    course: RegressionCourse | None = None,
    noise: Noise | None = None,
) -> Fit:
    """`steps` Newton steps, see `iterate`. With noise each solver is also checked, in rounds that
    it shares with its step."""
    course = course or RegressionCourse()
    solver: Solver | None = None
    begun = course.begun

    def step(
        information: Masked | None, gradient: Masked, coefficients: Masked
    ) -> tuple[Masked, Masked]:
        nonlocal solver
        if information is not None:
            solver = solver_of(information, sizes)
            # Of a linear regression that goes on, the same matrix was checked before.
            if noise is not None and (family.weights_vary or not begun):
                rest = unresolved(solver.matrix, solver.inverse, sizes.plan)
                before = course.values.get(UNRESOLVED)
                course.values[UNRESOLVED] = rest if before is None else before + rest
        assert solver is not None
        change = newton_step(solver, gradient, sizes)
        return change, coefficients + change

    squares = family.has_dispersion and noise is None
    end = iterate(
        role, family, data, sizes, steps, step, done, seen, course, squares=squares, noise=noise
    )
    assert solver is not None
    rest = course.values.get(UNRESOLVED)
    return Fit(end.coefficients, end.change, solver, end.squares, rest)


def solver_of(information: Masked, sizes: Scales) -> Solver:
    """Parts 1 and 2 of a step, for H at scale 2^moment_bits."""
    scale = inverse_roots(information, sizes)
    matrix = scaled(information, scale, sizes)
    return Solver(scale, matrix, inverse(matrix, sizes.plan))


def inverse_roots(information: Masked, sizes: Scales) -> Masked:
    """1: S [columns] at scale 2^SCALE_BITS, within a few per cent of 1 / √(diag H). 11 rounds.

    A diagonal below 2^-24 is replaced by that: a column of zeros has S = 2^12.
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
