"""Tensors of evaluators, of the dealer and of owners outside: shared in exactly, or refused."""

from typing import Any

import numpy as np
import pytest

from protocols.errors import DesyncError, FrameError, MaskReuseError
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.inputs import (
    OutsideSource,
    from_dealer,
    from_evaluator,
    from_outside,
    from_visitor,
    send_outside,
)
from protocols.shares.masked import Masked
from tests.support.lockstep import LockstepLoopback, compute, run_lockstep
from tests.support.loopback import combine_masked, insecure_root, secret, shares_of

X = np.random.default_rng(4).integers(-(2**63), 2**63 - 1, (3, 5))


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_from_each_evaluator(evaluators: int) -> None:
    for owner in range(evaluators):
        np.testing.assert_array_equal(compute(lambda r: secret(r, X, owner), evaluators), X)  # noqa: B023


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_from_the_dealer(evaluators: int) -> None:
    net = LockstepLoopback()

    def program(role: Role) -> Any:
        x = from_dealer(role, X.shape, X if role.is_dealer else None)
        y = secret(role, X, 1)
        z = from_dealer(role, X.shape, X if role.is_dealer else None)
        return shares_of(remask(multiply(x, y) + multiply(z, z)))

    out = combine_masked(run_lockstep(program, evaluators, net=net))
    np.testing.assert_array_equal(out, 2 * X * X)
    for (_, receiver), frames in net.transcript.items():
        if receiver == "dealer":
            assert all(not payload for _, payload in frames), "the dealer receives no data"


def drawn(root: bytes, count: int) -> np.ndarray:
    stream = Stream(root)
    stream.begin_step(0)
    return stream.words(count)


def outside_streams(evaluators: int) -> list[Stream]:
    streams = [Stream(insecure_root(9, i)) for i in range(evaluators - 1)]
    for stream in streams:
        stream.begin_step(0)
    return streams


def outside_program(
    net: LockstepLoopback,
    evaluators: int,
    shape: tuple[int, ...],
    numbers: tuple[int, int] = (0, 1),
) -> Any:
    names = [f"p{i}" for i in range(evaluators)]
    owner = net.endpoint("olga")
    streams = outside_streams(evaluators)
    for place, number in enumerate(numbers):
        send_outside(owner, names, streams, (X, -X)[place], number)

    def program(role: Role) -> Any:
        source = None
        if role.index is not None:
            stream = None
            if role.index < evaluators - 1:
                stream = outside_streams(evaluators)[role.index]
            source = OutsideSource(net.endpoint(names[role.index]), "olga", stream)
        x = from_outside(role, shape, source)
        y = from_outside(role, shape, source)
        return shares_of(remask(multiply(x, y)))

    return program


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_from_outside(evaluators: int) -> None:
    net = LockstepLoopback()
    program = outside_program(net, evaluators, X.shape)
    out = combine_masked(run_lockstep(program, evaluators, net=net))
    np.testing.assert_array_equal(out, -X * X)
    sent = [len(p) for (s, _), frames in net.transcript.items() if s == "olga" for _, p in frames]
    assert sent == [X.nbytes, X.nbytes]


def visitor_program(words: np.ndarray, evaluators: int, seed: int = 1) -> Any:
    """Whoever is told all roots sends its words under the mask to the first evaluator."""
    roots = [insecure_root(seed, 200 + i) for i in range(evaluators)]
    with np.errstate(over="ignore"):
        masked = words.reshape(-1) + sum(drawn(root, words.size) for root in roots)

    def program(role: Role) -> Masked:
        mine = roots if role.index is None else [roots[role.index]]
        return from_visitor(role, words.shape, mine, masked if role.is_first else None)

    return program


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_from_a_visitor(evaluators: int) -> None:
    net = LockstepLoopback()
    program = visitor_program(X, evaluators)
    results = run_lockstep(lambda role: shares_of(program(role)), evaluators, net=net)
    np.testing.assert_array_equal(combine_masked(results), X)
    sent = {
        (sender, receiver): [len(payload) for _, payload in frames if payload]
        for (sender, receiver), frames in net.transcript.items()
    }
    others = {("p0", f"p{i}"): [X.nbytes] for i in range(1, evaluators)}
    assert {ends: sizes for ends, sizes in sent.items() if sizes} == others


def test_outside_owner_who_sends_another_shape() -> None:
    net = LockstepLoopback()
    with pytest.raises(FrameError):
        run_lockstep(outside_program(net, 2, (4, 5)), 2, net=net)


@pytest.mark.parametrize("numbers", [(1, 0), (0, 0), (0, 2)])
def test_an_outside_owner_whose_tensors_are_out_of_order(numbers: tuple[int, int]) -> None:
    net = LockstepLoopback()
    with pytest.raises(DesyncError, match=r"olga is at b'outs' .* this node at b'outs'"):
        run_lockstep(outside_program(net, 2, X.shape, numbers), 2, net=net)


def test_an_outside_owner_needs_streams() -> None:
    with pytest.raises(ValueError, match="stream"):
        send_outside(LockstepLoopback().endpoint("olga"), ["p0", "p1"], [], X, 0)


def test_streams_of_an_owner_need_a_step() -> None:
    with pytest.raises(MaskReuseError):
        OutsideSource(LockstepLoopback().endpoint("p0"), "olga", Stream(bytes(32))).take((2,))


def test_wrong_tensors_of_the_owner() -> None:
    def missing(role: Role) -> Masked:
        return from_evaluator(role, 0, X.shape, None)

    def other(role: Role) -> Masked:
        return from_evaluator(role, 0, (5, 3), X)

    def dealer(role: Role) -> Masked:
        return from_dealer(role, (5, 3), X)

    for program in (missing, other, dealer):
        with pytest.raises(ValueError, match="shape"):
            compute(program)
