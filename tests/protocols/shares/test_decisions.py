"""Bits that a job discloses to everybody, the dealer included, while it goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocols.errors import DesyncError, ProtocolError, RevealError
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, truncate
from protocols.shares.reveal import Output, RevealGate
from tests.support.lockstep import run_lockstep
from tests.support.loopback import secret


def gate_for(*steps: int) -> RevealGate:
    return RevealGate(frozenset(Output("stop", step) for step in steps))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_every_role_goes_the_way_that_the_bit_says(evaluators: int) -> None:
    bits = [0, 0, 1]

    def program(role: Role) -> list[int]:
        gate, went = gate_for(*range(len(bits))), []
        for step, bit in enumerate(bits):
            # A step with enough corrections that credits come between, then the decision.
            x = secret(role, np.full(30_000, 5))
            truncate(multiply(x, x), 3)
            went.append(step)
            if gate.decide("stop", step, secret(role, np.array(bit))):
                break
        return went

    assert run_lockstep(program, evaluators) == [[0, 1, 2]] * (evaluators + 1)


def test_a_decision_that_is_not_listed_is_refused() -> None:
    def program(role: Role) -> None:
        gate = gate_for(1)
        gate.decide("stop", 2, secret(role, np.array(1)))

    with pytest.raises(RevealError):
        run_lockstep(program, 2)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_several_bits_leave_together(evaluators: int) -> None:
    bits = (True, False, False, True, True)

    def program(role: Role) -> object:
        gate = gate_for(1)
        found = gate.decide_each("stop", 1, secret(role, np.array(bits, np.int64)))
        return found, len(gate.passed)

    assert run_lockstep(program, evaluators) == [(bits, 1)] * (evaluators + 1)


@pytest.mark.parametrize("words", [[2], [1, 0, 3], [-1]])
def test_what_is_no_bit_is_refused(words: list[int]) -> None:
    def program(role: Role) -> object:
        return gate_for(1).decide_each("stop", 1, secret(role, np.array(words)))

    with pytest.raises(ProtocolError):
        run_lockstep(program, 2)


def test_several_bits_are_no_decision() -> None:
    def program(role: Role) -> bool:
        return gate_for(1).decide("stop", 1, secret(role, np.array([1, 0])))

    with pytest.raises(RevealError, match="is not a decision"):
        run_lockstep(program, 2)


@pytest.mark.parametrize("told", [(True, False), (), (2,)])
def test_the_dealer_takes_as_many_bits_as_the_program_says(told: tuple[Any, ...]) -> None:
    """All evaluators agree, and yet it is none, or more than the bit that is listed."""

    def program(role: Role) -> Any:
        if isinstance(role, Evaluator):
            return role.tell(*told)
        return role.told()  # type: ignore[attr-defined]

    with pytest.raises(ProtocolError):
        run_lockstep(program, 2)


def test_evaluators_that_tell_different_bits_are_noticed() -> None:
    def program(role: Role) -> Any:
        if isinstance(role, Evaluator):
            return role.tell(role.index == 0)
        return role.told()  # type: ignore[attr-defined]

    with pytest.raises(DesyncError, match="different decisions"):
        run_lockstep(program, 2)
