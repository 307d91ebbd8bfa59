"""The data plane on loopback, several nodes in one process, and peers that misbehave."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.errors import PortInUseError, TransportError
from parties.stop import StopFlag
from parties.wire.data_plane import INLINE_BYTES, DataPlane, choose_route
from parties.wire.resume import Link
from parties.wire.zmq_transport import ZERO_COPY_BYTES, Accepted, CurveKeys, Dialled, Transport
from protocols.channel import MAX_FRAME_BYTES
from protocols.errors import FrameError, InterruptedRunError, PeerLostError, PeerTimeoutError
from tests.support.patience import PATIENCE_S, wait_until

LISTEN = "tcp://127.0.0.1:*"
NAMES = ("ann", "bob", "cleo")
KEYS = {name: CurveKeys.generate() for name in (*NAMES, "mallory")}
ALLOWED = {name: KEYS[name].public for name in NAMES}
TAG = bytes(32)


class End:
    """One node's data plane, with its transport and stop flag."""

    def __init__(self, name: str, listen: str | None = LISTEN) -> None:
        self.name = name
        self.stop = StopFlag()
        self.transport = Transport(KEYS[name], ALLOWED)
        self.plane = DataPlane(self.transport, name, self.stop, listen=listen)

    def close(self) -> None:
        self.plane.close(0)
        self.transport.close()


@contextmanager
def ends(*names: str) -> Iterator[list[End]]:
    made = [End(name) for name in names]
    try:
        yield made
    finally:
        for end in made:
            end.close()


def at_once(*calls: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def connect(made: list[End], timeout_s: float = PATIENCE_S) -> None:
    listens = {end.name: end.plane.address for end in made}
    at_once(*(lambda end=end: end.plane.open(TAG, listens, None, timeout_s) for end in made))


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)))
def test_both_ends_choose_the_same_route(a: str, b: str, listening: set[str]) -> None:
    listens = {name: f"tcp://{name}:1" if name in listening else None for name in NAMES}
    if a == b:
        return
    kinds = {choose_route(a, b, listens).kind, choose_route(b, a, listens).kind}
    assert kinds == ({"dial", "listen"} if {a, b} & listening else {"relay"})


def test_frames_of_all_sizes_arrive_in_order() -> None:
    sizes = [0, 1, INLINE_BYTES, INLINE_BYTES + 1, ZERO_COPY_BYTES, MAX_FRAME_BYTES]
    with ends("ann", "bob") as made:
        ann, bob = made
        connect(made)
        for sender, receiver in ((ann, bob), (bob, ann)):
            for number, size in enumerate(sizes):
                sender.plane.send(receiver.name, bytes([number]), bytes([number]) * size)
            for number, size in enumerate(sizes):
                label, payload = receiver.plane.receive(sender.name, 5)
                assert label == bytes([number]) and payload == bytes([number]) * size


def test_frames_of_others_are_kept_until_they_are_asked_for() -> None:
    with ends(*NAMES) as made:
        connect(made)
        ann, bob, cleo = (end.plane for end in made)
        for number in range(20):
            cleo.send("ann", b"c", bytes([number]))
        bob.send("ann", b"b", b"")
        assert ann.receive("bob", PATIENCE_S)[0] == b"b"
        assert [bytes(ann.receive("cleo", 5)[1]) for _ in range(20)] == [
            bytes([number]) for number in range(20)
        ]


def test_a_silent_peer_runs_into_the_deadline() -> None:
    with ends("ann", "bob") as made:
        connect(made)
        for end, peer in zip(made, ("bob", "ann"), strict=True):
            with pytest.raises(PeerTimeoutError, match=peer):
                end.plane.receive(peer, 0.3)


def test_what_arrived_before_a_break_is_still_read() -> None:
    with ends("ann", "bob") as made:
        ann, bob = made
        connect(made)
        bob.plane.send("ann", b"last", b"words")
        bob.plane.close(1)
        assert ann.plane.receive("bob", PATIENCE_S)[0] == b"last"
        with pytest.raises(PeerLostError, match="bob"):
            ann.plane.receive("bob", PATIENCE_S)


def test_the_dialling_end_notices_a_break_too() -> None:
    with ends("ann", "bob") as made:
        ann, bob = made
        connect(made)
        ann.plane.close(0)
        with pytest.raises(PeerLostError, match="ann"):
            bob.plane.receive("ann", PATIENCE_S)


def test_a_stop_ends_a_wait() -> None:
    with ends("ann", "bob") as made:
        connect(made)
        ann = made[0]
        threading.Timer(0.2, ann.stop.set, [RuntimeError("enough")]).start()
        with pytest.raises(InterruptedRunError, match="waiting for bob: enough"):
            ann.plane.receive("bob", PATIENCE_S)
        with pytest.raises(InterruptedRunError):
            ann.plane.send("bob", b"label", b"")


def test_a_peer_that_never_dials_is_named() -> None:
    with ends("ann") as made:
        ann = made[0].plane
        with pytest.raises(PeerTimeoutError, match="bob, cleo"):
            ann.open(TAG, {"ann": ann.address, "bob": None, "cleo": None}, None, 0.3)


def test_a_key_outside_the_list_does_not_get_in() -> None:
    with ends("ann") as made:
        ann = made[0]
        stranger = Transport(KEYS["mallory"], ALLOWED)
        plane = DataPlane(stranger, "bob", StopFlag())
        listens = {"ann": ann.plane.address, "bob": None}
        plane.open(TAG, listens, None, 1)
        with pytest.raises(PeerTimeoutError, match="bob"):
            ann.plane.open(TAG, listens, None, 0.5)
        with pytest.raises(PeerTimeoutError, match="refuses this node"):
            plane.receive("ann", 0.5)
        assert ann.transport.refused == 1
        plane.close(0)
        stranger.close()


def test_nobody_passes_for_another_node_of_the_list() -> None:
    """Cleo says bob's words on her own connection: CURVE knows her by her key."""
    with ends("ann", "cleo") as made:
        ann, cleo = made
        listens = {"ann": ann.plane.address, "bob": None}
        impostor = DataPlane(cleo.transport, "bob", StopFlag())
        impostor.open(TAG, listens, None, 1)
        with pytest.raises(PeerTimeoutError, match="bob"):
            ann.plane.open(TAG, listens, None, 0.5)
        impostor.close(0)


def test_a_connection_of_another_session_is_ignored() -> None:
    with ends("ann", "bob") as made:
        ann, bob = made
        listens = {"ann": ann.plane.address, "bob": None}
        bob.plane.open(b"x" * 32, listens, None, 1)
        with pytest.raises(PeerTimeoutError, match="bob"):
            ann.plane.open(TAG, listens, None, 0.5)


def test_who_has_a_ticket_and_names_another_session_is_ignored() -> None:
    """The first message says of which session a connection is; one that says nothing is none."""

    class Knocking:
        """A listening socket of which one admitted connection says these parts, and no more."""

        names: ClassVar = {b"1": "bob"}
        numbers: ClassVar = {b"1": 0}

        def __init__(self, *parts: bytes) -> None:
            self.messages = [(b"1", [SimpleNamespace(bytes=part) for part in parts])]

        def receive(self) -> Any:
            return self.messages.pop() if self.messages else None

    with ends("ann") as made:
        plane = made[0].plane
        plane._tag, plane._links = TAG, {"bob": Link(bytes(32), bytes(32))}
        for parts in ((b"x" * 32,), (TAG, b""), (b"",)):
            knocking: Any = Knocking(*parts)
            with pytest.raises(PeerTimeoutError, match="bob"):
                plane._await_dials(knocking, {"bob"}, time.monotonic() + 0.01)
        right: Any = Knocking(TAG)
        plane._await_dials(right, {"bob"}, time.monotonic() + 60)


def test_of_two_connections_the_one_with_the_later_ticket_counts() -> None:
    """Also if the words of the earlier one are read later."""
    with ends("ann") as made:
        plane = made[0].plane
        plane._tag, plane._links = TAG, {"bob": Link(bytes(32), bytes(32))}
        two: Any = SimpleNamespace(names={b"1": "bob", b"2": "bob"}, numbers={b"1": 0, b"2": 1})
        for route in (b"2", b"1"):
            plane._accept(two, route, [SimpleNamespace(bytes=TAG)])  # type: ignore[list-item]
        assert plane._routes == {"bob": b"2"}


@pytest.mark.parametrize("parts", [[b""], [b"\xfe"], [b"\x05abc"], [b"\x00", b"", b""]])
def test_a_malformed_frame_is_an_error(parts: list[bytes]) -> None:
    with ends("ann", "bob") as made:
        ann, bob = made
        connect(made)
        bob.plane._dialled["ann"].send(parts)
        with pytest.raises(FrameError, match="bob sent"):
            ann.plane.receive("bob", PATIENCE_S)


def test_a_port_in_use_is_named() -> None:
    with ends("ann") as made:
        address = made[0].plane.address
        assert address is not None
        transport = Transport(KEYS["bob"], ALLOWED)
        with pytest.raises(PortInUseError, match=address):
            DataPlane(transport, "bob", StopFlag(), listen=address)
        transport.close()


@pytest.mark.parametrize("address", ["tcp://nonsense", "udp://127.0.0.1:1", "tcp://1.2.3.4:99999"])
def test_an_unusable_address_is_named(address: str) -> None:
    transport = Transport(KEYS["bob"], ALLOWED)
    with pytest.raises(TransportError, match=address):
        DataPlane(transport, "bob", StopFlag(), listen=address)
    transport.close()


def test_listening_everywhere_needs_an_address_for_peers() -> None:
    transport = Transport(KEYS["bob"], ALLOWED)
    with pytest.raises(TransportError, match="advertise"):
        DataPlane(transport, "bob", StopFlag(), listen="tcp://0.0.0.0:*")
    plane = DataPlane(
        transport, "bob", StopFlag(), listen="tcp://0.0.0.0:*", advertise="tcp://bob.example:4"
    )
    assert plane.address == "tcp://bob.example:4"
    plane.close(0)
    transport.close()


def test_secrets_stay_out_of_repr() -> None:
    assert repr(KEYS["ann"].secret)[2:-1] not in repr(KEYS["ann"])


def test_what_arrived_before_a_break_is_kept_while_another_connection_is_tried() -> None:
    """Once: a message that was put back where it was taken from kept a node busy for ever."""
    desk = Transport(KEYS["bob"], ALLOWED)
    accepted = Accepted(desk, LISTEN, 1 << 20)
    own = Transport(KEYS["ann"], ALLOWED)
    link = Dialled(own, accepted.address, lambda number: ALLOWED["bob"], 1 << 20)
    link.send((b"hello",))
    wait_until(lambda: (link.update(), accepted.waiting(0.1))[1], "the first message")
    message = accepted.receive()
    assert message is not None
    for number in range(3):
        assert accepted.send(message[0], (bytes([number]),))
    time.sleep(0.2)
    accepted.close(0)
    desk.close()
    again = threading.Thread(target=lambda: wait_until(link.update, "another attempt"), daemon=True)
    again.start()
    again.join(PATIENCE_S)
    assert not again.is_alive()
    received = [link.receive(wait=False) for _ in range(4)]
    assert [parts and parts[0].bytes for parts in received] == [b"\0", b"\1", b"\2", None]
    link.close(0)
    own.close()
