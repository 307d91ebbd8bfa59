"""Frames on a network that alters, replays, reorders and drops them."""

from collections import deque

import pytest

from parties.wire.secure_channel import SecureChannel
from protocols.channel import Buffer
from protocols.errors import AuthenticationError, FrameError, PeerTimeoutError
from protocols.sealing.handshake import Keys

SID = bytes(range(32))
Wire = deque[tuple[bytes, Buffer]]


class OneWay:
    """What alice sends lies on `wire`, for the test to meddle with, until bob receives it."""

    def __init__(self) -> None:
        self.wire: Wire = deque()

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        self.wire.append((label, payload))

    def receive(self, peer: str, timeout_s: float) -> tuple[bytes, Buffer]:
        if not self.wire:
            raise PeerTimeoutError(f"{peer} sent nothing for {timeout_s:.0f} s")
        return self.wire.popleft()


def pair(sid: bytes = SID) -> tuple[SecureChannel, SecureChannel, Wire]:
    frames = OneWay()
    forth, back = b"f" * 32, b"b" * 32
    alice = {"bob": Keys(forth, back, b"t" * 32, b"e" * 32)}
    bob = {"alice": Keys(back, forth, b"t" * 32, b"e" * 32)}
    return (
        SecureChannel(frames, "alice", SID, alice, 1.0),
        SecureChannel(frames, "bob", sid, bob, 1.0),
        frames.wire,
    )


def test_frames_arrive_in_order_and_are_counted() -> None:
    alice, bob, _ = pair()
    for size in (0, 1, 100, 1 << 17, 1 << 20):
        alice.send("bob", b"label", bytes(size))
        label, payload = bob.receive("alice", size)
        assert label == b"label" and payload == bytes(size) and not payload.readonly
    assert (
        alice.bytes_sent
        == bob.bytes_received
        == sum((1, 100, 1 << 17, 1 << 20)) + 5 * (16 + 16 + len(b"label"))
    )
    assert alice.frames_sent == bob.frames_received == 5


def flip(wire: Wire) -> None:
    label, sealed = wire.popleft()
    altered = bytearray(sealed)
    altered[len(altered) // 2] ^= 1
    wire.appendleft((label, altered))


def relabel(wire: Wire) -> None:
    _, sealed = wire.popleft()
    wire.appendleft((b"step 2", sealed))


def shorten(wire: Wire) -> None:
    label, sealed = wire.popleft()
    wire.appendleft((label, bytes(sealed)[:-1]))


def empty(wire: Wire) -> None:
    label, _ = wire.popleft()
    wire.appendleft((label, b""))


def drop(wire: Wire) -> None:
    wire.popleft()


def swap(wire: Wire) -> None:
    wire.rotate(1)


@pytest.mark.parametrize("meddle", [flip, relabel, shorten, empty, drop, swap])
def test_a_frame_that_is_not_the_next_one_is_refused(meddle: object) -> None:
    alice, bob, wire = pair()
    alice.send("bob", b"step 1", b"first")
    alice.send("bob", b"step 1", b"second")
    assert callable(meddle)
    meddle(wire)
    with pytest.raises(AuthenticationError, match="alice"):
        bob.receive("alice", 100)
    alice.send("bob", b"step 1", b"third")
    with pytest.raises(AuthenticationError):
        bob.receive("alice", 100)


def test_a_replayed_frame_is_refused() -> None:
    alice, bob, wire = pair()
    alice.send("bob", b"step 1", b"first")
    wire.append(wire[0])
    bob.receive("alice", 100)
    with pytest.raises(AuthenticationError, match="alice, the label of a frame"):
        bob.receive("alice", 100)


def test_a_frame_of_another_session_is_refused() -> None:
    alice, bob, _ = pair(sid=bytes(32))
    alice.send("bob", b"step 1", b"first")
    with pytest.raises(AuthenticationError):
        bob.receive("alice", 100)


def test_a_frame_longer_than_asked_for_is_refused() -> None:
    alice, bob, _ = pair()
    alice.send("bob", b"step 1", bytes(101))
    with pytest.raises(FrameError, match="alice sent 101 bytes as 'step 1', at most 100"):
        bob.receive("alice", 100)


def test_a_long_label_is_refused_before_it_is_sent() -> None:
    alice, _, wire = pair()
    with pytest.raises(FrameError, match="65 bytes"):
        alice.send("bob", bytes(65), b"")
    assert not wire


def test_a_silent_peer_is_named_with_the_last_frame_that_came() -> None:
    alice, bob, _ = pair()
    with pytest.raises(PeerTimeoutError, match=r"alice .* nothing came at all"):
        bob.receive("alice", 100)
    alice.send("bob", b"step 1", b"")
    bob.receive("alice", 100)
    with pytest.raises(PeerTimeoutError, match=r"alice .* after frame 'step 1'"):
        bob.receive("alice", 100)


def keys(seed: bytes, transcript: bytes) -> tuple[Keys, Keys]:
    """Of one handshake, alice's and bob's."""
    forth, back = seed * 32, bytes([seed[0] ^ 1]) * 32
    return (
        Keys(forth, back, transcript * 32, b"e" * 32),
        Keys(back, forth, transcript * 32, b"e" * 32),
    )


def test_keys_change_by_age_at_the_same_frame_at_both_ends() -> None:
    alice, bob, wire = pair()
    seen = {key_of(alice), key_of(bob, opener=True)}
    assert len(seen) == 1
    for number in range(5):
        alice.send("bob", b"label", bytes([number]))  # under the old key, and still on its way
        alice.renew()
        alice.send("bob", b"label", bytes([number]))
        seen.add(key_of(alice))
    assert len(seen) == 6, "no key comes twice"
    for number in range(10):
        assert took(bob) == (b"label", bytes([number // 2]))
    assert key_of(alice) == key_of(bob, opener=True)
    assert not wire


def took(channel: SecureChannel) -> tuple[bytes, bytes]:
    label, payload = channel.receive("alice", 1)
    return label, bytes(payload)


def key_of(channel: SecureChannel, *, opener: bool = False) -> bytes:
    ends = channel._openers if opener else channel._sealers
    (end,) = ends.values()
    return end._key


def test_agreed_keys_take_over_without_losing_a_frame() -> None:
    alice, bob, _ = pair()
    hers, his = keys(b"n", b"u")
    for number in range(3):
        alice.send("bob", b"before", bytes([number]))
    bob.agree("alice", his)
    alice.change("bob", hers)
    alice.send("bob", b"after", b"x")
    assert [bob.receive("alice", 1)[0] for _ in range(4)] == [b"before"] * 3 + [b"after"]
    assert key_of(alice) == key_of(bob, opener=True) == b"n" * 32
    assert not bob._agreed and not alice._due
    alice.renew()
    alice.send("bob", b"after", b"y")
    assert took(bob) == (b"after", b"y")
    assert key_of(bob, opener=True) != b"n" * 32


def test_old_keys_open_nothing_any_more() -> None:
    """Neither what comes later, nor does a copy of the last frame under the old key."""
    alice, bob, wire = pair()
    hers, his = keys(b"n", b"u")
    alice.send("bob", b"label", b"x")
    copied = wire[-1]
    bob.receive("alice", 1)
    bob.agree("alice", his)
    alice.change("bob", hers)
    alice.send("bob", b"label", b"x")
    bob.receive("alice", 1)
    assert b"f" * 32 not in {one._key for one in (*alice._sealers.values(), *bob._openers.values())}
    wire.append(copied)
    with pytest.raises(AuthenticationError):
        bob.receive("alice", 1)


def test_a_key_that_was_not_agreed_on_is_refused() -> None:
    alice, bob, _ = pair()
    hers, _ = keys(b"n", b"u")
    alice.change("bob", hers)
    alice.send("bob", b"label", b"x")
    with pytest.raises(AuthenticationError, match="alice announces a key that was never agreed on"):
        bob.receive("alice", 1)


def test_an_announced_key_serves_once() -> None:
    alice, bob, _ = pair()
    hers, his = keys(b"n", b"u")
    bob.agree("alice", his)
    for _ in range(2):
        alice.change("bob", hers)
        alice.send("bob", b"label", b"x")
    assert took(bob) == (b"label", b"x")
    with pytest.raises(AuthenticationError, match="never agreed on"):
        bob.receive("alice", 1)


def test_an_announcement_that_is_dropped_or_altered_is_noticed() -> None:
    for meddle in (drop, flip):
        alice, bob, wire = pair()
        alice.renew()
        alice.send("bob", b"label", b"x")
        meddle(wire)
        with pytest.raises(AuthenticationError):
            bob.receive("alice", 1)


def test_endless_announcements_are_refused() -> None:
    alice, bob, _ = pair()
    for _ in range(9):
        alice._due["bob"] = (b"", b"")
        alice._announce("bob")
    with pytest.raises(FrameError, match="alice announces one key after the other"):
        bob.receive("alice", 1)


def test_an_announcement_has_a_bound() -> None:
    alice, bob, _ = pair()
    alice._send("bob", b"\0key-update", bytes(33))
    with pytest.raises(FrameError, match="at most 32 fit"):
        bob.receive("alice", 1 << 20)
