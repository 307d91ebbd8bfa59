"""Control connections: the coordinator's port, and each node's one connection to it.

Messages are opaque here (see `control`). A node has one TCP connection to the coordinator, for
control messages and for data frames to nodes that it cannot dial: the coordinator relays these
without reading them. Control messages arrive once, in order, also over connections that break
(`resume`): the node makes the connection again, and both ends send again what was lost. What is
relayed may get lost; the nodes at its ends notice and send it again.

The coordinator relays frames of valid size between nodes of the job that share a channel. It drops
and counts everything else, under the name that belongs to the sender's key. Relayed frames are
padded (`pad`), so that their lengths say less about what is in them.

A message may also ask for a measurement (`parties.doctor`), which is answered here and now.

The first part of a message is its kind:

    S  first on every connection: which process of the node this is (16 random octets), the number
       of its attempt to connect (64 bits), and whether it had been connected before (1 octet)
    C  a control message: its number and how many the sender has received (64 bits each), its data
    L  a message about the connection (`resume`)
    R  a frame to relay: the receiver's name, the padded frame; the receiver gets the sender's name
       instead
    D  a measurement, both ways
    U  from the coordinator: it does not know the process that says it had been connected
    T  from the coordinator: as many processes of this node as may be are connected; it comes again
"""

import contextlib
import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parties.errors import TransportError
from parties.wire.resume import ACK, ASK, BYE, SENT, Link
from parties.wire.tally import Tally
from parties.wire.zmq_transport import (
    UNREAD_MESSAGES,
    Accepted,
    Dialled,
    Inner,
    Part,
    Transport,
)
from protocols.channel import MAX_FRAME_BYTES, Buffer
from protocols.errors import AuthenticationError, FrameError, PeerLostError

log = logging.getLogger(__name__)

MAX_PART_BYTES = MAX_FRAME_BYTES + 1024
"""Enough for a frame with its label and tags; a longer part ends the connection on which it
came."""

PAD_FROM_BYTES, PAD_TO_BYTES = 256, 4096
"""Relayed frames have a power of two of bytes between these, or a multiple of the second: at most
twice what is in them, and at most 4 KiB more."""

MAX_RELAYED_BYTES = MAX_PART_BYTES + PAD_TO_BYTES

MAX_CONTROL_BYTES = 4 << 20

BATCH = 1000
"""How many messages one call takes: a flood must not keep the caller from its other duties."""

RECONNECT_S = 120.0
"""How long a peer whose connection broke may take to come back."""

CLOSING_S = 0.5
"""How long a last word may take to leave, also after an error."""

TEND_S = 0.1
"""How often a node looks after its connection while nothing comes."""

MAX_PROCESSES = 4
"""How many processes of one node may be connected: one that runs, others that are refused."""

MAX_QUEUED = 8
"""Messages between a node and the network: a control message waits behind so many frames."""

SESSION, CONTROL, LINK_MESSAGE, RELAY, MEASURE = b"S", b"C", b"L", b"R", b"D"
UNKNOWN, TOO_MANY = b"U", b"T"

_SESSION = struct.Struct(">16sQB")
_HEAD = struct.Struct(">QQ")
_SIZES = struct.Struct(">II")


def pad(parts: Sequence[Buffer]) -> bytes:
    """A frame of one or two parts as the coordinator relays it: the parts' lengths (32 bits each),
    the parts, zeros up to the length of its class."""
    first, second = parts[0], parts[1] if len(parts) > 1 else b""
    size = _SIZES.size + len(first) + len(second)
    if size <= PAD_TO_BYTES:
        full = max(PAD_FROM_BYTES, 1 << (size - 1).bit_length())
    else:
        full = -(-size // PAD_TO_BYTES) * PAD_TO_BYTES
    return b"".join((_SIZES.pack(len(first), len(second)), first, second, bytes(full - size)))


def unpad(sender: str, data: memoryview) -> "list[Piece]":
    """The parts of a relayed frame. Raises FrameError."""
    if len(data) >= _SIZES.size:
        first, second = _SIZES.unpack_from(data)
        end = _SIZES.size + first
        if end + second <= len(data):
            pieces = [Piece(data[_SIZES.size : end]), Piece(data[end : end + second])]
            return pieces if second else pieces[:1]
    raise FrameError(f"{sender} sent a relayed frame without well-formed lengths")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a relayed frame; has what is used of a `Part`."""

    buffer: memoryview

    @property
    def bytes(self) -> bytes:
        return bytes(self.buffer)

    def __len__(self) -> int:
        return len(self.buffer)


def _count(data: Part) -> tuple[int, int] | None:
    return _HEAD.unpack(data.buffer) if len(data) == _HEAD.size else None


Measure = Callable[[str, Sequence[Part]], Sequence[Buffer] | None]
"""What answers a measurement: the node's name and the message's parts give the answer's parts, or
None for no answer."""


def _unmeasured(name: str, parts: Sequence[Part]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message at the coordinator, with the name that CURVE authenticated.

    process: which process of the node sent it; it stays the same over all its connections.
    """

    process: bytes
    name: str
    data: bytes
    """Empty if the message is not a control message."""


class _Process:
    """A process of a node, as the coordinator sees it."""

    def __init__(self, name: str, ident: bytes, link: Link) -> None:
        self.name, self.ident, self.link = name, ident, link
        self.attempt = -1
        self.route: bytes | None = None
        self.is_kept = False
        """Whether its place is kept while its connection is broken."""


class ControlServer:
    """The coordinator's port, for use by one thread.

    neighbours: for each node of the job, the nodes to which it may send frames; a node can send
    only under its own name. reconnect_s: how long the place of a process is kept whose connection
    broke; 0: not at all. dropped: frames that were not relayed, by sender. measure: answers
    measurements. Raises PortInUseError and TransportError.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        neighbours: Mapping[str, Collection[str]],
        measure: Measure = _unmeasured,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        largest = max(MAX_RELAYED_BYTES, MAX_CONTROL_BYTES + 1024)
        self._transport = transport
        self._measure = measure
        self._accepted = Accepted(transport, address, largest, queued=UNREAD_MESSAGES)
        self._neighbours = neighbours
        self._reconnect_s = reconnect_s
        self._processes: dict[bytes, _Process] = {}
        self._by_route: dict[bytes, _Process] = {}
        self._nodes: dict[str, _Process] = {}
        """By name, the process whose place is kept."""
        self.address = self._accepted.address
        self.relayed_bytes = 0
        self.dropped = Tally()
        self.news: deque[tuple[str, str, float]] = deque()
        """'reconnecting' or 'reconnected', a node's name, and for how many seconds its connection
        was broken; oldest first."""

    def poll(self, timeout_s: float) -> Iterator[Arrival]:
        """The control messages that arrive within `timeout_s`; returns as soon as there are
        some."""
        patience = timeout_s
        for _ in range(BATCH):
            if not self._accepted.waiting(patience):
                return
            patience = 0.0
            message = self._accepted.receive()
            if message is None:
                return
            route, parts = message
            name, kind = self._accepted.names[route], parts[0].bytes
            process = self._by_route.get(route)
            if kind == SESSION and len(parts) == 2 and len(parts[1]) == _SESSION.size:
                self._open(name, route, parts[1].bytes)
            elif kind == MEASURE:
                if (answer := self._measure(name, parts[1:])) is not None:
                    self._reply(route, (MEASURE, *answer))
            elif process is None:
                # Whenever a session ends: nodes have sent more before they hear of it.
                if dropped := self.dropped.add(name):
                    log.info("dropped %d messages of %s from before it reconnects", dropped, name)
            elif kind == RELAY and len(parts) == 3 and self._nodes.get(name) is process:
                self._relay(name, parts[1].bytes.decode("ascii", "replace"), parts[2])
            elif kind == CONTROL and len(parts) == 3 and (count := _count(parts[1])) is not None:
                data = parts[2].bytes
                good = self._take(process, *count) if len(data) <= MAX_CONTROL_BYTES else None
                if good is not False:
                    yield Arrival(process.ident, name, data if good else b"")
            elif kind != LINK_MESSAGE or len(parts) != 2 or not self._obey(process, parts[1].bytes):
                yield Arrival(process.ident, name, b"")

    def _open(self, name: str, route: bytes, data: bytes) -> None:
        """A new connection says which process it is from."""
        ident, attempt, resumes = _SESSION.unpack(data)
        process = self._processes.get(ident)
        if process is None and resumes:
            self._reply(route, (UNKNOWN,))
            return
        if process is None:
            if sum(each.name == name for each in self._processes.values()) >= MAX_PROCESSES:
                self._drop(name, "is of a process too many")
                self._reply(route, (TOO_MANY,))
                return
            link = Link(*self._transport.control_keys(ident, peer=name))
            process = self._processes[ident] = _Process(name, ident, link)
        if process.name != name or attempt <= process.attempt:
            self._drop(name, "came on an older connection")
            return
        if process.route is not None:
            self._break(process)
        process.attempt, process.route = attempt, route
        self._by_route[route] = process

    def _reply(self, route: bytes, parts: Sequence[Buffer]) -> None:
        """Answer on this connection, without a wait: whoever asks and does not read, or asks and is
        gone, must not keep or end the others' run."""
        with contextlib.suppress(PeerLostError):
            self._accepted.send(route, parts, wait=False)

    def _take(self, process: _Process, number: int, received: int) -> bool | None:
        """Whether this is the message that is due; None if what it says cannot be."""
        link = process.link
        try:
            link.forget(received)
        except FrameError:
            return None
        if number != link.received:
            if number > link.received:
                self._say(process, link.asks())
            return False
        link.received = number + 1
        return True

    def _obey(self, process: _Process, data: bytes) -> bool:
        """Take in a message about the connection; False if it is none."""
        link, down_since = process.link, process.link.down_since
        try:
            answer = link.read(data)
        except (AuthenticationError, FrameError):
            return False
        if down_since is not None and link.down_since is None:
            self.news.append(("reconnected", process.name, time.monotonic() - down_since))
        self._say(process, answer)
        self._pass(process)
        return True

    def _say(self, process: _Process, kind: int | None) -> None:
        if kind is not None:
            self._queue(process, (LINK_MESSAGE, process.link.message(kind)))

    def _queue(self, process: _Process, parts: Sequence[Buffer | Part]) -> bool:
        if process.route is None:
            return False
        try:
            return self._accepted.send(process.route, parts, wait=False)
        except PeerLostError:
            self._break(process)
            return False

    def _pass(self, process: _Process) -> None:
        link = process.link
        while link.passed < link.sent and not link.held:
            if not self._queue(process, link.frame(link.passed)):
                return
            link.passed += 1

    def _break(self, process: _Process) -> None:
        if process.route is not None:
            self._by_route.pop(process.route, None)
            process.route = None
        if process.link.down_since is None and process.is_kept and self._reconnect_s:
            self.news.append(("reconnecting", process.name, 0.0))
        process.link.breaks(time.monotonic())

    def _relay(self, sender: str, receiver: str, frame: Part) -> None:
        """Relay a frame, or drop it: the nodes send again what did not arrive."""
        if receiver not in self._neighbours.get(sender, ()):
            self._drop(sender, "is not for a node with which it shares a channel")
            return
        if len(frame) > MAX_RELAYED_BYTES:
            self._drop(sender, "does not have the size of a frame")
            return
        self._forward(sender, receiver, frame)

    def _drop(self, sender: str, why: str) -> None:
        if count := self.dropped.add(sender):
            log.warning("dropped %d messages of %s; the last one %s", count, sender, why)

    def _forward(self, sender: str, receiver: str, frame: Buffer | Part) -> None:
        target = self._nodes.get(receiver)
        if target is None or not self._queue(target, (RELAY, sender.encode(), frame)):
            log.info("a frame of %s to %s waits until that is connected", sender, receiver)
            return
        self.relayed_bytes += len(frame)

    def keep(self, process: bytes) -> None:
        """This process runs its node: from now on its place is kept when its connection breaks,
        and frames are relayed for it."""
        found = self._processes.get(process)
        if found is not None:
            found.is_kept = True
            self._nodes[found.name] = found

    def is_away(self, process: bytes) -> bool:
        """Whether the connection of this process is broken."""
        found = self._processes.get(process)
        return found is None or found.link.down_since is not None

    def lost(self) -> list[bytes]:
        """Processes that are gone since the last call: they said so, or their connection broke and
        was not made again in time. Looks after all connections."""
        self._accepted.update()
        while self._accepted.lost:
            process = self._by_route.get(self._accepted.lost.popleft())
            if process is not None:
                self._break(process)
        gone, now = [], time.monotonic()
        for process in list(self._processes.values()):
            link = process.link
            patience = self._reconnect_s if process.is_kept else 0.0
            if link.closed or (link.down_since is not None and now - link.down_since >= patience):
                self.forget(process.ident)
                gone.append(process.ident)
            else:
                self._tend(process, now)
        return gone

    def _tend(self, process: _Process, now: float) -> None:
        link = process.link
        if process.route is None:
            return
        if link.held and link.asks():
            self._say(process, ASK)
        elif link.received != link.reported:
            self._say(process, ACK)
        self._pass(process)
        if link.probes(now):
            self._say(process, SENT)

    def forget(self, process: bytes) -> None:
        """Give up a process; what it may still send is dropped."""
        found = self._processes.pop(process, None)
        if found is not None:
            if found.route is not None:
                self._by_route.pop(found.route, None)
            if self._nodes.get(found.name) is found:
                del self._nodes[found.name]

    def send(self, process: bytes, data: bytes) -> bool:
        """Queue a control message; False if the process is gone."""
        found = self._processes.get(process)
        if found is None:
            return False
        link = found.link
        head = _HEAD.pack(link.sent, link.received)
        link.keep((CONTROL, head, data), len(data))
        self._pass(found)
        return True

    def has_room(self, process: bytes) -> bool:
        """Whether another message can be sent: not while much is kept that has not arrived."""
        found = self._processes.get(process)
        return found is None or found.link.room > 0

    def close(self, linger_s: float) -> None:
        """Wait up to `linger_s` until the connected nodes have all that was sent to them; close."""
        deadline = time.monotonic() + linger_s
        while time.monotonic() < deadline and any(
            process.route is not None and process.link.acknowledged < process.link.sent
            for process in self._processes.values()
        ):
            for _ in self.poll(0.05):
                pass
            self.lost()
        for process in list(self._processes.values()):
            self._say(process, BYE)
        self._accepted.close(CLOSING_S)


class ControlClient:
    """A node's connection to the coordinator, for one thread; other threads may call only `wake`,
    and one other uses the `Relay`.

    reconnect_s: how long the coordinator is waited for when the connection broke.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        server_key: bytes,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        self._ident = os.urandom(16)
        self._reconnect_s = reconnect_s
        self._link = Link(*transport.control_keys(self._ident, server=server_key))
        self._inbox: deque[bytes] = deque()
        self._is_unknown = self._is_too_many = False
        largest = max(MAX_RELAYED_BYTES, MAX_CONTROL_BYTES) + 1024
        self._dialled = Dialled(
            transport, address, lambda _: server_key, largest, queued=MAX_QUEUED
        )
        self._greet()
        self._near, far = transport.inner_pair()
        self.relay = Relay(far)
        """The other thread's end for frames that the coordinator relays."""
        self._unsent: list[Part] | None = None
        """A frame to relay for which there was no room."""
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    @property
    def trouble(self) -> str | None:
        """A text that says why there is no connection yet; None if nothing is known to be wrong."""
        if self._is_too_many:
            return (
                f"{MAX_PROCESSES} connections under the name of this node are open at "
                f"{self._dialled.address}, as many as it lets in at once; this one waits"
            )
        return self._dialled.trouble

    @property
    def connected(self) -> bool:
        """Whether the coordinator's port is reached now; from any thread."""
        return self._dialled.connected

    @property
    def refused(self) -> bool:
        """Whether the coordinator does not admit this node's key, which another attempt does not
        change."""
        return self._dialled.refused

    @property
    def has_room(self) -> bool:
        """Whether another message can be sent: not while much is kept that has not arrived."""
        return self._link.room > 0

    def _greet(self) -> None:
        """The first message on a connection."""
        resumes = self._link.received > 0
        data = _SESSION.pack(self._ident, self._dialled.attempts, resumes)
        self._dialled.send((SESSION, data))
        if self._dialled.lost:
            self._dialled.send((LINK_MESSAGE, self._link.message(ASK)))
        else:
            self._link.restart()
            self._pass()

    def state(self) -> str:
        """'connecting', 'connected', 'reconnecting' or 'lost'."""
        self._tend()
        down_since = self._link.down_since
        away_s = 0.0 if down_since is None else time.monotonic() - down_since
        if self._link.closed or self._is_unknown or self._is_too_many:
            return "lost"
        if down_since is not None:
            return "lost" if away_s >= self._reconnect_s else "reconnecting"
        return "connected" if self._dialled.connected else "connecting"

    def _tend(self) -> None:
        """Look after the connection."""
        link, now = self._link, time.monotonic()
        if self._dialled.update():
            self._greet()
        if self._dialled.lost:
            link.breaks(now)
            self.relay.is_lost = True
            return
        if self.relay.is_lost:
            self.relay.connections += 1
            self.relay.is_lost = False
        if link.held and link.asks():
            self._say(ASK)
        elif link.received != link.reported:
            self._say(ACK)
        self._pass()
        if link.probes(now):
            self._say(SENT)

    def _say(self, kind: int | None) -> None:
        if kind is not None:
            self._dialled.send((LINK_MESSAGE, self._link.message(kind)), wait=False)

    def _pass(self) -> None:
        link = self._link
        while link.passed < link.sent and not link.held:
            if not self._dialled.send(link.frame(link.passed), wait=False):
                return
            link.passed += 1

    def poll(self, timeout_s: float) -> bytes | None:
        """The next message, or None after `timeout_s` or a `wake`. Meanwhile passes on what is
        relayed."""
        deadline = time.monotonic() + timeout_s
        while not self._inbox:
            left_s = max(0.0, deadline - time.monotonic())
            is_full = self._unsent is not None
            near = None if is_full else self._near
            woken = self._dialled.wait(min(left_s, TEND_S), self._reader, near, room=is_full)
            self._take_all()
            self._forward_all()
            self._tend()
            if woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._reader, 4096)
            if woken or not left_s:
                break
        return self._inbox.popleft() if self._inbox else None

    def _take_all(self) -> None:
        for _ in range(BATCH):
            parts = self._dialled.receive(wait=False)
            if parts is None:
                return
            self._take(parts)

    def _take(self, parts: list[Part]) -> None:
        kind, link = parts[0].bytes, self._link
        if kind == RELAY and len(parts) == 3:
            # If the other thread does not read, the frame is dropped and will be sent again.
            self._near.send(parts[1:], wait=False)
        elif kind == CONTROL and len(parts) == 3 and (count := _count(parts[1])) is not None:
            number, received = count
            try:
                link.forget(received)
            except FrameError:
                self._inbox.append(b"")
                return
            if number == link.received:
                link.received += 1
                self._inbox.append(parts[2].bytes)
            elif number > link.received:
                self._say(link.asks())
        elif kind == LINK_MESSAGE and len(parts) == 2:
            try:
                self._say(link.read(parts[1].bytes))
            except (AuthenticationError, FrameError):
                self._inbox.append(b"")
            self._pass()
        elif kind == UNKNOWN:
            self._is_unknown = True
        elif kind == TOO_MANY:
            self._is_too_many = True
        else:
            self._inbox.append(b"")

    def _forward_all(self) -> None:
        """Pass frames of the other thread on, behind control messages that wait."""
        for _ in range(BATCH):
            frame = self._unsent or self._near.receive(wait=False)
            self._unsent = None
            if frame is None:
                return
            if not self._dialled.lost and not self._dialled.send((RELAY, *frame), wait=False):
                self._unsent = frame
                return

    def send(self, data: bytes) -> None:
        """Queue a message; it is sent again until it arrived, or the coordinator is lost."""
        head = _HEAD.pack(self._link.sent, self._link.received)
        self._link.keep((CONTROL, head, data), len(data))
        self._pass()

    def wake(self) -> None:
        """From any thread: end a `poll` in progress."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"w")

    def close(self, linger_s: float) -> None:
        """Wait up to `linger_s` until all messages have arrived; say farewell, and close all but
        the relay's end, which the other thread may be using."""
        deadline = time.monotonic() + linger_s
        with contextlib.suppress(TransportError):
            while (
                self._link.acknowledged < self._link.sent
                and time.monotonic() < deadline
                and self.state() in ("connected", "reconnecting")
            ):
                self.poll(0.05)
                self._inbox.clear()
            self._say(BYE)
        self._near.close()
        self._dialled.close(min(linger_s, CLOSING_S))
        os.close(self._reader)
        os.close(self._writer)


class Relay:
    """The compute thread's end of the coordinator's relay."""

    def __init__(self, end: Inner) -> None:
        self._end = end
        self._known = 0
        self.connections = 0
        """How many connections were made after the first; the control thread counts."""
        self.is_lost = False
        """Whether the connection is broken."""

    def update(self) -> bool:
        """True if another connection was made since the last call: what was sent before may be
        lost."""
        known, self._known = self._known, self.connections
        return known != self._known

    def send(self, peer: str, parts: Sequence[Buffer]) -> bool:
        """Queue a frame for `peer`; False if the queue stayed full for a slice."""
        return self._end.send((peer.encode(), pad(parts)))

    def receive(self, *, wait: bool = True) -> tuple[str, list[Piece]] | None:
        """The sender and the parts of the next frame; None if there is none, by default after a
        slice."""
        parts = self._end.receive(wait=wait)
        if parts is None:
            return None
        sender = parts[0].bytes.decode("ascii", "replace")
        return sender, unpad(sender, parts[1].buffer)

    def close(self) -> None:
        self._end.close()
