"""Real roles mask with what they say: the words of their streams, each of them, and nothing else.

The counterpart of `test_uniform`: exact, against streams that the test draws from itself.
"""

from __future__ import annotations

import inspect
import os
from functools import partial
from typing import Any

import numpy as np
import pytest

from protocols.linkage.shuffle import shuffle
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import unpack_words
from protocols.roles.role import Role, order_of
from protocols.roles.streams import Stream
from protocols.shares.inputs import from_dealer
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import DEALER, insecure_root, secret

WIDTHS = (1, 3, 4, 8, 20, 44, 63, 64)
COUNT = 9
X = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (COUNT, 2))


def streams_of(evaluators: int, seed: int = 1) -> list[Stream]:
    """The streams of `make_role`, for the test to draw from as the roles do."""
    streams = [Stream(insecure_root(seed, i)) for i in range(evaluators)]
    for stream in streams:
        stream.begin_step(0)
    return streams


def low(words: Any, bits: int) -> Any:
    return words if bits == 64 else words & ((1 << bits) - 1)


@pytest.mark.parametrize("evaluators", [2, 3, 5])
@pytest.mark.parametrize("bits", WIDTHS)
def test_masks_are_words_of_the_streams(bits: int, evaluators: int) -> None:
    *found, total = run_lockstep(lambda role: role.mask((COUNT,), bits).words.copy(), evaluators)
    drawn = [stream.words_modulo(COUNT, bits) for stream in streams_of(evaluators)]
    for mine, expected in zip(found, drawn, strict=True):
        np.testing.assert_array_equal(mine, expected)
        assert len(np.unique(mine)) > 1
    np.testing.assert_array_equal(low(total, bits), low(sum(drawn), bits))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_masks_of_bits_are_bytes_of_the_streams(evaluators: int) -> None:
    *found, total = run_lockstep(lambda role: role.mask_bits((3, 7)).octets.copy(), evaluators)
    drawn = [stream.octets(21).reshape(3, 7) for stream in streams_of(evaluators)]
    np.testing.assert_array_equal(found, drawn)
    np.testing.assert_array_equal(total, np.bitwise_xor.reduce(drawn))


@pytest.mark.parametrize("evaluators", [2, 3, 5])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_last_evaluator_gets_a_dealt_value_less_the_others_streams(
    bits: int, evaluators: int
) -> None:
    """Whoever is last, and everybody is in turn; the value is 1, so that zeros would show."""
    net = LockstepLoopback()
    value = np.ones(COUNT, np.int64)

    def program(role: Role) -> Any:
        for _ in range(evaluators):
            role.deal(value if role.is_dealer else None, (COUNT,), bits)

    run_lockstep(program, evaluators, net=net)
    streams = streams_of(evaluators)
    for turn in range(evaluators):
        last = (turn + 1) % evaluators
        missing = value
        for i, stream in enumerate(streams):
            if i != last:
                missing = missing - stream.words_modulo(COUNT, bits)
        (sent,) = [payload for _, payload in net.transcript[DEALER, f"p{last}"] if payload]
        words = unpack_words(np.frombuffer(sent, np.uint8), COUNT, bits)
        np.testing.assert_array_equal(words, low(missing, bits))


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("count", [5, 1 << 15])
def test_the_last_evaluator_gets_dealt_bits_under_the_others_streams(
    count: int, evaluators: int
) -> None:
    """Also of a length that is masked in one pass."""
    net = LockstepLoopback()
    value = np.full(count, 1, np.uint8)
    run_lockstep(
        lambda role: role.deal_bits(value if role.is_dealer else None, (count,)),
        evaluators,
        net=net,
    )
    missing = value
    for i, stream in enumerate(streams_of(evaluators)):
        if i != 1:
            missing = missing ^ stream.octets(count)
    (sent,) = [payload for _, payload in net.transcript[DEALER, "p1"] if payload]
    np.testing.assert_array_equal(np.frombuffer(sent, np.uint8)[:count], missing)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_what_an_owner_sends_is_its_tensor_under_its_stream(evaluators: int) -> None:
    net = LockstepLoopback()
    run_lockstep(lambda role: secret(role, X, 1), evaluators, net=net)
    mask = streams_of(evaluators)[1].words(X.size)
    ((_, sent),) = net.transcript["p1", "p0"]
    np.testing.assert_array_equal(np.frombuffer(sent, np.int64), X.ravel() + mask)


def test_what_the_dealer_sends_of_its_own_is_under_all_streams() -> None:
    net = LockstepLoopback()
    run_lockstep(lambda role: from_dealer(role, X.shape, X if role.is_dealer else None), 3, net=net)
    mask = sum(stream.words(X.size) for stream in streams_of(3))
    sent = net.transcript[DEALER, "p2"][0][1]
    np.testing.assert_array_equal(np.frombuffer(sent, np.int64), X.ravel() + mask)


@pytest.mark.parametrize("bits", WIDTHS)
def test_what_is_sent_for_an_opening_is_a_summand_under_its_mask(bits: int) -> None:
    net = LockstepLoopback()
    part = np.full(COUNT, 3)
    run_lockstep(
        lambda role: role.open(role.known(part), role.mask((COUNT,), bits), bits), 2, net=net
    )
    for name, stream in zip(("p0", "p1"), streams_of(2), strict=True):
        (sent,) = [
            p for label, p in net.transcript[name, f"p{name == 'p0':d}"] if label[:4] == b"open"
        ]
        words = unpack_words(np.frombuffer(sent, np.uint8), COUNT, bits)
        np.testing.assert_array_equal(words, low(part + stream.words_modulo(COUNT, bits), bits))


@pytest.mark.parametrize("owner", [0, 1, 2])
def test_who_shuffles_sends_moved_words_under_a_fresh_mask(owner: int) -> None:
    """Without the mask the others would find each row again, and know the order."""
    net = LockstepLoopback()
    run_lockstep(
        lambda role: shuffle(secret(role, X, 0), owner, role.permutation(COUNT, owner)), 3, net=net
    )
    streams = streams_of(3)
    delta = X + streams[0].words(X.size).reshape(X.shape)
    order = order_of(streams[owner].words(COUNT))
    mask = streams[owner].words(X.size).reshape(X.shape)
    receiver = f"p{(owner + 1) % 3}"
    sent = [p for label, p in net.transcript[f"p{owner}", receiver] if label[:4] == b"inpt"][-1]
    np.testing.assert_array_equal(
        np.frombuffer(sent, np.int64).reshape(X.shape), delta[order] + mask
    )


def common_of(parts: list[bytes], seed: int = 1) -> list[bytes]:
    """Common bytes at each evaluator, where evaluator i puts parts[i] into the seed."""
    net, count = LockstepLoopback(), len(parts)
    names = [f"p{i}" for i in range(count)]

    def work(index: int) -> bytes:
        role = Evaluator(
            net.endpoint(names[index]),
            index=index,
            names=names,
            dealer=DEALER,
            stream=Stream(insecure_root(seed, index)),
            entropy=lambda size: parts[index].ljust(size, b"\0"),
        )
        role.begin_step(0)
        return role.common((40,)).get().tobytes()

    return net.baton.run([partial(work, index) for index in range(count)])


@pytest.mark.parametrize("evaluators", [2, 3])
def test_common_bytes_take_a_part_of_every_evaluator(evaluators: int) -> None:
    """So that one alone keeps them from the dealer, whose streams have nothing to do with it."""
    parts = [bytes([i]) for i in range(evaluators)]
    found = common_of(parts)
    assert len(set(found)) == 1
    assert common_of(parts, seed=2) == found
    for i in range(evaluators):
        other = common_of([*parts[:i], b"x", *parts[i + 1 :]])
        assert len(set(other)) == 1 and other[0] != found[0]
    assert inspect.signature(Evaluator).parameters["entropy"].default is os.urandom
