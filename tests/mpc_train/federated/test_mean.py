"""Means over shares as a call: equal to plain means to the scale's rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.errors import DataError
from mpc_train.federated.limits import Limits
from mpc_train.federated.mean import Simulation, mean
from tests.mpc_train.scripts.test_crypten import executed


def updates(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_mean_is_that_of_the_updates_to_rounding(evaluators: int) -> None:
    given, rows = updates(5, 3, 4), [10, 1, 7, 30, 2]
    with Simulation(evaluators) as simulation:
        found = simulation.mean(given, rows=rows, clip=1.0)
    products = [n * one for n, one in zip(rows, given, strict=True)]
    expected = torch.stack(products).sum(0) / sum(rows)
    assert found.within == (True,) * 5 and found.rows == 50
    assert torch.allclose(found.value, expected, rtol=0, atol=2.0**-23)
    assert torch.allclose(found.sum, 50 * expected, rtol=0, atol=50 * 2.0**-23)


def test_updates_are_clipped_to_the_declared_norm() -> None:
    (one,) = updates(1, 6)
    large = 1000 * one
    found = Simulation().mean([large, one], clip=0.5)
    expected = (large * 0.5 / large.norm() + one) / 2
    assert found.within == (True, True)
    assert torch.allclose(found.value, expected, rtol=0, atol=2.0**-23)


def test_a_party_that_does_not_clip_moves_nothing() -> None:
    given, limits = updates(2, 40), Limits(Fraction(1), 40)
    words = [limits.rounded(one.numpy())[0] for one in given]
    hostile = 1000 * words[0]
    zeros = np.zeros_like(hostile)
    found = Simulation().mean_of_summands(
        [[words[0], zeros, hostile], [zeros, words[1], zeros]], [1, 1, 9], limits, (40,)
    )
    assert found.within == (True, True, False) and found.rows == 2
    assert torch.allclose(found.value, (given[0] + given[1]) / 2, rtol=0, atol=2.0**-23)


def test_nobody_left_is_no_number() -> None:
    limits = Limits(Fraction(1), 3)
    hostile = np.full(3, 1 << 40)
    found = Simulation().mean_of_summands([[hostile], [np.zeros_like(hostile)]], [5], limits, (3,))
    assert found.within == (False,) and found.rows == 0 and found.value.isnan().all()


def test_a_script_passes_its_own_update() -> None:
    given = updates(2, 5)

    def script(rank: int) -> Any:
        found = mean(given[min(rank, 1)], rows=[3, 1], clip=2.0)
        return found.value, found.within, found.rows

    first, second, dealer = executed(script)
    expected = (3 * given[0] + given[1]) / 4
    assert torch.equal(first[0], second[0]) and dealer[0].isnan().all()
    assert first[1:] == second[1:] == dealer[1:] == ((True, True), 4)
    assert torch.allclose(first[0], expected, rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_is_named(bad: float) -> None:
    given = updates(2, 4)
    given[1][2] = bad
    with pytest.raises(DataError, match="number 2 of update 1 is not finite"):
        Simulation().mean(given, clip=1.0)


def test_other_faults_are_named() -> None:
    given = updates(2, 4)
    for said, arguments in (
        ("1 weights for 2 updates", {"rows": [1], "clip": 1.0}),
        ("weight 0 is 0; 1 to", {"rows": [0, 1], "clip": 1.0}),
        # It counted once, and the sum was divided by 2.5.
        ("weight 0 is 1.5, not a whole", {"rows": [1.5, 1], "clip": 1.0}),
        ("weight 1 is nan, not a whole", {"rows": [1, float("nan")], "clip": 1.0}),
        ("together below", {"rows": [(1 << 31) - 1, 1], "clip": 1.0}),
        ("a clip of", {"clip": 0.0}),
        ("clip: nan is not a finite", {"clip": float("nan")}),
        ("clip: '1' is not a finite", {"clip": "1"}),
    ):
        with pytest.raises(DataError, match=said):
            Simulation().mean(given, **arguments)
    with pytest.raises(DataError, match=r"update 1 has the shape \(2,\) and update 0 \(4,\)"):
        Simulation().mean([given[0], given[1][:2]], clip=1.0)


def test_outside_a_script_the_call_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match=r"in one process use .*Simulation"):
        mean(updates(1, 2)[0], clip=1.0)


@pytest.mark.parametrize("clip", ["1", "0.1", "3", "0.3333", "7.9", "1000", "0.000001"])
@pytest.mark.parametrize("size", [1, 100, 10_000_000])
def test_the_scale_is_the_largest_for_the_norm(clip: str, size: int) -> None:
    limits = Limits(Fraction(clip), size)
    units = limits.clip * Fraction(2) ** limits.fraction_bits
    assert 1 << 21 < units <= 1 << 22
    # Half a unit in each element, all in one direction, is still within.
    worst = float(units) + 0.5 * size**0.5
    assert worst**2 <= limits.most_square <= (worst + 4) ** 2


def test_a_clipped_update_passes_its_own_limit() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 3, 1000):
        limits = Limits(Fraction(3, 7), size)
        for scale in (1e-3, 1.0, 1e12):
            words, _ = limits.rounded(rng.normal(size=size) * scale)
            assert int((words.astype(object) ** 2).sum()) <= limits.most_square
