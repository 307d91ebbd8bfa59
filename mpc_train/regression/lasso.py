"""The L1 penalty over shares: Newton steps whose penalised quadratic model is minimised by ADMM.

With scaled coefficients t = S^-1 · coefficients, S fixed at the first step, these rounds converge
to the minimum of the quadratic model at t0 plus the penalty λ · Σ S |t|:

    t ← t0 + T_ρ^-1 (S g) · 2^(G − D − C) + (ρ / 2^C) · T_ρ^-1 (z − u − t0),   T_ρ = T + ρ / 2^C
    v = (3 t − z) / 2 + u,    z ← v cut towards 0 by the threshold λ S / (ρ 2^D),    u ← v − z

z is exactly 0 wherever the penalty wins, and is the start of the next Newton step; u is kept, so
that the rounds of later steps begin near their end. The intercept has threshold 0. Each needs 6
communication rounds, for a product with a fixed matrix and a comparison, for any number of columns;
coordinate descent would take as many for every single column.

ADMM: Boyd et al. 2011; over-relaxed by 3/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.regression.course import (
    LASSO_DUAL,
    LASSO_SCALE,
    LASSO_SPLIT,
    RegressionCourse,
)
from mpc_train.regression.equations import Data
from mpc_train.regression.family import Family
from mpc_train.regression.iteration import iterate, of_mean
from mpc_train.regression.newton import inverse_roots, scaled
from mpc_train.regression.scales import COEFFICIENT_BITS, RHO_BITS, SCALE_BITS, Scales
from protocols.comparison.compare import negative
from protocols.functions.matrix_inverse import inverse
from protocols.ring.rational import mantissa
from protocols.roles.role import Role
from protocols.shares.arithmetic import matmul, multiply, remask, select, truncate
from protocols.shares.masked import Additive, Masked, concatenate, public

INNER_ROUNDS = 25
"""ADMM rounds in each Newton step."""
VALUE_BITS = 32
"""Fractional bits of t, z and u."""
SPREAD_BITS = 22
"""Fractional bits of (ρ / 2^C) · T_ρ^-1, whose eigenvalues are at most 1."""
NARROW_BITS = 48
THRESHOLD_BITS = 16


@dataclass(frozen=True, slots=True)
class LassoFit:
    """coefficients, change: [columns, 1] at scale 2^COEFFICIENT_BITS, as in `newton.Fit`."""

    coefficients: Masked
    change: Masked


@dataclass(frozen=True, slots=True)
class _Model:
    """scale: S [columns, 1]. resolvent: T_ρ^-1. spread: (ρ / 2^C) · T_ρ^-1. threshold: of t."""

    scale: Masked
    resolvent: Masked
    spread: Masked
    threshold: Masked


def fit_lasso(
    role: Role,
    family: Family,
    data: Data,
    sizes: Scales,
    penalty: Fraction,
    steps: int,
    done: Callable[[int], None],
    seen: Callable[[Masked], None] = lambda change: None,
    course: RegressionCourse | None = None,
) -> LassoFit:
    """`steps` Newton steps with the L1 penalty `penalty` on the mean loss; steps count from 1.

    sizes: for `Bounds.sparse`. seen: called with the change of each step. course: see `iterate`.
    """
    course = course or RegressionCourse()
    zeros = public(role, np.zeros((sizes.bounds.columns, 1), np.int64))
    z, u = (course.values.get(name, zeros) for name in (LASSO_SPLIT, LASSO_DUAL))
    scale = course.values.get(LASSO_SCALE)
    model: _Model | None = None

    def step(
        information: Masked | None, gradient: Masked, coefficients: Masked
    ) -> tuple[Masked, Masked]:
        nonlocal z, u, scale, model
        if information is not None:
            if scale is None:
                scale = inverse_roots(information, sizes)
                z = _started(coefficients, information, scale, sizes)
            model = _model(information, scale, penalty, sizes)
        assert model is not None and scale is not None
        z, u = _minimised(model, gradient, z, u, sizes)
        course.values |= {LASSO_SCALE: scale, LASSO_SPLIT: z, LASSO_DUAL: u}
        bits = SCALE_BITS + VALUE_BITS - COEFFICIENT_BITS
        updated = truncate(multiply(model.scale, z), bits).narrowed(64)
        return updated - coefficients, updated

    end = iterate(role, family, data, sizes, steps, step, done, seen, course)
    return LassoFit(end.coefficients, end.change)


def _started(coefficients: Masked, information: Masked, scale: Masked, sizes: Scales) -> Masked:
    """t at the start of the coefficients, where only the intercept is not 0; 1 / S is S · diag
    H."""
    columns = sizes.bounds.columns
    if not coefficients.masked:
        return public(coefficients.role, np.zeros((columns, 1), np.int64))
    last = columns - 1
    inverse_scale = truncate(
        multiply(scale.select([last]), information.select(([last], [last]))), sizes.moment_bits
    )
    bits = SCALE_BITS + COEFFICIENT_BITS - VALUE_BITS
    value = truncate(multiply(inverse_scale, coefficients.select((last,))), bits)
    zeros = public(coefficients.role, np.zeros((last, 1), np.int64))
    return concatenate([zeros, value.reshape(1, 1)]).narrowed(64)


def _model(information: Masked, scale: Masked, penalty: Fraction, sizes: Scales) -> _Model:
    """T_ρ and everything that depends only on it."""
    columns, plan = sizes.bounds.columns, sizes.plan
    lifted = 1 << (plan.matrix_bits - sizes.columns - RHO_BITS)
    matrix = scaled(information, scale, sizes).shift(np.eye(columns, dtype=np.int64) * lifted)
    resolvent = inverse(matrix, plan)
    excess = plan.inverse_bits + sizes.columns + RHO_BITS - SPREAD_BITS
    spread = truncate(resolvent.shares(), excess) if excess > 0 else resolvent.scale(1 << -excess)
    column = scale.reshape(columns, 1)
    factor = of_mean(penalty, sizes) * (1 << RHO_BITS) * Fraction(2) ** (-sizes.diagonal)
    whole, shift = mantissa(factor * Fraction(2) ** (VALUE_BITS - SCALE_BITS), THRESHOLD_BITS)
    words = np.full((columns, 1), whole, np.int64)
    words[-1] = 0
    threshold = column.scale(words)
    if shift:
        threshold = truncate(threshold.shares(), shift)
    return _Model(column, resolvent, spread.narrowed(64), threshold.narrowed(64))


def _minimised(
    model: _Model, gradient: Masked, z: Masked, u: Masked, sizes: Scales
) -> tuple[Masked, Masked]:
    """z and u after INNER_ROUNDS ADMM rounds from the z and u of the last step. 4 communication
    rounds, and 6 for each ADMM round."""
    bits = SCALE_BITS + sizes.gradient_bits
    lengths = truncate(multiply(model.scale, gradient), bits - sizes.scaled_bits)
    bits = sizes.plan.inverse_bits + sizes.scaled_bits + sizes.unit
    centre = z
    base = centre + truncate(matmul(model.resolvent, lengths), bits - VALUE_BITS).narrowed(64)
    for _ in range(INNER_ROUNDS):
        moved = matmul(model.spread, z - u - centre)
        relaxed = (moved + base.shares().scale(1 << SPREAD_BITS)).scale(3)
        relaxed = relaxed - z.shares().scale(1 << SPREAD_BITS)
        v = truncate(relaxed, SPREAD_BITS + 1).narrowed(64) + u
        z = remask(_cut(v, model.threshold))
        u = v - z
    return z, u


def _cut(v: Masked, threshold: Masked) -> Additive:
    """Summands of v moved towards 0 by the threshold, but not beyond 0."""
    columns = v.shape[0]
    ends = concatenate([v - threshold, v + threshold])
    signs = negative(ends.narrowed(NARROW_BITS))
    above, below = slice(0, columns), slice(columns, 2 * columns)
    high = select(signs.select(above).negate(), ends.select(above))
    return high + select(signs.select(below), ends.select(below))
