"""Raw frames between the nodes of one session, over any route.

There are three routes between nodes, alike for the caller: a socket that dialled the peer, the one
listening socket that peers dialled, or the coordinator's relay. Which nodes listen decides the
route, so both ends choose the same. Frames of one peer and direction keep their order;
`secure_channel` interprets and authenticates them.

A frame is one message part: length of the label, label, payload; from INLINE_BYTES on the payload
is a separate part. The first message on a dialled connection is the session id, so that a node left
over from another run is not mistaken for a peer.
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from parties.errors import TransportError
from parties.stop import StopFlag
from parties.wire.control_plane import MAX_PART_BYTES, Relay
from parties.wire.tally import Tally
from parties.wire.zmq_transport import Accepted, Dialled, Part, Transport
from protocols.channel import MAX_LABEL_BYTES, Buffer
from protocols.errors import FrameError, PeerLostError, PeerTimeoutError
from protocols.sealing.record import TAG_BYTES

log = logging.getLogger(__name__)

INLINE_BYTES = 128 * 1024
"""Up to here label and payload share one message part: a second part costs 9 us a round trip
(measured on loopback), copying this many bytes at either end about as much."""

MAX_INBOX_BYTES = 4 << 30
"""How many bytes of frames of one peer are set aside during a wait for another; more is
misbehaviour."""

MAX_INBOX_FRAMES = 1 << 16
"""The same limit in frames: a peer that follows the protocol is a few dozen ahead, or sends a
table."""

FRAME_COST_BYTES = 10 << 10
"""Memory of a frame beyond its payload: about 0.7 kB of objects, and the 8 KiB that ZeroMQ reads at
a time, which a small frame that arrives alone keeps allocated (measured)."""

MAX_HEAD_BYTES = MAX_LABEL_BYTES + TAG_BYTES
"""The label as sent: sealed after the handshake."""

_LENGTH = [bytes([n]) for n in range(MAX_HEAD_BYTES + 1)]

Frame = tuple[bytes, Buffer]
"""Label and payload as sent: sealed after the handshake."""


def _pack(label: bytes, payload: Buffer) -> tuple[Buffer, ...]:
    if len(payload) <= INLINE_BYTES:
        return (b"".join((_LENGTH[len(label)], label, payload)),)
    return _LENGTH[len(label)] + label, payload


def _unpack(peer: str, parts: Sequence[Part]) -> Frame:
    head = parts[0].buffer if parts else b""
    size = head[0] if len(head) else 0
    if len(parts) > 2 or not len(head) or size > MAX_HEAD_BYTES or len(head) < 1 + size:
        raise FrameError(f"{peer} sent a frame without a well-formed label")
    label = bytes(head[1 : 1 + size])
    if len(parts) == 1:
        return label, head[1 + size :]
    if len(head) != 1 + size:
        raise FrameError(f"{peer} sent a frame with bytes between label and payload")
    return label, parts[1].buffer


def _cost(frame: Frame) -> int:
    """Memory that a waiting frame holds, also an empty one."""
    return FRAME_COST_BYTES + len(frame[0]) + len(frame[1])


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one peer: dial `address`, wait for it to dial, or use the relay."""

    kind: str
    """'dial', 'listen' or 'relay'"""
    address: str = ""


def choose_route(me: str, peer: str, listens: Mapping[str, str | None]) -> Route:
    """The route, which both ends choose alike. `listens` holds each node's address for peers.

    If both listen, the first in roster order is dialled.
    """
    mine, theirs = listens.get(me), listens.get(peer)
    if mine and (not theirs or me < peer):
        return Route("listen")
    if theirs:
        return Route("dial", theirs)
    return Route("relay")


class DataPlane:
    """Raw frames to the named peers of one session.

    `listen` binds at once, so that `address` is known before the peers are; `open` connects. Not
    thread-safe: only the compute thread uses it.
    """

    def __init__(
        self,
        transport: Transport,
        me: str,
        stop: StopFlag,
        *,
        listen: str | None = None,
        advertise: str | None = None,
    ) -> None:
        self._transport = transport
        self._me = me
        self._stop = stop
        self._dialled: dict[str, Dialled] = {}
        self._listening: Accepted | None = None
        self._routes: dict[str, bytes] = {}
        self._relay: Relay | None = None
        self._relayed: set[str] = set()
        self._inbox: dict[str, deque[Frame]] = {}
        self._inbox_bytes: dict[str, int] = {}
        self._gone: set[str] = set()
        self._ignored = Tally()
        self.address: str | None = None
        """The address that peers should dial; None if this node does not listen."""
        if listen is not None:
            self._listening = Accepted(transport, listen, MAX_PART_BYTES, by_ticket=True)
            self.address = advertise or self._listening.address
            if "//0.0.0.0:" in self.address or "//[::]:" in self.address:
                self._listening.close(0)
                raise TransportError(
                    f"listening on {listen} needs an address that peers can dial (advertise)"
                )

    def open(
        self,
        tag: bytes,
        listens: Mapping[str, str | None],
        relay: tuple[str, bytes] | None,
        timeout_s: float,
        relayed: Collection[str] = (),
    ) -> None:
        """Connect to every peer in `listens` for the session with the id `tag`.

        `relay` is the coordinator's address and CURVE key; `relayed` are the peers whose frames are
        relayed although one of the two listens. Raises PeerTimeoutError with the names that did not
        connect within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        awaited = set()
        for peer in listens:
            if peer == self._me:
                continue
            self._inbox[peer] = deque()
            self._inbox_bytes[peer] = 0
            relays = peer in relayed
            route = Route("relay") if relays else choose_route(self._me, peer, listens)
            if route.kind == "listen":
                awaited.add(peer)
            elif route.kind == "dial":
                ticket = self._transport.ticket(peer, tag, dialler=self._me, listener=peer)
                link = Dialled(self._transport, route.address, ticket, MAX_PART_BYTES)
                self._dialled[peer] = link
                link.send((tag,))
            else:
                self._relayed.add(peer)
        if self._relayed:
            if relay is None:
                raise TransportError(
                    f"neither {self._me} nor {min(self._relayed)} listens, and there is no relay"
                )
            self._relay = Relay(self._transport, *relay)
        if self._listening is not None:
            self._listening.expect(
                self._transport.ticket(peer, tag, dialler=peer, listener=self._me)
                for peer in awaited
            )
            self._await_dials(self._listening, tag, awaited, deadline)

    def _await_dials(
        self, listening: Accepted, tag: bytes, awaited: set[str], deadline: float
    ) -> None:
        while awaited:
            self._stop.check("waiting for peers to connect")
            if time.monotonic() > deadline:
                raise PeerTimeoutError(f"did not connect in time: {', '.join(sorted(awaited))}")
            message = listening.receive()
            if message is None:
                continue
            route, parts = message
            name = listening.names[route]
            if self._routes.get(name) == route:
                self._put(name, _unpack(name, parts))
            elif name in awaited and len(parts) == 1 and parts[0].bytes == tag:
                self._routes[name] = route
                awaited.discard(name)
            else:
                if count := self._ignored.add(name):
                    log.warning("ignored %s %d times: not for this session", name, count)

    def _put(self, peer: str, frame: Frame) -> None:
        self._inbox[peer].append(frame)
        self._inbox_bytes[peer] += _cost(frame)
        count = len(self._inbox[peer])
        if count > MAX_INBOX_FRAMES or self._inbox_bytes[peer] > MAX_INBOX_BYTES:
            raise FrameError(f"{peer} sent {count} unrequested frames, more than may be buffered")

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        """Queue one frame for `peer`; waits only if its queue is full.

        Raises PeerLostError, and InterruptedRunError if the node must stop.
        """
        if self._stop.reason is not None:
            self._stop.check(f"sending to {peer}")
        parts = _pack(label, payload)
        while not self._queue(peer, parts):
            self._stop.check(f"sending to {peer}")
            self._look(peer)

    def _queue(self, peer: str, parts: Sequence[Buffer]) -> bool:
        link = self._dialled.get(peer)
        if link is not None:
            return link.send(parts)
        if self._listening is not None and peer in self._routes:
            return self._listening.send(self._routes[peer], parts)
        if self._relay is not None and peer in self._relayed:
            return self._relay.send(peer, parts)
        raise TransportError(f"there is no connection to {peer} in this session")

    def receive(self, peer: str, timeout_s: float) -> Frame:
        """The next frame of `peer`.

        Raises PeerTimeoutError after `timeout_s`, PeerLostError if the connection broke and nothing
        is left to read, InterruptedRunError if the node must stop.
        """
        inbox = self._inbox[peer]
        if inbox:
            frame = inbox.popleft()
            self._inbox_bytes[peer] -= _cost(frame)
            return frame
        link = self._dialled.get(peer)
        deadline = 0.0
        while True:
            if link is not None:
                parts, name = link.receive(), peer
            else:
                name, parts = self._receive_shared(peer)
            if parts is not None and name == peer:
                return _unpack(peer, parts)
            if parts is not None:
                self._put(name, _unpack(name, parts))
            # Read the clock only after something other than the frame arrived.
            deadline = deadline or time.monotonic() + timeout_s
            self._check(peer, deadline, timeout_s, idle=parts is None)

    def _receive_shared(self, peer: str) -> tuple[str, list[Part] | None]:
        """One message of a socket that several peers share; frames from others are dropped."""
        if peer in self._relayed and self._relay is not None:
            relayed = self._relay.receive()
            if relayed is not None and relayed[0] in self._relayed:
                return relayed
        elif self._listening is not None:
            message = self._listening.receive()
            if message is not None:
                route, parts = message
                name = self._listening.names[route]
                if self._routes.get(name) == route:
                    return name, parts
                if count := self._ignored.add(name):
                    log.warning("ignored %d frames of a late connection of %s", count, name)
        return peer, None

    def _check(self, peer: str, deadline: float, timeout_s: float, *, idle: bool) -> None:
        """Called while `peer` has sent nothing. Raises if this node must stop, the peer is lost or
        the time is over."""
        self._stop.check(f"waiting for {peer}")
        if idle:
            self._look(peer)
        if time.monotonic() > deadline:
            link = self._dialled.get(peer) or (self._relay.link if self._relay else None)
            trouble = f" ({link.trouble})" if link is not None and link.trouble else ""
            raise PeerTimeoutError(f"{peer} sent nothing for {timeout_s:.0f} s{trouble}")

    def _look(self, peer: str) -> None:
        """Raise PeerLostError if the connection to `peer` broke one slice ago or earlier.

        The slice in between lets `receive` return what had arrived before the break.
        """
        if peer in self._gone:
            raise PeerLostError(f"the connection to {peer} broke")
        for name, link in self._dialled.items():
            link.update()
            if link.lost:
                self._gone.add(name)
        if self._relay is not None:
            self._relay.link.update()
            if self._relay.link.lost:
                self._gone |= self._relayed
        if self._listening is not None:
            self._listening.update()
            while self._listening.lost:
                route = self._listening.lost.popleft()
                name = self._listening.names[route]
                if self._routes.get(name) == route:
                    self._gone.add(name)

    def close(self, linger_s: float) -> None:
        """Close all connections; queued frames may still leave during `linger_s`."""
        for link in (*self._dialled.values(), self._listening, self._relay):
            if link is not None:
                link.close(linger_s)
        self._dialled.clear()
        self._listening = self._relay = None
