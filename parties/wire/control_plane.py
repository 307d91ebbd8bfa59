"""Control connections: the coordinator's port, and each node's end of the connection.

Messages are opaque here (see `control`). On the same port the coordinator relays data frames
between nodes that cannot dial each other, without reading them. A node that needs relayed frames
opens a second connection, so that the compute thread has its own.

The coordinator relays frames of valid size between nodes of the job that share a channel. It drops
and counts everything else, under the name that belongs to the sender's key.

A message may also ask for a measurement (`parties.doctor`), which is answered here and now.

The first part of a message is C: control; D: a measurement, both ways; H: a connection for relayed
frames; R: a frame to relay (then come the receiver's name and the frame's own parts; the receiver
gets the sender's name instead). A node that lost its connection for relayed frames opens another,
and frames go there. Frames for a node without one are dropped: nodes notice that and send them
again (`resume`).
"""

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from parties.errors import TransportError
from parties.wire.tally import Tally
from parties.wire.zmq_transport import UNREAD_MESSAGES, Accepted, Dialled, Part, Transport
from protocols.channel import MAX_FRAME_BYTES, Buffer
from protocols.errors import PeerLostError

log = logging.getLogger(__name__)

MAX_PART_BYTES = MAX_FRAME_BYTES + 1024
"""Enough for a frame with its label and tags; a longer part ends the connection on which it
came."""

MAX_FRAME_PARTS = 2
"""A frame is one part, or a label and a payload."""

MAX_CONTROL_BYTES = 4 << 20
MAX_EARLY_FRAMES = 4
MAX_EARLY_BYTES = 1 << 16
"""Per sender and receiver, while the receiver is not connected yet."""

BATCH = 1000
"""How many messages one call takes: a flood must not keep the caller from its other duties."""

CONTROL, RELAY_HELLO, RELAY, MEASURE = b"C", b"H", b"R", b"D"

Measure = Callable[[str, Sequence[Part]], Sequence[Buffer] | None]
"""What answers a measurement: the node's name and the message's parts give the answer's parts, or
None for no answer."""


def _unmeasured(name: str, parts: Sequence[Part]) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message at the coordinator, with the name that CURVE authenticated."""

    route: bytes
    name: str
    data: bytes
    """Empty if the message is not a control message."""


class ControlServer:
    """The coordinator's port, for use by one thread.

    neighbours: for each node of the job, the nodes to which it may send frames; a node can send
    only under its own name. dropped: frames that were not relayed, by sender. measure: answers
    measurements. Raises PortInUseError and TransportError.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        neighbours: Mapping[str, Collection[str]],
        measure: Measure = _unmeasured,
    ) -> None:
        self._measure = measure
        largest = max(MAX_PART_BYTES, MAX_CONTROL_BYTES + 1024)
        self._accepted = Accepted(transport, address, largest, queued=UNREAD_MESSAGES)
        self._neighbours = neighbours
        self._relays: dict[str, bytes] = {}
        self._early: dict[tuple[str, str], list[list[Part]]] = {}
        self.address = self._accepted.address
        self.relayed_bytes = 0
        self.dropped = Tally()
        self._stale: set[bytes] = set()
        """Connections of a session that is over: what they still send is not read."""

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
            if route in self._stale:
                continue
            name, kind = self._accepted.names[route], parts[0].bytes
            if kind == RELAY and len(parts) > 2 and self._relays.get(name) == route:
                self._relay(name, parts[1].bytes.decode("ascii", "replace"), parts[2:])
            elif kind == CONTROL and len(parts) == 2 and len(parts[1]) <= MAX_CONTROL_BYTES:
                yield Arrival(route, name, parts[1].bytes)
            elif kind == MEASURE:
                if (answer := self._measure(name, parts[1:])) is not None:
                    with contextlib.suppress(PeerLostError):
                        self._accepted.send(route, (MEASURE, *answer))
            elif kind == RELAY_HELLO and len(parts) == 1 and name in self._neighbours:
                # The newest connection counts: the node made it because an earlier one broke.
                self._relays[name] = route
                for sender in self._neighbours[name]:
                    for early in self._early.pop((sender, name), []):
                        self._forward(sender, name, early)
            else:
                yield Arrival(route, name, b"")

    def _relay(self, sender: str, receiver: str, parts: list[Part]) -> None:
        """Relay a frame, keep it for a moment, or drop it."""
        size = sum(len(part) for part in parts)
        if receiver not in self._neighbours.get(sender, ()):
            self._drop(sender, "is not for a node with which it shares a channel")
        elif len(parts) > MAX_FRAME_PARTS or size > MAX_PART_BYTES:
            self._drop(sender, "does not have the size of a frame")
        elif receiver in self._relays:
            self._forward(sender, receiver, parts)
        else:
            # Both start at the same message of the coordinator, so the receiver is about to
            # connect. Until it does, a sender has only one handshake message for it.
            early = self._early.setdefault((sender, receiver), [])
            if size <= MAX_EARLY_BYTES and len(early) < MAX_EARLY_FRAMES:
                early.append(parts)
            else:
                self._drop(sender, "is for a node that is not connected")

    def _drop(self, sender: str, why: str) -> None:
        if count := self.dropped.add(sender):
            log.warning("dropped %d frames of %s; the last one %s", count, sender, why)

    def _forward(self, sender: str, receiver: str, parts: list[Part]) -> None:
        target = self._relays[receiver]
        try:
            if not self._accepted.send(target, (sender.encode(), *parts)):
                raise TransportError(f"{receiver} accepts no more relayed frames")
        except PeerLostError:
            self._drop(sender, f"is for {receiver}, whose connection broke")
            return
        self.relayed_bytes += sum(len(part) for part in parts)

    def lost(self) -> list[bytes]:
        """Routes of connections that broke since the last call."""
        self._accepted.update()
        routes = [route for route in self._accepted.lost if route not in self._stale]
        self._stale.difference_update(self._accepted.lost)
        self._accepted.lost.clear()
        for name, route in list(self._relays.items()):
            if route in routes:
                del self._relays[name]
        return routes

    def forget(self, routes: Iterable[bytes]) -> None:
        """These connections, and all for relayed frames, belong to a session that is over: their
        nodes make new ones."""
        self._stale.update(routes, self._relays.values())
        self._relays.clear()
        self._early.clear()

    def send(self, route: bytes, data: bytes) -> bool:
        """Queue a control message; False if that connection is closed or its queue is full."""
        try:
            return self._accepted.send(route, (CONTROL, data))
        except PeerLostError:
            return False

    def close(self, linger_s: float) -> None:
        self._accepted.close(linger_s)


class ControlClient:
    """A node's control connection to the coordinator, for one thread; other threads may call only
    `wake`."""

    def __init__(self, transport: Transport, address: str, server_key: bytes) -> None:
        self._link = Dialled(transport, address, server_key, MAX_CONTROL_BYTES + 1024)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    @property
    def trouble(self) -> str | None:
        """A text that says why there is no connection yet; None if nothing is known to be wrong."""
        return self._link.trouble

    def state(self) -> str:
        """'connecting', 'connected' or 'lost'."""
        self._link.update()
        if self._link.lost:
            return "lost"
        return "connected" if self._link.connected else "connecting"

    def poll(self, timeout_s: float) -> bytes | None:
        """The next message, or None after `timeout_s` or a `wake`."""
        there = self._link.wait(timeout_s, self._reader)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        parts = self._link.receive() if there else None
        if parts is None:
            return None
        return parts[1].bytes if len(parts) == 2 and parts[0].bytes == CONTROL else b""

    def send(self, data: bytes) -> None:
        """Queue a message. Raises TransportError if the queue stays full for a slice."""
        if not self._link.send((CONTROL, data)):
            raise TransportError("the coordinator does not accept more messages")

    def wake(self) -> None:
        """From any thread: end a `poll` in progress."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"w")

    def close(self, linger_s: float) -> None:
        self._link.close(linger_s)
        os.close(self._reader)
        os.close(self._writer)


class Relay:
    """A node's connection for frames that the coordinator relays."""

    def __init__(self, transport: Transport, address: str, server_key: bytes) -> None:
        self.link = Dialled(transport, address, lambda _: server_key, MAX_PART_BYTES)
        self.link.send((RELAY_HELLO,))

    def update(self) -> bool:
        """Look after the connection; True if a new attempt to make one began: frames sent before
        may be lost."""
        if not self.link.update():
            return False
        self.link.send((RELAY_HELLO,))
        return True

    def send(self, peer: str, parts: Sequence[Buffer | Part]) -> bool:
        """Queue a frame for `peer`; False if the queue stayed full for a slice."""
        return self.link.send((RELAY, peer.encode(), *parts))

    def receive(self, *, wait: bool = True) -> tuple[str, list[Part]] | None:
        """The sender and the parts of the next frame; None if there is none, by default after a
        slice."""
        parts = self.link.receive(wait=wait)
        if parts is None:
            return None
        return parts[0].bytes.decode("ascii", "replace"), parts[1:]

    def close(self, linger_s: float) -> None:
        self.link.close(linger_s)
