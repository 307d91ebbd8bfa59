"""What evaluators see of updates and of their sum is fixed before the updates are known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mpc_train.federated.adding import add_up, entered
from mpc_train.federated.limits import Limits
from protocols.functions.norm_bound import BUCKETS, REPEATS
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.privacy import CORRUPTED, same_views
from tests.support.transcript_first import OutsideStub, run_scripted

OUTPUTS = frozenset({Output("norms", 1), Output("norms", 2), Output("sum", 1)})
ROWS = (3, 5)


def program(
    role: Any,
    limits: Limits,
    updates: Sequence[np.ndarray],
    sizes: Sequence[int] | None = None,
    variance: Fraction | None = None,
) -> Any:
    """A round of two owners that do not evaluate; the bits, and the summands of the sum."""
    gate = RevealGate(OUTPUTS)

    def take(words: np.ndarray) -> Masked:
        part = None if role.is_dealer else OutsideStub(role, words).take(words.shape)
        return entered(role, words.shape, part)

    takes = [lambda words=words: take(words) for words in updates]
    rows: Any = ROWS
    if sizes is not None:
        rows = [lambda size=size: take(np.array([size])) for size in sizes]

    def decide(start: int, bits: Masked) -> tuple[bool, ...]:
        return gate.decide_each("norms", start + 1, bits)

    found = add_up(role, limits, takes, rows, decide, 100 if sizes is not None else 0, variance)
    assert found.total is not None
    return found.within, gate.summand_for_recipients("sum", 1, found.total)


def plain(summands: Sequence[np.ndarray]) -> np.ndarray:
    total: np.ndarray = sum(summands[1:], summands[0])
    return total


SIZES = {"each element": 12, "sums of many": BUCKETS * REPEATS + 3}


@pytest.mark.parametrize("evaluators, corrupted", CORRUPTED)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_views_do_not_depend_on_updates(
    size: int, evaluators: int, corrupted: tuple[int, ...]
) -> None:
    if size > 100 and evaluators > 2:
        pytest.skip("the same for each number of evaluators")
    limits, views = Limits(Fraction(1), size), []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        updates = [limits.rounded(rng.normal(size=size))[0] for _ in ROWS]

        def run(role: Role, updates: Sequence[np.ndarray] = updates) -> Any:
            return program(role, limits, updates)

        with np.errstate(over="ignore"):
            # One choice of coins: the shares of an opened bit that honest evaluators send are
            # random, of the same sum.
            results, view = run_scripted(run, evaluators, corrupted)
            assert {bits for bits, _ in results} == {(True, True)}
            expected = sum(n * one for n, one in zip(ROWS, updates, strict=True))
            np.testing.assert_array_equal(plain([one for _, one in results[:-1]]), expected)
        views.append(view)
    same_views(views)


@pytest.mark.parametrize("evaluators, corrupted", CORRUPTED[:2])
def test_views_do_not_depend_on_sizes_that_are_secret(
    evaluators: int, corrupted: tuple[int, ...]
) -> None:
    limits, views = Limits(Fraction(1), 5), []
    for seed, sizes in enumerate([(1, 100), (7, 7), (99, 2)]):
        rng = np.random.default_rng(seed)
        updates = [limits.rounded(rng.normal(size=5))[0] for _ in ROWS]

        def run(
            role: Role, updates: Sequence[np.ndarray] = updates, sizes: tuple[int, int] = sizes
        ) -> Any:
            return program(role, limits, updates, sizes)

        with np.errstate(over="ignore"):
            # One choice of coins: the shares of an opened bit that honest evaluators send are
            # random, of the same sum.
            results, view = run_scripted(run, evaluators, corrupted)
            expected = sum(n * one for n, one in zip(sizes, updates, strict=True))
            expected = np.append(expected, sum(sizes))
            np.testing.assert_array_equal(plain([one for _, one in results[:-1]]), expected)
        views.append(view)
    same_views(views)


@pytest.mark.parametrize("evaluators, corrupted", CORRUPTED[:2])
def test_views_do_not_depend_on_what_is_under_noise(
    evaluators: int, corrupted: tuple[int, ...]
) -> None:
    """The dealer's part of the noise reaches an evaluator as a share, like every correction."""
    limits, views, totals = Limits(Fraction(1), 9), [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        updates = [limits.rounded(rng.normal(size=9))[0] for _ in ROWS]

        def run(role: Role, updates: Sequence[np.ndarray] = updates) -> Any:
            return program(role, limits, updates, variance=Fraction(1 << 40))

        with np.errstate(over="ignore"):
            results, view = run_scripted(run, evaluators, corrupted)
            exact = sum(n * one for n, one in zip(ROWS, updates, strict=True))
            totals.append(plain([one for _, one in results[:-1]]) - exact)
        views.append(view)
    same_views(views)
    assert all(1 << 16 < np.abs(noise).max() < 1 << 26 for noise in totals)
