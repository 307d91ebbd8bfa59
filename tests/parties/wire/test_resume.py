"""Connections that break between nodes: every frame arrives once, in order, or an error says so."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.stop import StopFlag
from parties.wire import control_plane, data_plane, resume, zmq_transport
from parties.wire.control_plane import ControlClient, ControlServer, Piece
from parties.wire.data_plane import DataPlane
from parties.wire.resume import ACK, ASK, BYE, RESUME, SENT, Link
from parties.wire.secure_channel import SecureChannel
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import (
    AuthenticationError,
    FrameError,
    InterruptedRunError,
    PeerLostError,
    PeerTimeoutError,
)
from protocols.sealing.handshake import Keys
from tests.support.bad_wire import BadWire
from tests.support.patience import PATIENCE_S, wait_until

LISTEN = "tcp://127.0.0.1:*"
NAMES = ("ann", "bob")
KEYS = {name: CurveKeys.generate() for name in (*NAMES, "desk")}
ALLOWED = {name: KEYS[name].public for name in NAMES}
SID = bytes(range(32))
FORTH, BACK = b"f" * 32, b"b" * 32


class Pair:
    """Ann and bob, a wire between them, and their channels: ann listens, or both are relayed."""

    def __init__(
        self, route: str, reconnect_s: float, pulse: tuple[float, float] | None = None
    ) -> None:
        self.transports = {name: Transport(KEYS[name], ALLOWED, pulse=pulse) for name in NAMES}
        listen = LISTEN if route == "direct" else None
        self.ann = DataPlane(
            self.transports["ann"], "ann", StopFlag(), listen=listen, reconnect_s=reconnect_s
        )
        self.bob = DataPlane(self.transports["bob"], "bob", StopFlag(), reconnect_s=reconnect_s)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.wire = BadWire(self.ann.address or self._serve())
        self.clients = {} if self.ann.address else {name: self._dial(name) for name in NAMES}
        theirs = self.wire.address if self.ann.address else None
        relays = {name: client.relay for name, client in self.clients.items()}

        def call(plane: DataPlane, name: str, address: str | None) -> None:
            listens = {"ann": address, "bob": None}
            plane.open(SID, listens, relays.get(name), PATIENCE_S)

        at_once(
            lambda: call(self.ann, "ann", self.ann.address), lambda: call(self.bob, "bob", theirs)
        )
        ann, bob = (Keys(a, b, SID, b"x" * 32) for a, b in ((FORTH, BACK), (BACK, FORTH)))
        self.first = SecureChannel(self.ann, "ann", SID, {"bob": ann}, PATIENCE_S)
        self.second = SecureChannel(self.bob, "bob", SID, {"ann": bob}, PATIENCE_S)

    def _serve(self) -> str:
        transport = Transport(KEYS["desk"], ALLOWED)
        server = ControlServer(transport, LISTEN, {"ann": ("bob",), "bob": ("ann",)})

        def work() -> None:
            while not self._over.is_set():
                for arrival in server.poll(0.05):
                    server.keep(arrival.process)
                server.lost()
            server.close(0)
            transport.close()

        self._start(work)
        return server.address

    def _dial(self, name: str) -> ControlClient:
        """The connection of a node, which a thread looks after until the end."""
        client = ControlClient(self.transports[name], self.wire.address, KEYS["desk"].public)
        client.send(b"hello")

        def work() -> None:
            while not self._over.is_set():
                client.poll(0.2)
                client.state()
            client.close(0)

        self._start(work)
        return client

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def close(self) -> None:
        self.wire.close()
        for plane in (self.ann, self.bob):
            plane.close(0)
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self.clients.values():
            client.relay.close()
        for transport in self.transports.values():
            transport.close()


@contextmanager
def pair(
    route: str = "direct",
    *,
    reconnect_s: float = PATIENCE_S,
    pulse: tuple[float, float] | None = None,
) -> Iterator[Pair]:
    made = Pair(route, reconnect_s, pulse)
    try:
        yield made
    finally:
        made.close()


def at_once(*calls: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def work(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def talk(made: Pair, rounds: int, meddle: Callable[[int], None]) -> None:
    """Both ends send and receive `rounds` frames of many sizes, and check each."""
    sizes = (0, 100, 5_000, 200_000, 1 << 20)

    def run(channel: SecureChannel, peer: str) -> None:
        for number in range(rounds):
            size = sizes[number % len(sizes)]
            if channel is made.first:
                meddle(number)
            channel.send(peer, b"round %d" % number, bytes([number % 256]) * size)
            label, payload = channel.receive(peer, 1 << 20)
            assert label == b"round %d" % number
            assert payload == bytes([number % 256]) * size

    at_once(lambda: run(made.first, "bob"), lambda: run(made.second, "ann"))


@pytest.mark.parametrize("route", ["direct", "relayed"])
def test_a_wire_that_is_cut_again_and_again_loses_nothing(route: str) -> None:
    with pair(route) as made:
        talk(made, 120, lambda number: made.wire.cut() if number % 30 == 15 else None)
        assert made.wire.cuts == 4 and made.wire.connections > 4
        for plane, peer in ((made.ann, "bob"), (made.bob, "ann")):
            link = plane._links[peer]
            assert link.sent == link.received == 120


def test_frames_that_only_one_end_sends_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender does not read, so that only its keeper sees the questions of the other end."""
    monkeypatch.setattr(data_plane, "KEEPER_S", 0.05)
    with pair() as made:
        for number in range(200):
            made.second.send("ann", b"", bytes(20_000))
            if number in (50, 199):
                made.wire.cut()
        for _ in range(200):
            assert made.first.receive("bob", 20_000)[0] == b""
        link = made.bob._links["ann"]
        wait_until(lambda: link.acknowledged == 200, "everything to be acknowledged")
        assert link.repeated > 0 and not link._kept and link.room == resume.MAX_KEPT_BYTES


def test_what_was_not_read_before_a_break_is_read_once() -> None:
    with pair() as made:
        for number in range(20):
            made.first.send("bob", b"%d" % number, b"")
        time.sleep(0.3)  # they arrive, and lie in bob's socket
        made.wire.cut()
        assert [made.second.receive("ann", 0)[0] for _ in range(20)] == [
            b"%d" % number for number in range(20)
        ]
        made.first.send("bob", b"next", b"")
        assert made.second.receive("ann", 0)[0] == b"next"


def test_a_peer_that_does_not_come_back_is_lost() -> None:
    with pair(reconnect_s=0.6) as made:
        made.first.send("bob", b"", b"")
        made.second.receive("ann", 0)
        made.wire.refuse()
        for channel, peer in ((made.first, "bob"), (made.second, "ann")):
            with pytest.raises(PeerLostError, match=f"{peer} broke and did not come back within"):
                channel.receive(peer, 0)


def test_no_patience_means_none() -> None:
    with pair(reconnect_s=0) as made:
        made.wire.cut()
        with pytest.raises(PeerLostError, match=r"the connection to ann broke\Z"):
            made.second.receive("ann", 0)


def test_who_closes_is_not_waited_for() -> None:
    with pair() as made:
        made.second.send("ann", b"last", b"words")
        made.bob.close(1)
        started = time.monotonic()
        assert made.first.receive("bob", 5)[0] == b"last"
        with pytest.raises(PeerLostError, match="bob closed the connection"):
            made.first.receive("bob", 0)
        assert time.monotonic() - started < 3


@pytest.mark.slow
@pytest.mark.parametrize("route", ["direct", "relayed"])
def test_a_wire_that_stalls_is_noticed(route: str) -> None:
    """Longer than heartbeats allow: the connection is given up, and made again."""

    def meddle(number: int) -> None:
        if number == 20:
            made.wire.stall()
            threading.Timer(4, made.wire.flow).start()

    with pair(route, pulse=(0.2, 1.0)) as made:
        talk(made, 40, meddle)
        assert made.wire.connections > 1


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one refuses."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(zmq_transport, "numeric_addresses", lambda address: [nobody, address])
        with pair() as made:
            talk(made, 5, lambda number: None)
            assert made.bob._dialled["ann"].attempts == 2


def test_a_sender_waits_for_acknowledgements(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as made:
        for link in (made.ann._links["bob"], made.bob._links["ann"]):
            link.room = 3 << 20

        def send(channel: SecureChannel, peer: str) -> None:
            for _ in range(20):
                channel.send(peer, b"", bytes(1 << 20))
            for _ in range(20):
                channel.receive(peer, 1 << 20)

        # More than either may keep, before either asks for a frame.
        at_once(lambda: send(made.first, "bob"), lambda: send(made.second, "ann"))


def links() -> tuple[Link, Link]:
    return Link(b"a" * 32, b"b" * 32), Link(b"b" * 32, b"a" * 32)


Lost = st.lists(st.sampled_from(["pass", "lose", "copy", "swap", "break"]), max_size=60)


@given(Lost, Lost)
def test_whatever_the_wire_does_frames_arrive_once_in_order(
    there: list[str], back: list[str]
) -> None:
    """A sender and a receiver over a wire that loses, copies and reorders frames and messages."""
    sender, receiver = links()
    sender.lossy = True
    taken: list[int] = []
    wire: list[tuple[int, bytes]] = []
    answers: list[bytes] = []

    def hand_over(fate: str) -> None:
        if fate == "swap" and len(wire) > 1:
            wire[0], wire[1] = wire[1], wire[0]
        if not wire or fate == "lose":
            del wire[:1]
            return
        number, data = wire[0] if fate == "copy" else wire.pop(0)
        if number < 0:
            answer = receiver.read(data)
        elif number == receiver.received:
            receiver.received += 1
            taken.append(data[0])
            answer = ACK if receiver.received % 3 == 0 else None
        else:
            receiver._asked = (0.0, -1)
            answer = receiver.asks() if number > receiver.received else None
        if answer is not None:
            answers.append(receiver.message(answer))

    def answer(fate: str) -> None:
        if answers and fate != "lose":
            sender.read(answers[0] if fate == "copy" else answers.pop(0))
        elif answers:
            answers.pop(0)
        if fate == "break":
            wire.clear()
            answers.clear()
            sender.breaks(1.0)
            answers.append(receiver.message(ASK))

    def hand() -> None:
        while sender.passed < sender.sent and not sender.held:
            wire.append((sender.passed, bytes(sender.frame(sender.passed)[0])))
            sender.passed += 1

    fates = iter(zip(there + ["pass"] * 10, back + ["pass"] * 10, strict=False))
    for number in range(30):
        sender.keep((bytes([number]),), 1)
        hand()
        a, b = next(fates, ("pass", "pass"))
        hand_over(a)
        answer(b)
    for _ in range(400):
        if sender.held:
            answers.append(receiver.message(RESUME))
        hand()
        if not wire and not answers and sender.passed > sender.acknowledged:
            wire.append((-1, sender.message(SENT)))
        receiver._asked = (0.0, -1)
        hand_over("pass")
        answer("pass")
    assert taken == list(range(30))
    assert sender.acknowledged == 30 and sender.room == resume.MAX_KEPT_BYTES


def test_a_forged_message_is_refused() -> None:
    sender, receiver = links()
    sender.keep((b"frame",), 5)
    good = receiver.message(ACK)
    for data in (
        good[:-1],
        good + b"\0",
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:1] + bytes([RESUME]) + good[2:],
        good[:9] + b"\1" + good[10:],
        sender.message(SENT),
        b"\xff",
    ):
        with pytest.raises(AuthenticationError, match="does not verify"):
            sender.read(data)
    assert sender.read(good) is None


def test_frames_that_were_never_sent_cannot_have_arrived() -> None:
    sender, receiver = links()
    receiver.received = 1
    with pytest.raises(FrameError, match="1 frames are said to have arrived, but 0 were sent"):
        sender.read(receiver.message(ACK))


def test_an_old_copy_rewinds_nothing() -> None:
    sender, receiver = links()
    old = receiver.message(RESUME)
    for number in range(3):
        sender.keep((bytes([number]),), 1)
    sender.passed = receiver.received = 3
    sender.read(receiver.message(ACK))
    assert sender.read(old) is None
    assert sender.passed == 3 and sender.repeated == 0


def test_who_asks_again_and_again_gets_few_second_copies() -> None:
    """What is under way over a connection that loses nothing arrives; copies would fill queues."""
    sender, receiver = links()
    for number in range(5):
        sender.keep((bytes([number]),), 1)
    sender.passed = 5
    for kind in (RESUME, ASK, RESUME):
        sender.read(receiver.message(kind))
        assert sender.repeated == 5  # once, should a frame be lost for all that
        sender.passed = 5
    for number in range(1, 5):
        receiver.received = number
        sender.read(receiver.message(RESUME))
        sender.passed = 5
    assert sender.repeated == 5 + 4
    receiver.received = 4
    sender.breaks(1.0)
    sender.read(receiver.message(RESUME))
    assert sender.passed == 4 and sender.repeated == 5 + 4 + 1
    sender.passed = 5
    sender.lossy = True  # the coordinator's relay drops frames, and nothing breaks
    sender.read(receiver.message(RESUME))
    assert sender.passed == 4


def test_what_arrives_while_it_is_sent_again_is_not_sent() -> None:
    sender, receiver = links()
    for number in range(5):
        sender.keep((bytes([number]),), 1)
    sender.passed = 5
    sender.breaks(1.0)
    sender.read(receiver.message(RESUME))
    receiver.received = 3  # they were under way over the connection that broke
    sender.read(receiver.message(ACK))
    assert sender.passed == 3 and sender.frame(sender.passed) == (b"\3",)


def test_only_the_relay_is_taken_to_lose_frames() -> None:
    for route in ("direct", "relayed"):
        with pair(route) as made:
            assert made.ann._links["bob"].lossy is (route == "relayed")


class Flood:
    """In place of `DataPlane._read`: a peer that sends without end, and nothing that is due."""

    def __init__(self, limit: int) -> None:
        self._limit, self.reads = limit, 0

    def __call__(self, peer: str, *, wait: bool = True) -> tuple[bool, None]:
        self.reads += 1
        assert self.reads <= self._limit, "it reads without end"
        return True, None


def test_a_flood_does_not_keep_the_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who computes would wait for the keeper, and not even hear that the run is over."""
    with pair() as made:
        flood = Flood(10 * data_plane.MAX_LOOKS)
        monkeypatch.setattr(made.ann, "_read", flood)
        made.ann._read_ahead(data_plane.MAX_AHEAD_FRAMES)
        assert flood.reads == data_plane.MAX_LOOKS
        monkeypatch.undo()


def test_a_flood_does_not_keep_a_sender_that_has_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as made:
        monkeypatch.setattr(made.ann, "_read", Flood(100))
        link = made.ann._links["bob"]
        link.room = -1
        made.ann._stop.set(RuntimeError("enough"))
        with pytest.raises(InterruptedRunError, match="sending to bob: enough"):
            made.ann._make_room("bob", link)
        monkeypatch.undo()


def test_a_farewell_says_what_it_sent() -> None:
    sender, receiver = links()
    sender.keep((b"frame",), 5)
    assert receiver.read(sender.message(BYE)) == RESUME
    assert receiver.closed


def test_frames_without_content_are_not_kept_without_end() -> None:
    sender, _ = links()
    for _ in range(100):
        sender.keep((b"",), 0)
    assert sender.room <= resume.MAX_KEPT_BYTES - 100 * resume.KEPT_COST_BYTES


def test_a_kept_frame_does_not_change_with_its_buffer() -> None:
    """It is sent again as it was sealed, whatever its owner does with the buffer meanwhile."""
    for size in (10, data_plane.INLINE_BYTES + 1):
        buffer = bytearray(size)
        parts = data_plane._pack(0, 0, b"label", memoryview(buffer))
        before = b"".join(map(bytes, parts))
        buffer[-1] = 1
        assert b"".join(map(bytes, parts)) == before


def test_a_frame_acknowledges_what_its_sender_had_received() -> None:
    """Nodes that talk to each other without a pause send nothing else that does."""
    with pair() as made:
        made.ann._keeper.end()
        link = made.ann._links["bob"]
        for _ in range(2):
            link.keep((b"frame",), 5)
        link.passed = 2
        (head,) = data_plane._pack(link.received, 2, b"label", b"")
        assert made.ann._take("bob", [Piece(memoryview(head))]) == ("bob", (b"label", b""))
        assert link.acknowledged == 2 and link.room == resume.MAX_KEPT_BYTES


def test_a_newer_connection_shows_that_the_older_one_is_gone() -> None:
    """The other end may notice a break first: what was passed to the old connection is lost, so
    nothing more is passed before the peer has said what it received."""
    with pair() as made:
        made.ann._keeper.end()
        listening, link = made.ann._listening, made.ann._links["bob"]
        assert listening is not None and not link.held
        listening.names[b"newer"], listening.numbers[b"newer"] = "bob", 1 << 20
        made.ann._accept(listening, b"newer", [Piece(memoryview(SID))])  # type: ignore[list-item]
        assert link.held and made.ann._routes["bob"] == b"newer"
    transport = Transport(KEYS["desk"], ALLOWED)
    server = ControlServer(transport, LISTEN, {})
    try:
        for attempt, resumes in ((1, 0), (2, 1)):
            said = control_plane._SESSION.pack(b"p" * 16, attempt, resumes)
            server._open("ann", b"route %d" % attempt, said)
            link = server._processes[b"p" * 16].link
            assert link.held is (attempt == 2)
    finally:
        server.close(0)
        transport.close()


def test_a_peer_that_is_waited_for_is_not_taken_for_a_silent_one() -> None:
    """The coordinator says who is away; then a peer's own patience with it does not run."""
    with pair() as made:
        made.ann.away = {"bob"}
        threading.Timer(1.0, lambda: setattr(made.ann, "away", ())).start()
        started = time.monotonic()
        with pytest.raises(PeerTimeoutError, match="bob sent nothing"):
            made.ann.receive("bob", 0.2)
        assert time.monotonic() - started > 1.0


def test_a_last_frame_that_was_lost_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing follows that would show the peer that it is missing."""
    monkeypatch.setattr(resume, "AGAIN_S", 0.0)
    with pair() as made:
        made.ann._keeper.end()
        said: list[int | None] = []
        monkeypatch.setattr(made.ann, "_say", lambda peer, kind: said.append(kind))
        link = made.ann._links["bob"]
        made.ann._tend()
        assert SENT not in said
        link.keep((b"frame",), 5)
        link.passed = 1  # handed to a connection that lost it
        for _ in range(3):
            made.ann._tend()
        assert SENT in said
        monkeypatch.undo()


def test_names_of_connections_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that comes back a million times takes no memory for each of them."""
    monkeypatch.setattr(zmq_transport, "MAX_GONE", 3)
    with pair() as made:
        made.ann._keeper.end()
        listening = made.ann._listening
        assert listening is not None
        before = len(listening.names)
        for number in range(10):
            route = b"route %d" % number
            listening.names[route], listening.numbers[route] = "bob", number
            listening._lose(route)
        assert len(listening.names) == len(listening.numbers) == before + 3
        made.ann._tend()  # of a connection whose name is forgotten
