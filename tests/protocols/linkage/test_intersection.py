"""Private set intersection: right for any number of lists, and every bad list has a name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.arrays import Octets
from protocols.errors import DesyncError, FrameError, PointError
from protocols.linkage import intersection
from protocols.linkage.intersection import (
    ITEM_BYTES,
    Exponent,
    agree_key,
    common,
    meet,
    meet_shuffled,
    repeated,
    route,
    sorted_order,
    tell,
    told,
)
from protocols.roles.frames import LABEL
from tests.support.lockstep import LockstepLoopback

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
KEY = bytes(range(32))
SID = bytes(32)


def tokens_of(*words: str) -> Octets:
    joined = b"".join(hashlib.sha256(word.encode()).digest() for word in words)
    return np.frombuffer(joined, np.uint8).reshape(-1, ITEM_BYTES)


def words(numbers: Any) -> list[str]:
    return [f"person {number}" for number in numbers]


def run(
    work: Callable[[Any, str], Any], names: list[str], net: LockstepLoopback | None = None
) -> dict[str, Any]:
    net = net or LockstepLoopback()
    works = [partial(work, net.endpoint(name), name) for name in names]
    return dict(zip(names, net.baton.run(works), strict=True))


def lists_of(holders: int, seed: int = 1) -> dict[str, list[str]]:
    """Lists of different lengths: some people in all, some in two, some in one."""
    rng = np.random.default_rng(seed)
    found = {}
    for place in range(holders):
        mine = [*range(20), *range(100 + 10 * place, 115 + 10 * place), 1000 + place]
        found[f"h{place}"] = words(rng.permutation(mine[: 36 - place]))
    return found


def expected_rows(lists: dict[str, list[str]], name: str) -> list[int]:
    both = set.intersection(*(set(one) for one in lists.values()))
    return [row for row, word in enumerate(lists[name]) if word in both]


# One exponent


def test_exponents_commute() -> None:
    one, other = Exponent(), Exponent()
    tokens = tokens_of("a", "b", "c")
    first = other.of_points(one.of_tokens(tokens, KEY), "x")
    second = one.of_points(other.of_tokens(tokens, KEY), "x")
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, one.of_tokens(tokens, KEY))


def test_points_depend_on_the_key_and_the_token() -> None:
    exponent = Exponent()
    tokens = tokens_of("a", "b")
    found = exponent.of_tokens(tokens, KEY)
    assert not np.array_equal(found, exponent.of_tokens(tokens, bytes(32)))
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(found, exponent.of_tokens(tokens, KEY))


def test_several_threads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intersection, "BATCH", 7)
    exponent = Exponent(threads=3)
    tokens = tokens_of(*words(range(40)))
    found = exponent.of_tokens(tokens, KEY)
    exponent._threads = 1
    np.testing.assert_array_equal(found, exponent.of_tokens(tokens, KEY))


def test_is_diffie_hellman_on_p256() -> None:
    """Against the curve's formula, in integers: x(e·P) of the point with that x."""
    exponent = Exponent()
    x = exponent.of_tokens(tokens_of("a"), KEY)
    scalar = exponent._secret.private_numbers().private_value
    number = int.from_bytes(x.tobytes(), "big")
    assert int.from_bytes(exponent.of_points(x, "me").tobytes(), "big") == multiple(number, scalar)


def multiple(x: int, scalar: int) -> int:
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    y = pow(x**3 - 3 * x + b, (P + 1) // 4, P)
    assert y * y % P == (x**3 - 3 * x + b) % P
    total, power = None, (x, y)
    while scalar:
        if scalar & 1:
            total = power if total is None else added(total, power)
        power, scalar = added(power, power), scalar >> 1
    assert total is not None
    return total[0]


def added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    if one == other:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, P)
    x = (slope**2 - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


@pytest.mark.parametrize(
    "x",
    [
        1,  # on the twist
        P,  # zero, not reduced
        P + 5,  # 5 is an x-coordinate, P + 5 is another spelling of it
        2**256 - 1,
    ],
)
def test_what_is_no_point_is_refused(x: int) -> None:
    points = Exponent().of_tokens(tokens_of("a", "b"), KEY).copy()
    points[1] = np.frombuffer(x.to_bytes(32, "big"), np.uint8)
    with pytest.raises(PointError, match="bob sent something that is not a point of the curve"):
        Exponent().of_points(points, "bob")


def test_no_encoding_stands_for_infinity() -> None:
    """One byte 0 is the point at infinity of SEC 1; an item always has 32 and a sign before it."""
    for encoded in (b"\0", b"\0" * 33, b"\x02", b"\x02" + bytes(31)):
        with pytest.raises(ValueError, match=r"."):
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encoded)


def test_the_secret_prints_nothing() -> None:
    assert repr(Exponent()) == "Exponent(redacted)"


# The holders' key


@pytest.mark.parametrize("holders", [2, 3])
def test_holders_agree_on_a_key(holders: int) -> None:
    names = [f"h{i}" for i in range(holders)]
    keys = run(lambda channel, me: agree_key(channel, me, names, SID), names)
    assert len(set(keys.values())) == 1
    again = run(lambda channel, me: agree_key(channel, me, names, SID), names)
    assert set(keys.values()) != set(again.values())


def test_every_part_counts() -> None:
    names = ["h0", "h1"]

    def key(**parts: int) -> bytes:
        def work(channel: Any, me: str) -> bytes:
            return agree_key(channel, me, names, SID, lambda count: bytes([parts[me]]) * count)

        found: bytes = run(work, names)["h0"]
        return found

    found = {key(h0=1, h1=2), key(h0=1, h1=3), key(h0=3, h1=2)}
    assert len(found) == 3


# Membership learnt by the holders


def run_meet(lists: dict[str, list[str]], net: LockstepLoopback | None = None) -> dict[str, Any]:
    names = list(lists)
    counts = {name: len(one) for name, one in lists.items()}

    def work(channel: Any, me: str) -> Any:
        return meet(channel, me, names, counts, tokens_of(*lists[me]), KEY, Exponent())

    return run(work, names, net)


@pytest.mark.parametrize("holders", [2, 3, 4])
def test_holders_find_their_common_rows(holders: int) -> None:
    lists = lists_of(holders)
    found = run_meet(lists)
    for name in lists:
        assert found[name].tolist() == expected_rows(lists, name)


def test_nothing_in_common_and_everything() -> None:
    found = run_meet({"a": words([1, 2, 3]), "b": words([4, 5])})
    assert [one.tolist() for one in found.values()] == [[], []]
    found = run_meet({"a": words([1, 2, 3]), "b": words([3, 1, 2])})
    assert [one.tolist() for one in found.values()] == [[0, 1, 2], [0, 1, 2]]


def test_sizes_follow_from_the_job(holders: int = 3) -> None:
    nets = [LockstepLoopback() for _ in range(2)]
    for seed, net in enumerate(nets):
        run_meet(lists_of(holders, seed), net)
    first, second = (
        {
            pair: [(label, len(payload)) for label, payload in frames]
            for pair, frames in net.transcript.items()
        }
        for net in nets
    )
    assert first == second
    assert sum(len(frames) for frames in first.values()) == 3 * 3 + 3


def test_no_list_travels_in_its_own_order_or_in_the_clear() -> None:
    """The first message of a holder is sorted; two runs of one list have no item in common."""
    lists = {"a": words(range(30)), "b": words(range(10, 40))}
    nets = [LockstepLoopback() for _ in range(2)]
    for net in nets:
        run_meet(lists, net)
    sent = []
    for net in nets:
        items = np.frombuffer(net.transcript["a", "b"][0][1], np.uint8).reshape(-1, ITEM_BYTES)
        np.testing.assert_array_equal(sorted_order(items), np.arange(30))
        sent.append({item.tobytes() for item in items})
    assert not sent[0] & sent[1]


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_order_of_a_list_that_leaves_says_nothing_of_its_rows(shuffled: bool) -> None:
    """The same people in another order give the same lists, where the secrets are the same."""
    drawn = {name: Exponent() for name in ("a", "b")}
    people = {"a": words(range(12)), "b": words(range(6, 20))}
    transcripts = []
    for turn in range(2):
        net = LockstepLoopback()
        lists = {name: one if not turn else one[::-1] for name, one in people.items()}
        with pytest.MonkeyPatch.context() as patch:
            made = iter(drawn.values())
            patch.setitem(globals(), "Exponent", lambda made=made: next(made))
            if shuffled:
                run_shuffled(lists, ["a", "b"], net)
            else:
                run_meet(lists, net)
        transcripts.append(net.transcript)
        for name in ("a", "b"):
            (first, *_) = (p for label, p in net.transcript[name, other(name)] if hop(label) == 1)
            items = np.frombuffer(first, np.uint8).reshape(-1, ITEM_BYTES)
            np.testing.assert_array_equal(sorted_order(items), np.arange(len(items)))
    assert transcripts[0] == transcripts[1]


def other(name: str) -> str:
    return "b" if name == "a" else "a"


def hop(label: bytes) -> int:
    return int(LABEL.unpack(label)[2])


# Membership learnt by nobody


def run_shuffled(
    lists: dict[str, list[str]], evaluators: list[str], net: LockstepLoopback | None = None
) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    counts = {name: len(one) for name, one in lists.items()}
    rng = np.random.default_rng(5)
    orders = {(me, name): rng.permutation(counts[name]) for me in evaluators for name in lists}

    def work(channel: Any, me: str) -> Any:
        mine = {name: orders[me, name] for name in lists if name != me}
        tokens = tokens_of(*lists[me]) if me in lists else None
        key = KEY if me in lists else None
        order, ended = meet_shuffled(
            channel, me, evaluators, list(lists), counts, tokens, key, Exponent(), mine
        )
        return order, common(ended, list(lists))

    return run(work, evaluators, net), orders


@pytest.mark.parametrize(
    ("holders", "evaluators"), [(2, ["h0", "h1"]), (3, ["h0", "h1", "h2"]), (2, ["h0", "n", "h1"])]
)
def test_items_in_several_lists_are_counted(holders: int, evaluators: list[str]) -> None:
    lists = lists_of(holders)
    lists["h1"] = [*lists["h1"], "in two", "in one"]
    lists["h0"] = [*lists["h0"], "in two"]
    counts = {name: len(one) for name, one in lists.items()}

    def work(channel: Any, me: str) -> int:
        tokens, key = (tokens_of(*lists[me]), KEY) if me in lists else (None, None)
        _, ended = meet_shuffled(
            channel, me, evaluators, list(lists), counts, tokens, key, Exponent(), None
        )
        for one in ended:
            np.testing.assert_array_equal(sorted_order(one), np.arange(len(one)))
        return repeated(ended, list(lists))

    every = [word for one in lists.values() for word in one]
    expected = sum(every.count(word) > 1 for word in set(every))
    assert set(run(work, evaluators).values()) == {expected}


@pytest.mark.parametrize(
    ("holders", "evaluators"),
    [
        (2, ["h0", "h1"]),
        (2, ["h1", "h0"]),
        (3, ["h0", "h1", "h2"]),
        (2, ["h0", "neutral", "h1"]),
        (2, ["u0", "h0", "h1", "u1"]),
    ],
)
def test_positions_lead_to_equal_items(holders: int, evaluators: list[str]) -> None:
    """All know the same positions, and behind them are the common items, list by list."""
    lists = lists_of(holders)
    found, orders = run_shuffled(lists, evaluators)
    positions = next(iter(found.values()))[1]
    for _, other in found.values():
        for mine, theirs in zip(positions, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    rows = []
    for name, place in zip(lists, positions, strict=True):
        moved = np.array(lists[name])[found[name][0]]
        for evaluator in route(name, evaluators)[1:]:
            moved = moved[orders[evaluator, name]]
        rows.append(moved[place].tolist())
    assert all(row == rows[0] for row in rows)
    assert sorted(rows[0]) == sorted(lists["h0"][row] for row in expected_rows(lists, "h0"))


def test_nobody_gets_a_list_masked_by_itself_alone() -> None:
    """A neutral evaluator, who lacks the key, and the other holder see masked items only."""
    lists = {"h0": words(range(6)), "h1": words(range(3, 9))}
    net = LockstepLoopback()
    run_shuffled(lists, ["h0", "neutral", "h1"], net)
    plain = {number: plain_point(tokens_of(word)) for number, word in enumerate(words(range(9)))}
    for frames in net.transcript.values():
        for _, payload in frames:
            items = {payload[i : i + ITEM_BYTES] for i in range(0, len(payload), ITEM_BYTES)}
            assert not items & set(plain.values())


def plain_point(token: Octets) -> bytes:
    numbers = intersection._point_of(token.tobytes(), KEY).public_numbers()
    return numbers.x.to_bytes(32, "big")


# What a peer sends


def altered(change: Callable[[bytes], bytes], tag: bytes, hop: int) -> LockstepLoopback:
    """A network on which the first list of `hop` that b sends is changed."""

    class Altering(LockstepLoopback):
        def endpoint(self, name: str) -> Any:
            endpoint = super().endpoint(name)
            send = endpoint.send
            left = [1]

            def changed(peer: str, label: bytes, payload: Any) -> None:
                found = LABEL.unpack(label)
                if name == "b" and found[0] == tag and found[2] == hop and left[0]:
                    left[0] = 0
                    payload = change(bytes(payload))
                send(peer, label, payload)

            endpoint.send = changed  # type: ignore[method-assign]
            return endpoint

    return Altering()


BAD: dict[str, tuple[Callable[[bytes], bytes], int, type[Exception], str]] = {
    "off the curve": (
        lambda items: (1).to_bytes(32, "big") + items[32:],
        1,
        PointError,
        "b sent something that is not a point",
    ),
    "twice": (
        lambda items: items[:32] + items[:32] + items[64:],
        1,
        PointError,
        "the list of b holds an item twice",
    ),
    "too short": (lambda items: items[:-32], 1, FrameError, "b: a frame of 192 bytes"),
    "too long": (lambda items: items + items[:32], 1, FrameError, "b: a frame"),
    "nothing": (lambda items: b"", 1, FrameError, "b: a frame of 0 bytes"),
    "twice at the end": (
        lambda items: items[:32] * (len(items) // 32),
        2,
        PointError,
        "the list of a holds an item twice",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_bad_list_is_named(name: str, shuffled: bool) -> None:
    change, hop, error, message = BAD[name]
    lists = {"a": words(range(5)), "b": words(range(2, 9))}
    net = altered(change, b"list", hop)
    with pytest.raises(error, match=message):
        if shuffled:
            run_shuffled(lists, ["a", "b"], net)
        else:
            run_meet(lists, net)


def test_lists_of_another_order_of_holders_meet_in_an_error() -> None:
    names = ["a", "b"]

    def work(channel: Any, me: str) -> Any:
        order = names if me == "a" else names[::-1]
        return meet(channel, me, order, {"a": 1, "b": 1}, tokens_of("x"), KEY, Exponent())

    with pytest.raises(DesyncError):
        run(work, names)


def test_the_owner_of_a_list_with_an_item_twice_is_named() -> None:
    items = tokens_of("a", "b", "a")
    with pytest.raises(PointError, match="the list of bob"):
        common([tokens_of("a", "c"), items], ["ann", "bob"])


def test_common_positions_against_sets() -> None:
    rng = np.random.default_rng(3)
    lists = [tokens_of(*words(rng.choice(60, 40, replace=False))) for _ in range(3)]
    found = common(lists, ["a", "b", "c"])
    picked = [one[rows] for one, rows in zip(lists, found, strict=True)]
    np.testing.assert_array_equal(picked[0], picked[1])
    np.testing.assert_array_equal(picked[0], picked[2])
    sets = [{item.tobytes() for item in one} for one in lists]
    assert {item.tobytes() for item in picked[0]} == set.intersection(*sets)
    assert [item.tobytes() for item in picked[0]] == sorted(item.tobytes() for item in picked[0])


# The size, for who compared nothing


@pytest.mark.parametrize(
    ("counts", "error"),
    [((7, 7), None), ((7, 8), DesyncError), ((11, 11), FrameError), ((2**64 - 1,) * 2, FrameError)],
)
def test_the_size_is_told(counts: tuple[int, int], error: type[Exception] | None) -> None:
    def work(channel: Any, me: str) -> Any:
        if me == "dealer":
            return told(channel, ["a", "b"], 10)
        tell(channel, ["dealer"], counts[0] if me == "a" else counts[1])
        return None

    names = ["a", "b", "dealer"]
    if error is None:
        assert run(work, names)["dealer"] == 7
    else:
        with pytest.raises(error):
            run(work, names)
