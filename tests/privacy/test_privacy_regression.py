"""What corrupted evaluators see of a regression is the same for all data, also for data on which it
fails: copied columns, constant ones, classes that an input separates."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mpc_train.regression.family import Family, FamilyName
from mpc_train.regression.scales import COEFFICIENT_BITS
from mpc_train.twin.regression import fit_plain
from protocols.roles.role import Role
from tests.support.loopback import combine_masked, shares_of
from tests.support.privacy import CORRUPTED, honest_owner, same_views
from tests.support.regressions import brought, outcome, rows_for, sizes_for
from tests.support.transcript_first import run_scripted

SHAPE = (24, 2)
STEPS = 3
FAST = {(2, (1,)), (3, (0, 2))}
SETTINGS = [
    pytest.param(*setting, marks=[] if setting in FAST else pytest.mark.slow)
    for setting in CORRUPTED
]


def data_of(name: FamilyName, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a rule, or rows that have no maximum or no single one."""
    inputs, labels = rows_for(name, *SHAPE, seed, strength=0.3)
    if seed == 1:
        inputs = np.column_stack([inputs[:, 0], inputs[:, 0]])
    if seed == 2:
        inputs, labels = inputs * [0, 1], (inputs[:, 1] > 0).astype(np.float64)
    return inputs, np.where(name == "gamma", np.maximum(labels, 0.01), labels)


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize(
    ("name", "l1"),
    [
        ("linear", Fraction(0)),
        ("logistic", Fraction(0)),
        ("poisson", Fraction(0)),
        ("gamma", Fraction(0)),
        ("linear", Fraction(1, 20)),
    ],
)
def test_views_do_not_depend_on_the_data(
    name: FamilyName, l1: Fraction, evaluators: int, corrupted: tuple[int, ...]
) -> None:
    family, views = Family(name), []
    sizes = sizes_for(family, SHAPE, l1=bool(l1))
    owner = honest_owner(evaluators, corrupted)
    for seed in range(3):
        inputs, labels = data_of(name, seed)

        def program(role: Role, inputs: np.ndarray = inputs, labels: np.ndarray = labels) -> Any:
            np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
            x, y = brought(role, inputs, labels, (owner, owner))
            found = outcome(family, x, y, sizes, STEPS, l1, lambda number: None)
            return [shares_of(value) for value in found]

        results, view = run_scripted(program, evaluators, corrupted, coins=seed)
        words = combine_masked([parts[0] for parts in results]).reshape(-1)
        if not seed:
            exact = fit_plain(family, inputs, labels, l1=float(l1), steps=STEPS).coefficients
            assert np.abs(words / 2.0**COEFFICIENT_BITS - exact).max() < 0.01
        views.append(view)
    same_views(views)
