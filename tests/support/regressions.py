"""Regressions over shares in one process, and rows that follow a known rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mpc_train.regression.equations import prepared
from mpc_train.regression.family import Family, FamilyName
from mpc_train.regression.lasso import fit_lasso
from mpc_train.regression.newton import fit
from mpc_train.regression.scales import (
    COEFFICIENT_BITS,
    SCALE_BITS,
    Bounds,
    Scales,
    scales,
    square_bits,
)
from protocols.functions.matrix_inverse import unresolved
from protocols.functions.matrix_inverse_plan import UNRESOLVED, UNRESOLVED_BITS
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of

BITS = 20
LIMIT, LABEL_LIMIT = Fraction(16), Fraction(64)


@dataclass(frozen=True)
class Found:
    """What came out over shares, decoded, and what it took."""

    coefficients: np.ndarray
    change: np.ndarray
    errors: np.ndarray
    inflation: np.ndarray
    determined: np.ndarray
    """Which inputs are said to be determined by others."""
    rounds: list[int]
    """After each step."""


def sizes_for(
    family: Family, shape: tuple[int, int], ridge: Fraction = Fraction(0), l1: bool = False
) -> Scales:
    bounds = Bounds(
        shape[1] + 1,
        shape[0],
        LIMIT,
        family.most_residual(LABEL_LIMIT, Fraction(64)),
        family.most_weight(),
        Fraction(64),
        ridge,
        family.weights_vary,
        l1,
        3 if l1 and family.name == "poisson" else 0,
    )
    return scales(bounds)


def rows_for(
    name: FamilyName, rows: int, features: int, seed: int = 0, strength: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs, and labels of the family around a random rule."""
    generator = np.random.default_rng(seed)
    mix = np.linalg.cholesky(0.6 * np.eye(features) + 0.4)
    inputs = (generator.normal(size=(rows, features)) @ mix.T).clip(-8, 8)
    rule = generator.normal(size=features) * strength / features**0.5
    z = (inputs @ rule + 0.3).clip(-3.5, 3.5)
    if name == "linear":
        labels = z + 0.5 * generator.normal(size=rows)
    elif name == "logistic":
        labels = (generator.random(rows) < 1 / (1 + np.exp(-z))).astype(np.float64)
    elif name == "poisson":
        labels = generator.poisson(np.exp(z)).astype(np.float64)
    else:
        labels = np.exp(z) * generator.gamma(4, size=rows) / 4
    return np.rint(inputs * 2.0**BITS) / 2.0**BITS, labels.clip(-64, 64)


def brought(
    role: Role, inputs: np.ndarray, labels: np.ndarray, owners: tuple[int, int]
) -> tuple[Masked, Masked]:
    words = [np.rint(values * 2.0**BITS).astype(np.int64) for values in (inputs, labels)]
    return secret(role, words[0], owners[0]), secret(role, words[1].reshape(-1, 1), owners[1])


def outcome(
    family: Family,
    x: Masked,
    y: Masked,
    sizes: Scales,
    steps: int,
    l1: Fraction,
    done: Callable[[int], None],
) -> list[Masked]:
    """Coefficients, the last change and, without an L1 penalty, what errors follow from."""
    role, data = x.role, prepared(x, y, np.arange(x.shape[0]), BITS, sizes)
    with np.errstate(over="ignore"):
        if l1:
            sparse = fit_lasso(role, family, data, sizes, l1, steps, done)
            return [sparse.coefficients, sparse.change]
        found = fit(role, family, data, sizes, steps, done)
        index = np.arange(sizes.bounds.columns)
        solver = found.solver
        secrets = [found.coefficients, found.change, solver.scale]
        secrets.append(solver.inverse.select((index, index)))
        secrets.append(unresolved(solver.matrix, solver.inverse, sizes.plan))
        return [*secrets, *([] if found.squares is None else [found.squares])]


def over_shares(
    family: Family,
    inputs: np.ndarray,
    labels: np.ndarray,
    steps: int = 8,
    *,
    l1: Fraction = Fraction(0),
    l2: Fraction = Fraction(0),
    evaluators: int = 2,
    net: LockstepLoopback | None = None,
) -> Found:
    """Newton steps, or those with an L1 penalty; errors are NaN for the latter."""
    sizes = sizes_for(family, inputs.shape, l2, bool(l1))
    rounds: list[int] = []

    def program(role: Role) -> list[Any]:
        def done(number: int) -> None:
            if role.is_first:
                rounds.append(role.rounds)

        x, y = brought(role, inputs, labels, (0, 1))
        return [shares_of(value) for value in outcome(family, x, y, sizes, steps, l1, done)]

    results = run_lockstep(program, evaluators, net=net)
    words = [combine_masked(parts).reshape(-1) for parts in zip(*results, strict=True)]
    coefficients, change = (values / 2.0**COEFFICIENT_BITS for values in words[:2])
    if l1:
        empty = np.full(len(coefficients), np.nan)
        return Found(coefficients, change, empty, empty, empty > 0, rounds)
    inflation = words[3] / 2.0 ** (sizes.plan.inverse_bits + sizes.columns)
    variance = (words[2] / 2.0**SCALE_BITS) ** 2 * inflation / 2.0 ** (sizes.diagonal + sizes.count)
    if family.has_dispersion:
        freedom = inputs.shape[0] - inputs.shape[1] - 1
        variance = variance * (words[5][0] / 2.0 ** square_bits(sizes) / freedom)
    determined = words[4] / 2.0**UNRESOLVED_BITS > UNRESOLVED
    return Found(coefficients, change, np.sqrt(variance), inflation, determined, rounds)
