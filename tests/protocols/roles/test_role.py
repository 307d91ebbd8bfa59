"""Roles: frames, labels, masks used once, the dealer's window."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.comparison.compare import negative
from protocols.errors import DesyncError, FrameError, MaskReuseError, PeerLostError, ProtocolError
from protocols.ring.kernels import pack_sum, packed_size
from protocols.roles import credit, dealer, evaluator, frames
from protocols.roles.dealer import Dealer
from protocols.roles.deferred import Deferred, combine
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import unpack_words
from protocols.roles.role import Mask, Role
from protocols.roles.streams import Stream
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import public
from protocols.shares.reveal import Output, RevealGate
from tests.support.lockstep import LockstepEndpoint, LockstepLoopback, compute, run_lockstep
from tests.support.loopback import make_role, secret, shares_of

X = np.arange(-8, 8)


def run_each(
    programs: Mapping[Any, Callable[[Role], Any]], evaluators: int = 2, net: Any = None
) -> list[Any]:
    """A program of its own for each role; None in the dictionary stands for the dealer."""
    return run_lockstep(lambda role: programs[role.index](role), evaluators, net=net)


@given(st.integers(1, 64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_packing_keeps_words(bits: int, values: list[int]) -> None:
    words = np.array(values, np.int64)
    out = np.full(packed_size(len(words), bits), 0xAA, np.uint8)
    if bits == 64:
        out[:] = words.view(np.uint8)
    else:
        pack_sum(words, np.zeros_like(words), 0, bits, out)
    back = unpack_words(out, len(words), bits)
    expected = words if bits == 64 else words & ((1 << bits) - 1)
    np.testing.assert_array_equal(back, expected)
    assert len(out) <= -(-bits // 4) * 4 * len(words) / 8 + 1


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [1, 3, 8, 20, 33, 44, 61, 63, 64])
def test_dealt_values_and_openings(bits: int, evaluators: int) -> None:
    """Shares of a dealt value add up to it, whoever is last; so do openings, modulo 2^bits."""
    top = 2**bits if bits < 63 else 2**62
    dealt = np.random.default_rng(bits).integers(0, top, (evaluators + 1, 7))

    def program(role: Role) -> Any:
        found = []
        for value in dealt:
            share = role.deal(value if role.is_dealer else None, (7,), bits)
            mask = role.mask((7,), bits)
            opened = role.open(role.known(share), mask, bits)
            found.append((None if role.is_dealer else opened.get().copy(), mask.words.copy()))
        return found

    *evaluated, dealer = run_lockstep(program, evaluators)
    for k, value in enumerate(dealt):
        modulus = (1 << bits) - 1 if bits < 64 else -1
        for found in evaluated:
            np.testing.assert_array_equal((found[k][0] - dealer[k][1]) & modulus, value & modulus)


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_dealt_bits(evaluators: int) -> None:
    value = np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8)

    def program(role: Role) -> Any:
        share = role.deal_bits(value if role.is_dealer else None, (3, 5))
        mask = role.mask_bits((3, 5))
        opened = role.open_bits(role.known(share), mask)  # type: ignore[arg-type]
        return None if role.is_dealer else opened.get(), mask.octets.copy()

    *evaluated, dealer = run_lockstep(program, evaluators)
    for opened, _ in evaluated:
        np.testing.assert_array_equal(opened ^ dealer[1], value)


def test_a_mask_opens_once() -> None:
    def program(role: Role) -> None:
        mask, bits = role.mask((3,)), role.mask_bits((3,))
        role.open(role.known(np.zeros(3, np.int64)), mask)
        with pytest.raises(MaskReuseError):
            role.open(role.known(np.zeros(3, np.int64)), mask)
        role.open_bits(role.known(np.zeros(3, np.uint8)), bits)  # type: ignore[arg-type]
        with pytest.raises(MaskReuseError):
            role.open_bits(role.known(np.zeros(3, np.uint8)), bits)  # type: ignore[arg-type]

    run_lockstep(program, 2)


def test_a_step_begins_once() -> None:
    def program(role: Role) -> None:
        role.begin_step(4)
        for step in (4, 3, 0):
            with pytest.raises(MaskReuseError):
                role.begin_step(step)

    run_lockstep(program, 3)


def test_no_two_draws_of_a_step_are_alike() -> None:
    """Every word that any role draws for masks and shares, in two steps: no repetition."""

    def program(role: Role) -> Any:
        drawn = []
        for step in (1, 2):
            role.begin_step(step)
            for count in (1, 100, 5000):
                drawn.append(role.mask((count,)).words.copy())
                drawn.append(role.deal(np.zeros(count, np.int64), (count,)).copy())
        return drawn

    *evaluated, _ = run_lockstep(program, 3)
    words = np.concatenate([piece for drawn in evaluated for piece in drawn])
    assert len(np.unique(words)) == len(words)


def test_openings_of_one_moment_travel_together() -> None:
    def program(role: Role) -> int:
        x = secret(role, X)
        products = [remask(multiply(x, x)) for _ in range(5)]
        role.finish()
        before = role.rounds
        if not role.is_dealer:
            for product in products:
                product.delta.get()
        assert role.rounds == before
        return role.rounds

    assert run_lockstep(program, 3) == [1, 1, 1, 0]


def other(role: Role) -> Any:
    x = secret(role, X)
    return shares_of(remask(multiply(x, x)))


DIFFERENT: dict[str, Callable[[Role], Any]] = {
    "another operation": lambda role: shares_of(truncate(secret(role, X).shares(), 3)),
    "another shape": lambda role: shares_of(remask(multiply(*[secret(role, X[:4])] * 2))),
    "one more operation": lambda role: [remask(public(role, X).shares()), other(role)],
    "another step": lambda role: [role.begin_step(1), other(role)],
}


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("who", [0, 1])
def test_a_node_with_another_program(name: str, who: int) -> None:
    programs: dict[Any, Any] = {0: other, 1: other, None: other}
    programs[who] = DIFFERENT[name]
    with pytest.raises((DesyncError, FrameError, PeerLostError)) as caught:
        run_each(programs)
    if isinstance(caught.value, DesyncError):
        text = str(caught.value)
        assert "operation" in text and "step" in text and "p" in text


def test_desync_names_both_operations() -> None:
    programs: dict[Any, Any] = dict.fromkeys((0, 1, None), other)

    def late(role: Role) -> None:
        x = secret(role, X)
        shares_of(remask(multiply(x, x).scale(2) + multiply(x, x)))

    programs[1] = late
    with pytest.raises(
        DesyncError, match=r"(p\d|dealer) is at b'.*' step 0 operation \d+ .* this node"
    ):
        run_each(programs)


def test_a_dealer_with_another_program_of_the_same_sizes() -> None:
    """Its corrections have the right lengths and would make wrong results."""

    def swapped(role: Role) -> Any:
        x = secret(role, X)
        return shares_of(remask(multiply(x, x.scale(3)).scale(1) + multiply(x, x)))

    def squared(role: Role) -> Any:
        return shares_of(remask(multiply(*[secret(role, X)] * 2)))

    for mine in (squared, other):
        programs: dict[Any, Any] = {0: mine, 1: mine, None: swapped}
        with pytest.raises(DesyncError, match=r"dealer is at b'corr' step 0 operation \d+"):
            run_each(programs)


class Altered(LockstepLoopback):
    """Changes one frame: the `number`-th with data from `sender` to `receiver`."""

    def __init__(self, sender: str, receiver: str, tag: bytes, change: Callable[..., Any]) -> None:
        super().__init__()
        self.what = (sender, receiver, tag)
        self.change: Callable[..., Any] | None = change

    def endpoint(self, name: str) -> LockstepEndpoint:
        return AlteredEndpoint(self, name)


class AlteredEndpoint(LockstepEndpoint):
    def send(self, peer: str, label: bytes, payload: Any) -> None:
        net: Any = self.net
        if net.change is not None and net.what == (self.name, peer, bytes(label[:4])):
            label, payload = net.change(bytes(label), bytes(payload))
            net.change = None
        super().send(peer, label, payload)


CHANGES: dict[str, tuple[Callable[..., Any], type[ProtocolError]]] = {
    "truncated": (lambda label, p: (label, p[:-8]), FrameError),
    "empty": (lambda label, p: (label, b""), FrameError),
    "short label": (lambda label, p: (label[:-1], p), FrameError),
    "long label": (lambda label, p: (label + b"x", p), FrameError),
    "another tag": (lambda label, p: (b"xxxx" + label[4:], p), DesyncError),
    "another step": (lambda label, p: (label[:4] + b"\0\0\0\x09" + label[8:], p), DesyncError),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    ("sender", "receiver", "tag"),
    [
        ("p0", "p1", b"open"),
        ("p1", "p0", b"open"),
        ("p0", "p1", b"inpt"),
        ("dealer", "p1", b"corr"),
    ],
)
def test_damaged_frames(name: str, sender: str, receiver: str, tag: bytes) -> None:
    change, error = CHANGES[name]
    net = Altered(sender, receiver, tag, change)
    # Fewer corrections are missed when the dealer says that it is through.
    expected = DesyncError if (name, tag) == ("truncated", b"corr") else error
    with pytest.raises(expected) as caught:
        run_lockstep(other, 2, net=net)
    assert receiver in str(caught.value) or sender in str(caught.value)
    assert net.change is None


def test_corrections_that_nobody_asked_for() -> None:
    net = Altered("dealer", "p1", b"corr", lambda label, p: (label, p + bytes(8)))
    with pytest.raises(DesyncError, match="8 bytes"):
        run_lockstep(other, 2, net=net)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_program_that_is_longer_than_the_dealers(evaluators: int) -> None:
    """It waits for corrections that nobody will send: told at once, and not after a timeout."""

    def program(role: Role) -> None:
        x = secret(role, X)
        shares_of(remask(multiply(x, x)))
        if not role.is_dealer:
            for _ in range(evaluators):
                role.deal(None, (5,))

    with pytest.raises(DesyncError, match=r"dealer is at b'done'"):
        run_lockstep(program, evaluators)


def test_oversized_frames_are_left_to_the_channel() -> None:
    """`receive` is always given the exact size, so that a channel can refuse more."""
    asked: list[tuple[str, int]] = []

    class Watching(LockstepEndpoint):
        def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
            asked.append((peer, max_bytes))
            return super().receive(peer, max_bytes)

    class Net(LockstepLoopback):
        def endpoint(self, name: str) -> LockstepEndpoint:
            return Watching(self, name)

    run_lockstep(other, 2, net=Net())
    limits = {size for peer, size in asked if peer != "dealer"}
    assert limits == {X.nbytes, 0}, "inputs and openings of X; credits and ends are empty"


def test_the_dealer_hears_nothing_that_depends_on_data() -> None:
    transcripts = []
    for value in (X, -X * 12345):
        net = LockstepLoopback()

        def program(role: Role, value: np.ndarray = value) -> Any:
            x = secret(role, value)
            return [shares_of(remask(negative(x).shares())) for _ in range(40)]

        run_lockstep(program, 3, net=net)
        heard = {key: frames for key, frames in net.transcript.items() if key[1] == "dealer"}
        assert all(not payload for frames in heard.values() for _, payload in frames)
        transcripts.append(heard)
    assert transcripts[0] == transcripts[1]


def test_corrections_do_not_depend_on_data() -> None:
    sent = []
    for value in (X, -X * 12345):
        net = LockstepLoopback()

        def program(role: Role, value: np.ndarray = value) -> Any:
            return shares_of(remask(negative(secret(role, value)).shares()))

        run_lockstep(program, 3, net=net)
        sent.append({key: frames for key, frames in net.transcript.items() if key[0] == "dealer"})
    assert sent[0] == sent[1]


def test_many_frames_keep_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small frames, many credits: everybody ends, and the dealer is never far ahead."""
    for module in (dealer, evaluator):
        monkeypatch.setattr(module, "CORRECTION_BYTES", 256)
        monkeypatch.setattr(module, "FRAME_BYTES", 512)
    ahead = []
    net = LockstepLoopback()

    def program(role: Role) -> int:
        for step in range(1, 24):
            role.begin_step(step)
            x = secret(role, np.arange(30) - 15)
            for _ in range(10):
                shares_of(remask(negative(x).shares()))
            if not role.is_dealer:
                ahead.append(max(q.qsize() for (s, _), q in net.queues.items() if s == "dealer"))
        return role.operation

    assert len(set(run_lockstep(program, 3, net=net))) == 1
    window = credit.CREDIT_FRAMES * (credit.WINDOW_CREDITS + 2)
    sent = len(net.transcript["dealer", "p0"])
    assert sent > 3 * window, "the window was needed"
    assert max(ahead) <= window
    assert all(q.empty() for q in net.queues.values())


def test_lopsided_corrections_do_not_lock() -> None:
    """Large corrections for one evaluator, a few bytes for the other, each needing the other."""

    def program(role: Role) -> bool:
        big, small = secret(role, np.ones(40_000)), secret(role, np.ones(1))
        for _ in range(150):
            large, little = remask(multiply(big, big)), remask(multiply(small, small))
            if not role.is_dealer:
                little.delta.get()
                large.delta.get()
        return True

    assert all(run_lockstep(program, 2))


def test_large_openings_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES", 100)
    x = np.arange(77) - 30
    np.testing.assert_array_equal(
        compute(lambda r: remask(multiply(*[secret(r, x)] * 2)), 3), x * x
    )


def test_nothing_is_pending_at_the_end() -> None:
    def program(role: Role) -> None:
        other(role)
        remask(secret(role, X).shares())
        role.finish()
        role.finish()

    run_lockstep(program, 2)


def test_numbers_of_nodes() -> None:
    net = LockstepLoopback()
    with pytest.raises(ValueError, match="two"):
        make_role(net, 1, 0)
    with pytest.raises(ValueError, match="stream"):
        Dealer(net.endpoint("dealer"), names=["a", "b"], streams=[Stream(bytes(32))])


def test_repr_shows_no_secret() -> None:
    def program(role: Role) -> str:
        mask = role.mask((2,))
        return f"{role!r} {mask!r} {role.known(X)!r}"

    for text in run_lockstep(program, 2):
        assert "array" not in text and "spent=False" in text


def test_threads_of_real_processes_agree_with_lockstep() -> None:
    """The same transcript, whatever the order in which the roles happen to run."""
    from tests.support.loopback import InsecureLoopback, run_roles

    def program(role: Role) -> Any:
        return shares_of(truncate(multiply(*[secret(role, X)] * 2), 3))

    free, ordered = InsecureLoopback(), LockstepLoopback()
    run_roles(program, 3, net=free)
    run_lockstep(program, 3, net=ordered)
    for key, sent in free.transcript.items():
        assert ordered.transcript[key][: len(sent)] == sent
    assert threading.active_count() < 50


def settled() -> None:
    raise AssertionError("nothing to exchange")


def test_deferred_values() -> None:
    first: Deferred[int] = Deferred(settled)
    second: Deferred[int] = Deferred(settled)
    total = combine(lambda a, b: a + b, first, second).map(lambda c: 2 * c)
    chained = total.bind(lambda c: first.map(lambda a: a + c))
    with pytest.raises(AssertionError):
        total.get()
    first.resolve(3)
    second.resolve(4)
    assert (total.get(), chained.get()) == (14, 17)
    with pytest.raises(AssertionError, match="once"):
        first.resolve(5)
    assert "3" not in repr(first)


def test_evaluator_kinds() -> None:
    assert issubclass(Evaluator, Role) and issubclass(Dealer, Role)
    assert "array" not in repr(Mask(np.arange(3)))


class InsecureStore(deque[tuple[bytes, bytes]]):
    """Frames in the clear, in memory."""

    def put(self, label: bytes, payload: Any) -> None:
        self.append((label, bytes(payload)))

    def take(self) -> tuple[bytes, memoryview]:
        label, payload = self.popleft()
        return label, memoryview(bytearray(payload))


def ahead(role: Role, stores: list[InsecureStore] | None = None) -> None:
    """From here on the dealer's material is stored before it is used."""
    if isinstance(role, Dealer):
        role.run_ahead()
    elif isinstance(role, Evaluator):
        store = InsecureStore()
        role.store_ahead(store, lambda _: None)
        if stores is not None:
            stores.append(store)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_material_stored_ahead_gives_the_same_words(
    evaluators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a decision; and after storing nobody sends the dealer anything."""
    monkeypatch.setattr(dealer, "CORRECTION_BYTES", 1 << 12)
    net, stores = LockstepLoopback(), list[InsecureStore]()

    def program(role: Role, *, stored: bool) -> Any:
        x = secret(role, np.arange(1000))
        role.finish()
        if stored:
            ahead(role, stores)
        role.begin_step(1)
        for _ in range(30):
            x = truncate(multiply(x, x), 9)
        found = shares_of(x)
        gate = RevealGate(frozenset({Output("bit", 1)}))
        return *found, gate.decide("bit", 1, secret(role, np.array(0)))

    before = run_lockstep(lambda role: program(role, stored=False), evaluators)
    after = run_lockstep(lambda role: program(role, stored=True), evaluators, net=net)
    for one, other in zip(before, after, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len(stores) == evaluators
    assert not any(stores)
    for k in range(evaluators):
        *credits, last = [label for label, _ in net.transcript[f"p{k}", "dealer"]]
        assert last == credit.DONE
        assert credits == [
            credit.credit(credit.CREDIT_FRAMES * (1 + number)) for number in range(len(credits))
        ]
    assert credits


@pytest.mark.parametrize(("mine", "dealers"), [(1, 2), (2, 1)])
def test_other_material_than_the_program_needs_is_noticed(mine: int, dealers: int) -> None:
    def program(role: Role) -> None:
        x = secret(role, X)
        role.finish()
        ahead(role)
        role.begin_step(1)
        for _ in range(dealers if role.is_dealer else mine):
            x = truncate(multiply(x, x), 3)

    with pytest.raises(DesyncError):
        run_lockstep(program, 2)
