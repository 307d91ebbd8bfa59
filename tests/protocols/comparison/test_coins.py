"""Secret coins: their distribution, to whom, and dropout by a mask that nobody knows."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import protocols.crypten_tensor.layers.shape  # noqa: F401
from protocols.comparison.coins import coins, nearest
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from tests.support.layers import UNIT, F, opened, part
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, shares_of

COUNT = 20_000
SHARES = [Fraction(1, 2), Fraction(7, 8), Fraction(1, 16), Fraction(9, 10), Fraction(2, 10)]


def flips(share: Fraction, evaluators: int, seed: int = 1, count: int = COUNT) -> np.ndarray:
    def program(role: Role) -> Any:
        return shares_of(remask(coins(role, (count,), share).shares()))

    return combine_masked(run_lockstep(program, evaluators, seed))


def near(found: np.ndarray, share: float) -> bool:
    """Within five standard deviations of so many coins."""
    return abs(found.mean() - share) <= 5 * (share * (1 - share) / found.size) ** 0.5


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("share", SHARES)
def test_coins_fall_as_often_as_they_should(share: Fraction, evaluators: int) -> None:
    found = flips(share, evaluators)
    assert set(np.unique(found)) == {0, 1}
    assert near(found, float(share))
    # Neighbours are independent, and another session has other coins.
    both = found[:-1] & found[1:]
    assert near(both, float(share) ** 2)
    assert not np.array_equal(found, flips(share, evaluators, seed=2))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_what_each_side_knows_does_not_tell(evaluators: int) -> None:
    """Coins are independent of the evaluators' common bytes and of all that the dealer draws."""
    known: dict[str, np.ndarray] = {}

    def program(role: Role) -> Any:
        drawn, common = role.mask_bits, role.common

        def dealt(shape: Any) -> Any:
            mask = drawn(shape)
            if role.is_dealer and len(shape) == 2 and shape[-1] == COUNT:
                known["dealer"] = mask.octets[-1] & 15
            return mask

        def together(shape: Any) -> Any:
            found = common(shape)
            if not role.is_dealer:
                known["evaluators"] = found.get()[-1] & 15
            return found

        role.mask_bits, role.common = dealt, together  # type: ignore[method-assign, assignment]
        bits = coins(role, (COUNT,), Fraction(3, 4))
        if not role.is_dealer:
            known["beta"] = np.array(bits.beta.get())
        return shares_of(remask(bits.shares()))

    found = combine_masked(run_lockstep(program, evaluators))
    # Together the two sides know: the tests below are of each alone.
    np.testing.assert_array_equal(found, (known["dealer"] ^ known["evaluators"]) < 12)
    for side in ("dealer", "evaluators", "beta"):
        for value in np.unique(known[side]):
            assert near(found[known[side] == value], 0.75), (side, value)


def test_the_dealer_is_sent_nothing_and_a_seed_is_sent_once() -> None:
    net = LockstepLoopback()

    def program(role: Role) -> None:
        for step in (1, 2):
            role.begin_step(step)
            coins(role, (64,), Fraction(1, 2))
            coins(role, (64,), Fraction(9, 10))

    run_lockstep(program, 3, net=net)
    sent = {way: [label[:4] for label, _ in frames] for way, frames in net.transcript.items()}
    for way, tags in sent.items():
        if "dealer" in way:
            assert set(tags) <= {b"corr", b"done"}, way
        else:
            assert tags.count(b"seed") == 1, way
    seeds = {frames[0][1] for way, frames in net.transcript.items() if "dealer" not in way}
    assert len(seeds) == 3


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1), Fraction(1, 1 << 18)])
def test_a_coin_with_one_side_is_refused(share: Fraction) -> None:
    with pytest.raises(RangeError, match="coin"):
        nearest(share)


def test_the_nearest_probability_is_within_half_of_the_last_bit() -> None:
    for share in (*SHARES, Fraction(1, 3), Fraction(123, 1000)):
        assert abs(nearest(share) - share) <= Fraction(1, 1 << 17)


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("kept", [Fraction(1, 2), Fraction(9, 10)])
@pytest.mark.parametrize("truncated", [False, True])
def test_dropout_by_a_mask_that_nobody_knows(
    kept: Fraction, evaluators: int, truncated: bool
) -> None:
    """Zeros and the rest by 1 / kept; the gradient goes exactly where the value went."""
    rng = np.random.default_rng(1)
    x, upstream = rng.uniform(1, 2, (40, 25)), rng.uniform(1, 2, (40, 25))

    def program(role: Role) -> Any:
        attach(role, F)
        values = MaskedTensor(x, src=0, requires_grad=True)
        source = values.mul(MaskedTensor(np.ones(x.shape), src=1)) if truncated else values
        output = source.drop_secretly(kept)
        found = part(output.detach())
        output.backward(MaskedTensor(upstream, src=1))
        return found, part(values.grad)

    results = run_lockstep(program, evaluators)
    found, gradient = (opened([result[i] for result in results]) for i in range(2))
    mask = found != 0
    assert near(mask, float(kept))
    share = float(nearest(kept))
    plain = torch.tensor(x, requires_grad=True)
    (plain * torch.tensor(mask) / share).backward(torch.tensor(upstream))
    assert plain.grad is not None
    # Each of x, the factor and the product is rounded: a few units of values up to 4.
    assert np.abs(found - x * mask / share).max() <= 8 * UNIT
    assert np.abs(gradient - plain.grad.numpy()).max() <= 8 * UNIT
