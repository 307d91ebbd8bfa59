"""The reveal gate: listed outputs, once; nothing is sent otherwise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocols.errors import RevealError
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply
from protocols.shares.masked import public
from protocols.shares.reveal import Output, RevealGate
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import secret

X = np.array([[5, -7, 2**62], [0, 1, -(2**63)]])
AGREED = frozenset({Output("accuracy", 3), Output("weight", 3)})


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_outputs(evaluators: int) -> None:
    def program(role: Role) -> Any:
        x = secret(role, X, 1)
        gate = RevealGate(AGREED)
        shown = gate.to_everybody("accuracy", 3, x.sum(1))
        half = gate.for_recipients("weight", 3, x)
        assert gate.passed == (Output("accuracy", 3), Output("weight", 3))
        return shown, half

    *evaluated, dealer = run_lockstep(program, evaluators)
    assert dealer == (None, None)
    for shown, _ in evaluated:
        np.testing.assert_array_equal(shown, X.sum(1))
    halves = [half for _, half in evaluated]
    assert all((half.delta == halves[0].delta).all() for half in halves)
    np.testing.assert_array_equal(halves[0].delta - sum(half.lam for half in halves), X)
    assert not (halves[0].delta == X).any()
    assert "5" not in repr(halves[0])


@pytest.mark.parametrize("evaluators", [2, 3, 5])
@pytest.mark.parametrize("product", [False, True])
def test_summands_are_fresh(evaluators: int, product: bool) -> None:
    """With a summand of the dealer and without; none is what that evaluator held before."""
    net = LockstepLoopback()

    def program(role: Role) -> Any:
        x = secret(role, X, 1)
        z = multiply(x, x) if product else x.shares()
        before = None if role.is_dealer else z.part.get()
        gate = RevealGate(AGREED)
        found = gate.summand_for_recipients("weight", 3, z)
        assert gate.passed == (Output("weight", 3),)
        return before, found

    *evaluated, dealer = run_lockstep(program, evaluators, net=net)
    assert dealer == (None, None)
    with np.errstate(over="ignore"):
        total = sum(found for _, found in evaluated)
        np.testing.assert_array_equal(total, X * X if product else X)
    assert all(not (before == found).any() for before, found in evaluated)
    corrections = [
        len(payload)
        for (sender, _), frames in net.transcript.items()
        if sender == "dealer"
        for _, payload in frames
        if payload
    ]
    assert corrections == [X.nbytes]


def test_a_public_value_may_pass() -> None:
    def program(role: Role) -> Any:
        return RevealGate(AGREED).to_everybody("accuracy", 3, public(role, X))

    np.testing.assert_array_equal(run_lockstep(program, 2)[0], X)


REFUSED: dict[str, Callable[[RevealGate, Any], Any]] = {
    "not listed": lambda gate, x: gate.to_everybody("loss", 3, x),
    "another step": lambda gate, x: gate.to_everybody("accuracy", 2, x),
    "not listed for recipients": lambda gate, x: gate.for_recipients("bias", 3, x),
    "not listed as summands": lambda gate, x: gate.summand_for_recipients("bias", 3, x.shares()),
    "another step for recipients": lambda gate, x: gate.for_recipients("weight", 4, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_a_byte_is_sent(name: str) -> None:
    net = LockstepLoopback()
    before: dict[Any, int] = {}

    def program(role: Role) -> None:
        x = secret(role, X)
        role.finish()
        before[role.index] = sum(map(len, net.transcript.values()))
        gate = RevealGate(AGREED)
        with pytest.raises(RevealError):
            REFUSED[name](gate, x)
        assert gate.passed == ()

    run_lockstep(program, 2, net=net)
    payloads = [p for frames in net.transcript.values() for label, p in frames if p]
    assert len(payloads) == 1, "the input alone"


@pytest.mark.parametrize("first", ["to_everybody", "for_recipients"])
@pytest.mark.parametrize("second", ["to_everybody", "for_recipients"])
def test_an_output_passes_once(first: str, second: str) -> None:
    def program(role: Role) -> None:
        x = secret(role, X)
        gate = RevealGate(AGREED)
        getattr(gate, first)("weight", 3, x)
        sent = role.operation
        with pytest.raises(RevealError, match="weight"):
            getattr(gate, second)("weight", 3, x)
        assert role.operation == sent

    run_lockstep(program, 3)


def test_sums_of_owners_do_not_give_the_tensors_away() -> None:
    """What p2 receives of p0: its opened summand and, later, its share of the new mask.

    Were both under one mask share, their difference would be Δ − λ of the tensor that p0 masked
    alone.
    """
    net = LockstepLoopback()

    def program(role: Role) -> Any:
        tensors = [secret(role, np.array([100 + i]), i) for i in range(3)]
        total = tensors[0] + tensors[1] + tensors[2]
        shown = RevealGate(AGREED).to_everybody("accuracy", 3, total)
        if role.index == 2:
            return shown, tensors[0].delta.get(), total.delta.get()
        return None

    shown, first, delta = run_lockstep(program, 3, net=net)[2]
    assert shown == 303
    frames = {label[:4]: p for label, p in net.transcript["p0", "p2"]}
    part = np.frombuffer(frames[b"open"], np.int64) - np.frombuffer(frames[b"rvl "], np.int64)
    assert first - (delta - part) != 100


class Account:
    """A ledger that keeps what it hears, and fails from the time that it is told to."""

    def __init__(self, net: LockstepLoopback | None = None, full: bool = False) -> None:
        self.heard: list[tuple[str, Output, Any]] = []
        self._net, self._full = net, full

    def _sent(self) -> int:
        return sum(map(len, self._net.transcript.values())) if self._net else 0

    def opening(self, output: Output, values: int) -> None:
        self.heard.append(("opening", output, values))
        if self._full:
            raise OSError("full")

    def opened(self, output: Output, words: Any) -> None:
        self.heard.append(("opened", output, np.array(words)))

    def refused(self, output: Output) -> None:
        self.heard.append(("refused", output, None))


def test_a_ledger_hears_of_everything_that_passes() -> None:
    def program(role: Role) -> Any:
        x, account = secret(role, X, 1), Account()
        gate = RevealGate(AGREED, account)
        gate.to_everybody("accuracy", 3, x.sum(1))
        half = gate.for_recipients("weight", 3, x)
        with pytest.raises(RevealError):
            gate.for_recipients("bias", 3, x)
        return account.heard, half

    *evaluated, dealer = run_lockstep(program, 3)
    accuracy, weight = Output("accuracy", 3), Output("weight", 3)
    for heard, half in evaluated:
        assert [(what, output) for what, output, _ in heard] == [
            ("opening", accuracy),
            ("opened", accuracy),
            ("opening", weight),
            ("opened", weight),
            ("refused", Output("bias", 3)),
        ]
        assert (heard[0][2], heard[2][2]) == (2, 6)
        np.testing.assert_array_equal(heard[1][2], X.sum(1))
        np.testing.assert_array_equal(heard[3][2], half.delta)
    heard, _ = dealer
    assert [what for what, _, _ in heard] == ["opening", "opening", "refused"]


@pytest.mark.parametrize("way", ["to_everybody", "for_recipients"])
def test_what_the_ledger_cannot_keep_does_not_leave(way: str) -> None:
    net = LockstepLoopback()

    def program(role: Role) -> None:
        x = secret(role, X)
        role.finish()
        gate = RevealGate(AGREED, Account(full=True))
        with pytest.raises(OSError, match="full"):
            getattr(gate, way)("weight", 3, x)
        assert gate.passed == ()

    run_lockstep(program, 2, net=net)
    payloads = [p for frames in net.transcript.values() for label, p in frames if p]
    assert len(payloads) == 1, "the input alone"
