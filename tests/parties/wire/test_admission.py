"""Who gets in at a node's data port, and what the network sees of what travels there."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from parties.errors import TransportError
from parties.stop import StopFlag
from parties.wire.admission import Ticket, make_ticket
from parties.wire.data_plane import DataPlane
from parties.wire.secure_channel import SecureChannel
from parties.wire.zmq_transport import (
    EARLY_MS,
    Accepted,
    CurveKeys,
    Dialled,
    Transport,
)
from parties.wire.zmq_transport import PATIENCE_S as KNOCK_S
from protocols.sealing.handshake import Keys
from tests.support.patience import PATIENCE_S, wait_until

LISTEN = "tcp://127.0.0.1:*"
NAMES = ("ann", "bob")
KEYS = {name: CurveKeys.generate() for name in (*NAMES, "mallory")}
ALLOWED = {name: KEYS[name].public for name in NAMES}
SID = bytes(range(32))


def ticket(
    holder: str, other: str, session: bytes = SID, *, dialler: str = "bob", number: int = 0
) -> Ticket:
    listener = "ann" if dialler == "bob" else "bob"
    secret, public = KEYS[holder].secret, KEYS[other].public
    return make_ticket(secret, public, session, dialler=dialler, listener=listener, number=number)


def test_both_ends_make_the_same_ticket_and_nobody_else_does() -> None:
    good = ticket("bob", "ann")
    assert ticket("ann", "bob") == good and good.name == "bob" and len(good.proof) == 64
    others = [
        ticket("mallory", "ann"),
        ticket("bob", "ann", bytes(32)),
        ticket("bob", "ann", dialler="ann"),
        ticket("bob", "ann", number=1),
    ]
    assert len({good.proof, *(other.proof for other in others)}) == 5
    assert good.proof not in repr(good)


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), bytes(31)])
def test_what_is_no_key_is_an_error(public: bytes) -> None:
    with pytest.raises(TransportError, match="bob or ann"):
        make_ticket(KEYS["bob"].secret, public, SID, dialler="bob", listener="ann")


@contextmanager
def port(*, by_ticket: bool) -> Iterator[tuple[Transport, Accepted]]:
    """A listening socket of ann's, told to expect bob if it admits by ticket."""
    transport = Transport(KEYS["ann"], ALLOWED)
    accepted = Accepted(transport, LISTEN, 1 << 20, by_ticket=by_ticket)
    if by_ticket:
        accepted.expect(["bob"], SID, "ann")
    try:
        yield transport, accepted
    finally:
        accepted.close(0)
        transport.close()


def gets_in(accepted: Accepted, proof: bytes | Ticket, *, keys: str = "bob") -> str | None:
    """Dial, say a word, and return the name under which it arrives."""
    return dialled(accepted, proof, keys, PATIENCE_S)


def stays_out(accepted: Accepted, proof: bytes | Ticket, *, keys: str = "bob") -> bool:
    """Whether a word said there does not arrive, within the time of some tries."""
    return dialled(accepted, proof, keys, 0.7) is None


def dialled(accepted: Accepted, proof: bytes | Ticket, keys: str, patience_s: float) -> str | None:
    transport = Transport(KEYS[keys], ALLOWED)
    link = Dialled(transport, accepted.address, proof, 1 << 20)
    link.send((b"word",))
    deadline = time.monotonic() + patience_s
    found = None
    while found is None and time.monotonic() < deadline:
        message = accepted.receive()
        found = accepted.names[message[0]] if message is not None else None
    link.close(0)
    transport.close()
    return found


def test_what_was_not_read_before_a_break_is_read_once() -> None:
    transport = Transport(KEYS["bob"], ALLOWED)
    with port(by_ticket=False) as (_, accepted):
        link = Dialled(transport, accepted.address, lambda _: KEYS["ann"].public, 1 << 20)
        link.send((b"hello",))
        found: list[bytes] = []

        def come() -> bool:
            link.update()
            found.extend(route for route, _ in filter(None, [accepted.receive()]))
            return bool(found)

        wait_until(come, "a word of bob")
        for number in range(3):
            accepted.send(found[0], (b"%d" % number,))
        silent, other = socket.socketpair()
        with silent, other:
            assert not link.wait(PATIENCE_S, silent.fileno()), "a message came first"
    # In a thread of its own: a loop without end is a failure, not a test that hangs.
    again = threading.Thread(target=lambda: wait_until(link.update, "a new attempt"), daemon=True)
    again.start()
    again.join(20)
    assert not again.is_alive()
    read = [link.receive(wait=False) for _ in range(4)]
    assert [None if parts is None else parts[0].bytes for parts in read] == [b"0", b"1", b"2", None]
    link.close(0)
    transport.close()


def test_a_ticket_admits_once() -> None:
    with port(by_ticket=True) as (transport, accepted):
        assert gets_in(accepted, ticket("bob", "ann")) == "bob"
        assert stays_out(accepted, ticket("bob", "ann"))
        wait_until(lambda: transport.refused >= 1, "the refusal")


def test_only_a_later_ticket_admits_the_same_node_again() -> None:
    with port(by_ticket=True) as (_, accepted):
        assert gets_in(accepted, ticket("bob", "ann", number=3)) == "bob"
        assert stays_out(accepted, ticket("bob", "ann", number=2))
        assert stays_out(accepted, ticket("bob", "ann", number=3))
        assert gets_in(accepted, ticket("bob", "ann", number=4)) == "bob"


@pytest.mark.parametrize(
    "shown",
    [
        ticket("mallory", "ann"),
        ticket("bob", "ann", bytes(32)),
        ticket("bob", "ann", dialler="ann"),
        Ticket("bob", 0, "0"),
        Ticket("bob", 0, "0" * 64),
        Ticket("bob", 1, ticket("bob", "ann").proof),
        Ticket("mallory", 0, ticket("bob", "ann").proof),
    ],
)
def test_another_ticket_does_not_admit_nor_use_up_the_right_one(shown: Ticket) -> None:
    with port(by_ticket=True) as (transport, accepted):
        assert stays_out(accepted, shown)
        wait_until(lambda: transport.refused == 1, "the refusal")
        assert gets_in(accepted, ticket("bob", "ann")) == "bob"


def test_a_port_for_tickets_takes_no_keys_and_a_port_for_keys_no_tickets() -> None:
    with port(by_ticket=True) as (_, accepted):
        assert stays_out(accepted, KEYS["ann"].public)
    with port(by_ticket=False) as (_, accepted):
        assert stays_out(accepted, ticket("bob", "ann"))
        assert stays_out(accepted, KEYS["ann"].public, keys="mallory")
        assert gets_in(accepted, KEYS["ann"].public) == "bob"


KEY, PLAIN = KEYS["bob"].public, (b"bob/0", ticket("bob", "ann").proof.encode())


@pytest.mark.parametrize(
    ("version", "domain", "mechanism", "credentials", "admitted"),
    [
        (b"1.0", b"keys", b"CURVE", (KEY,), True),
        (b"1.0", b"keys", b"CURVE", (KEYS["mallory"].public,), False),
        (b"1.0", b"keys", b"CURVE", (), False),
        (b"1.0", b"keys", b"CURVE", (KEY, KEY), False),
        (b"1.0", b"keys", b"PLAIN", PLAIN, False),
        (b"1.0", b"keys", b"NULL", (), False),
        (b"1.0", b"tickets", b"PLAIN", PLAIN, True),
        (b"1.0", b"tickets", b"PLAIN", (b"ann/0", PLAIN[1]), False),
        (b"1.0", b"tickets", b"PLAIN", (b"bob", b""), False),
        (b"1.0", b"tickets", b"PLAIN", (b"bob/0",), False),
        (b"1.0", b"tickets", b"PLAIN", (b"bob", PLAIN[1]), False),
        (b"1.0", b"tickets", b"PLAIN", (b"bob/00", PLAIN[1]), False),
        (b"1.0", b"tickets", b"PLAIN", (b"\xff/0", PLAIN[1]), False),
        (b"1.0", b"tickets", b"CURVE", (KEY,), False),
        (b"1.0", b"tickets", b"NULL", (), False),
        (b"1.0", b"elsewhere", b"PLAIN", PLAIN, False),
        (b"1.0", b"", b"CURVE", (KEY,), False),
        (b"2.0", b"keys", b"CURVE", (KEY,), False),
    ],
)
def test_what_a_socket_demands_decides(
    version: bytes, domain: bytes, mechanism: bytes, credentials: tuple[bytes, ...], admitted: bool
) -> None:
    """The answers to ZeroMQ's own questions (ZAP), also to those that it asks nowhere today."""
    transport = Transport(KEYS["ann"], ALLOWED)
    transport.expect(b"tickets", ["bob"], SID, "ann")
    request = [version, b"1", domain, b"127.0.0.1", b"", mechanism, *credentials]
    status, _, name, _ = transport._verdict(request)
    due = b"bob/0" if mechanism == b"PLAIN" else b"bob"
    assert (status, name) == ((b"200", due) if admitted else (b"400", b""))
    transport.close()


@pytest.mark.parametrize("early_s", [0.3, KNOCK_S + 0.5, EARLY_MS / 1000 + KNOCK_S + 0.5])
def test_who_dials_early_gets_in_once_it_is_expected(early_s: float) -> None:
    """Also where ZeroMQ gave up on the first connection, whose request may still be answered."""
    transport = Transport(KEYS["ann"], ALLOWED)
    accepted = Accepted(transport, LISTEN, 1 << 20, by_ticket=True)
    threading.Timer(early_s, accepted.expect, [["bob"], SID, "ann"]).start()
    assert gets_in(accepted, ticket("bob", "ann")) == "bob"
    assert transport.refused == 0
    accepted.close(0)
    transport.close()


def test_a_port_closes_while_somebody_waits() -> None:
    transport = Transport(KEYS["ann"], ALLOWED)
    accepted = Accepted(transport, LISTEN, 1 << 20, by_ticket=True)
    assert stays_out(accepted, ticket("bob", "ann"))
    accepted.close(0)
    transport.close()  # the test ends only if this does


class Tap:
    """A wire between a dialling node and a listening one that keeps all that passes."""

    def __init__(self, address: str) -> None:
        self.seen = bytearray()
        host, number = address.removeprefix("tcp://").split(":")
        self._there = (host, int(number))
        self._here = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._here.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._here.accept()
        far = socket.create_connection(self._there)
        for a, b in ((near, far), (far, near)):
            threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(1 << 16):
                self.seen += octets
                target.sendall(octets)
        target.close()


def test_the_network_sees_neither_labels_nor_payloads() -> None:
    transports = {name: Transport(KEYS[name], ALLOWED) for name in NAMES}
    ann = DataPlane(transports["ann"], "ann", StopFlag(), listen=LISTEN)
    bob = DataPlane(transports["bob"], "bob", StopFlag())
    assert ann.address is not None
    tap = Tap(ann.address)
    opened: list[Callable[[], None]] = [
        lambda: ann.open(SID, {"ann": ann.address, "bob": None}, None, PATIENCE_S),
        lambda: bob.open(SID, {"ann": tap.address, "bob": None}, None, PATIENCE_S),
    ]
    threads = [threading.Thread(target=call) for call in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    there, back = b"a" * 32, b"b" * 32
    first = SecureChannel(ann, "ann", SID, {"bob": Keys(there, back, SID, b"x" * 32)}, PATIENCE_S)
    second = SecureChannel(bob, "bob", SID, {"ann": Keys(back, there, SID, b"x" * 32)}, PATIENCE_S)
    word = b"a secret that repeats itself. "
    for number in range(20):
        first.send("bob", b"step label %d" % number, word * 5000)
        second.send("ann", b"step label %d" % number, word)
    for number in range(20):
        assert second.receive("ann", 1 << 20)[0] == b"step label %d" % number
        assert first.receive("bob", 1 << 20)[1] == word
    seen = bytes(tap.seen)
    assert len(seen) > 20 * 5000 * len(word)
    assert ticket("bob", "ann").proof.encode() in seen  # the tap taps
    assert word[:8] not in seen and b"step label" not in seen
    for plane in (ann, bob):
        plane.close(0)
    for transport in transports.values():
        transport.close()
