"""Rows in a secret order: the right one, and what goes over the wire for it."""

from typing import Any

import numpy as np
import pytest

from protocols.errors import DesyncError
from protocols.linkage.shuffle import pick, shuffle
from protocols.roles.role import Role, order_of
from protocols.shares.arithmetic import multiply, remask
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of

ROWS = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (11, 3))


@pytest.mark.parametrize("evaluators", [2, 3, 4])
def test_order_of_each_evaluator_in_turn(evaluators: int) -> None:
    def program(role: Role) -> Any:
        x, orders = secret(role, ROWS), []
        for owner in range(evaluators):
            orders.append(role.permutation(len(ROWS), owner))
            x = shuffle(x, owner, orders[-1])
        return shares_of(x), orders

    results = run_lockstep(program, evaluators)
    expected = ROWS
    for owner in range(evaluators):
        order = results[owner][1][owner]
        np.testing.assert_array_equal(order, results[-1][1][owner])
        assert sorted(order) == list(range(len(ROWS)))
        for other in range(evaluators):
            assert other == owner or results[other][1][owner] is None
        expected = expected[order]
    np.testing.assert_array_equal(combine_masked([found for found, _ in results]), expected)


def test_of_a_value_that_is_still_to_be_opened() -> None:
    def program(role: Role) -> Any:
        x = secret(role, ROWS)
        return shares_of(shuffle(remask(multiply(x, x)), 1, role.permutation(len(ROWS), 1)))

    found = combine_masked(run_lockstep(program, 2))
    np.testing.assert_array_equal(np.sort(found, 0), np.sort(ROWS * ROWS, 0))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_picked_rows(evaluators: int) -> None:
    """The dealer is not told the positions and has the mask of the result all the same."""
    positions = np.array([7, 0, 3])

    def program(role: Role) -> Any:
        x = secret(role, ROWS)
        return shares_of(pick(x, None if role.is_dealer else positions, 3))

    np.testing.assert_array_equal(
        combine_masked(run_lockstep(program, evaluators)), ROWS[positions]
    )


def test_bytes() -> None:
    net = LockstepLoopback()

    def program(role: Role) -> Any:
        shuffle(secret(role, ROWS, 1), 0, role.permutation(len(ROWS), 0))

    run_lockstep(program, 3, net=net)
    sent = {pair: [len(p) for _, p in frames if p] for pair, frames in net.transcript.items()}
    words = 8 * ROWS.size
    assert sent["p0", "p1"] == sent["p0", "p2"] == [words]
    assert sum(sum(sent.get(("dealer", f"p{i}"), [])) for i in range(3)) == words


def test_programs_that_differ_are_told_apart() -> None:
    def program(role: Role) -> Any:
        owner = 1 if role.index == 1 else 0
        shuffle(secret(role, ROWS), owner, np.arange(len(ROWS)))

    with pytest.raises((DesyncError, ValueError)):
        run_lockstep(program, 2)


def test_every_order_occurs() -> None:
    rng = np.random.default_rng(2)
    found = {tuple(order_of(rng.integers(-(2**63), 2**63 - 1, 3))) for _ in range(200)}
    assert len(found) == 6
