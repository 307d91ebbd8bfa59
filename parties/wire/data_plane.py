"""Raw frames between the nodes of one session, over any route.

There are three routes between nodes, alike for the caller: a socket that dialled the peer, the one
listening socket that peers dialled, or the coordinator's relay. Which nodes listen decides the
route, so both ends choose the same. Frames of one peer and direction arrive once, in order;
`secure_channel` interprets and authenticates them.

A connection that breaks is made again, for up to `reconnect_s`, and what was lost with it is sent
again (`resume`). Who dialled dials again; where frames are relayed, whoever lost its connection to
the coordinator.

A frame is one message part: length of the label, two numbers (`resume`), label, payload; from
INLINE_BYTES on the payload is a separate part. The first message on a dialled connection is the
session id, so that a node left over from another run is not mistaken for a peer.

The compute thread sends and receives, and looks after all connections while it waits. While it
computes, or waits for something else, a thread of the data plane looks after them (`_Keeper`).
"""

import contextlib
import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from parties.errors import PartiesError, TransportError
from parties.stop import StopFlag
from parties.wire.admission import Ticket
from parties.wire.control_plane import (
    CLOSING_S,
    MAX_PART_BYTES,
    RECONNECT_S,
    Piece,
    Relay,
)
from parties.wire.resume import (
    ACK,
    ASK,
    BYE,
    FRAME_ACK_BYTES,
    LINK,
    MAX_KEPT_BYTES,
    MESSAGE_BYTES,
    SENT,
    Link,
)
from parties.wire.tally import Tally
from parties.wire.zmq_transport import Accepted, Dialled, Part, Transport
from protocols.channel import MAX_LABEL_BYTES, Buffer
from protocols.errors import (
    AuthenticationError,
    FrameError,
    PeerLostError,
    PeerTimeoutError,
    ProtocolError,
)
from protocols.sealing.record import TAG_BYTES

log = logging.getLogger(__name__)

INLINE_BYTES = 128 * 1024
"""Up to here label and payload share one message part: a second part costs 9 us a round trip
(measured on loopback), copying this many bytes at either end about as much."""

TELL_AFTER_S = 1.0
"""How long a break lasts before it is worth a warning."""

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

KEEPER_S = 0.5
"""How often the keeper looks whether the compute thread is elsewhere."""

MAX_AHEAD_FRAMES = 64
"""How many frames of one peer the keeper reads ahead of the compute thread."""

MAX_LOOKS = 4096
"""How many messages of one peer one look takes, whatever they are: one that floods this node with
what is not due must not keep it from its other duties."""

_HEAD = struct.Struct(">BQQ")
"""Length of the label, the frame's number, how many frames its sender had received."""

Frame = tuple[bytes, Buffer]
"""Label and payload as sent: sealed after the handshake."""


def _pack(number: int, received: int, label: bytes, payload: Buffer) -> tuple[Buffer, ...]:
    """The parts of a frame, which do not change any more even if `payload` does."""
    head = _HEAD.pack(len(label), number, received)
    if len(payload) <= INLINE_BYTES:
        return (b"".join((head, label, payload)),)
    return head + label, payload if type(payload) is bytes else bytes(payload)


def _unpack(peer: str, parts: Sequence[Part | Piece]) -> tuple[int, int, bytes, Buffer]:
    """Number, how many frames the peer had received, label and payload as sent."""
    try:
        head = parts[0].buffer
        size, number, received = _HEAD.unpack_from(head)
    except (IndexError, struct.error):
        size = MAX_HEAD_BYTES + 1
    end = _HEAD.size + size
    if size <= MAX_HEAD_BYTES and len(head) >= end:
        label = bytes(head[_HEAD.size : end])
        if len(parts) == 1:
            return number, received, label, head[end:]
        if len(parts) == 2 and len(head) == end:
            return number, received, label, parts[1].buffer
    raise FrameError(f"{peer} sent a frame without a well-formed label")


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

    `listen` binds at once, so that `address` is known before the peers are; `open` connects.
    reconnect_s: how long a peer whose connection broke may take to come back; 0: it is lost at
    once. Only the compute thread uses it.
    """

    def __init__(
        self,
        transport: Transport,
        me: str,
        stop: StopFlag,
        *,
        listen: str | None = None,
        advertise: str | None = None,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        self._transport = transport
        self._me = me
        self._stop = stop
        self._reconnect_s = reconnect_s
        self._tag = b""
        self._links: dict[str, Link] = {}
        self._untold: set[str] = set()
        """Peers whose connection broke, of which nobody has been told yet."""
        self._dialled: dict[str, Dialled] = {}
        self._listening: Accepted | None = None
        self._routes: dict[str, bytes] = {}
        self._numbers: dict[str, int] = {}
        """Of peers that dialled, the number of the latest connection's ticket."""
        self._relay: Relay | None = None
        self._relayed: set[str] = set()
        self._inbox: dict[str, deque[Frame]] = {}
        self._inbox_bytes: dict[str, int] = {}
        self._ignored = Tally()
        self._keeper = _Keeper(self._keep, stop)
        # The compute thread and the keeper exclude each other: each says that it is inside, then
        # looks whether the other is; the keeper goes away, the compute thread waits. A lock for
        # every frame would cost more than the rest of this bookkeeping.
        self._is_inside = self._is_kept = False
        self._lock = threading.Lock()
        self._seen = -1
        """How many frames had passed when the keeper looked last."""
        self.away: Collection[str] = ()
        """Peers that the coordinator is waiting for, which are not to be taken for silent ones; the
        control thread sets it."""
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
        relay: Relay | None,
        timeout_s: float,
        relayed: Collection[str] = (),
    ) -> None:
        """Connect to every peer in `listens` for the session with the id `tag`.

        `relay` is this node's end of the coordinator's relay; `relayed` are the peers whose frames
        are relayed although one of the two listens. Raises PeerTimeoutError with the names that did
        not connect within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self._tag = tag
        awaited = set()
        for peer in listens:
            if peer == self._me:
                continue
            self._inbox[peer] = deque()
            self._inbox_bytes[peer] = 0
            self._links[peer] = Link(*self._transport.link_keys(peer, tag, self._me))
            relays = peer in relayed
            route = Route("relay") if relays else choose_route(self._me, peer, listens)
            if route.kind == "listen":
                awaited.add(peer)
            elif route.kind == "dial":
                self._dialled[peer] = self._dial(peer, route.address)
            else:
                self._relayed.add(peer)
                self._links[peer].lossy = True
        if self._relayed:
            if relay is None:
                raise TransportError(
                    f"neither {self._me} nor {min(self._relayed)} listens, and there is no relay"
                )
            self._relay = relay
        if self._listening is not None:
            self._listening.expect(awaited, tag, self._me)
            self._await_dials(self._listening, awaited, deadline)
        self._keeper.start()

    def _dial(self, peer: str, address: str) -> Dialled:
        """A connection to `peer`, which this object makes again when it breaks."""

        def ticket(number: int) -> Ticket:
            return self._transport.ticket(
                peer, self._tag, dialler=self._me, listener=peer, number=number
            )

        link = Dialled(self._transport, address, ticket, MAX_PART_BYTES)
        link.send((self._tag,))
        return link

    def _await_dials(self, listening: Accepted, awaited: set[str], deadline: float) -> None:
        while missing := awaited - set(self._routes):
            self._stop.check("waiting for peers to connect")
            if time.monotonic() > deadline:
                raise PeerTimeoutError(f"did not connect in time: {', '.join(sorted(missing))}")
            message = listening.receive()
            if message is None:
                self._tend()
            elif (found := self._accept(listening, *message)) is not None:
                self._put(*found)

    def _accept(
        self, listening: Accepted, route: bytes, parts: list[Part]
    ) -> tuple[str, Frame] | None:
        """Take in a message of a connection that a peer dialled."""
        name = listening.names[route]
        if self._routes.get(name) == route:
            return self._take(name, parts)
        number = listening.numbers[route]
        is_newer = name in self._links and number > self._numbers.get(name, -1)
        if is_newer and len(parts) == 1 and parts[0].bytes == self._tag:
            if name in self._numbers:
                self._break(name)
            self._routes[name], self._numbers[name] = route, number
        elif count := self._ignored.add(name):
            log.warning("ignored %s %d times: another session or an old connection", name, count)
        return None

    def _take(self, name: str, parts: Sequence[Part | Piece]) -> tuple[str, Frame] | None:
        """The frame of `name` in this message, if it is the one that is due."""
        link = self._links[name]
        if len(parts) == 1 and len(parts[0]) == MESSAGE_BYTES and parts[0].bytes[:1] == LINK:
            self._obey(name, link, parts[0].bytes)
            return None
        number, received, label, payload = _unpack(name, parts)
        if received > link.acknowledged:
            try:
                link.forget(received)
            except FrameError as error:
                raise FrameError(f"{name}: {error}") from error
        if number != link.received:
            if number > link.received:
                self._say(name, link.asks())
            return None
        link.received = number + 1
        link.ack_in -= len(payload) + FRAME_ACK_BYTES
        if link.ack_in <= 0:
            self._say(name, ACK)
        return name, (label, payload)

    def _obey(self, name: str, link: Link, data: bytes) -> None:
        """Take in a message about the connection."""
        down_since = link.down_since
        try:
            answer = link.read(data)
        except (AuthenticationError, FrameError) as error:
            raise type(error)(f"{name}: {error}") from error
        if down_since is not None and link.down_since is None:
            gone_s = time.monotonic() - down_since
            again = link.sent - link.passed
            log.warning("%s is back after %.1f s; sending %d frames again", name, gone_s, again)
        self._say(name, answer)
        self._pass(name)

    def _put(self, peer: str, frame: Frame) -> None:
        self._inbox[peer].append(frame)
        self._inbox_bytes[peer] += _cost(frame)
        count = len(self._inbox[peer])
        if count > MAX_INBOX_FRAMES or self._inbox_bytes[peer] > MAX_INBOX_BYTES:
            raise FrameError(f"{peer} sent {count} unrequested frames, more than may be buffered")

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        """Queue one frame for `peer`; waits only while too much is not acknowledged.

        Raises PeerLostError, and InterruptedRunError if the node must stop.
        """
        if self._stop.reason is not None:
            self._stop.check(f"sending to {peer}")
        self._is_inside = True
        if self._is_kept:
            self._await_keeper()
        try:
            link = self._links.get(peer)
            if link is None:
                raise TransportError(f"there is no connection to {peer} in this session")
            number = link.sent
            parts = _pack(number, link.received, label, payload)
            link.keep(parts, len(payload))
            if link.passed == number and not link.held and self._queue(peer, parts):
                link.passed = link.sent
            elif not self._pass(peer):
                self._look(peer)
            if link.room < MAX_KEPT_BYTES // 2:
                self._make_room(peer, link)
        finally:
            self._is_inside = False

    def _await_keeper(self) -> None:
        with self._lock:
            pass

    def _make_room(self, peer: str, link: Link) -> None:
        """Read acknowledgements; wait for some if too much is kept. What else comes is set aside,
        so that nodes which send to each other do not wait for each other."""
        while True:
            arrived, found = self._read(peer, wait=link.room < 0)
            if found is not None:
                self._put(*found)
            self._stop.check(f"sending to {peer}")
            if not arrived:
                if link.room >= 0:
                    return
                self._read_ahead(MAX_INBOX_FRAMES // 2)
                self._look(peer)

    def _pass(self, peer: str) -> bool:
        """Hand the connection what was kept; False if its queue stays full for a slice, or it
        broke."""
        link = self._links[peer]
        while link.passed < link.sent and not link.held:
            if not self._queue(peer, link.frame(link.passed)):
                return False
            link.passed += 1
        return not link.held

    def _queue(self, peer: str, parts: Sequence[Buffer]) -> bool:
        dialled = self._dialled.get(peer)
        if dialled is not None:
            return dialled.send(parts)
        if peer in self._relayed:
            return self._relay is not None and self._relay.send(peer, parts)
        if self._listening is None or peer not in self._routes:
            return False
        try:
            return self._listening.send(self._routes[peer], parts)
        except PeerLostError:
            self._break(peer)
            return False

    def _say(self, peer: str, kind: int | None) -> None:
        """Send a message about the connection, if it is up. One that is lost is said again later:
        nothing depends on its arrival."""
        if kind is not None and self._is_up(peer):
            self._queue(peer, (self._links[peer].message(kind),))

    def _is_up(self, peer: str) -> bool:
        """Whether the connection to `peer`, or its first attempt, is not known to have failed."""
        if peer in self._dialled:
            return not self._dialled[peer].lost
        if peer in self._relayed:
            return self._relay is not None and not self._relay.is_lost
        return peer in self._routes

    def receive(self, peer: str, timeout_s: float) -> Frame:
        """The next frame of `peer`.

        Raises PeerTimeoutError after `timeout_s`, PeerLostError if the peer closed the connection
        or it broke and did not come back in time, InterruptedRunError if the node must stop.
        """
        self._is_inside = True
        if self._is_kept:
            self._await_keeper()
        try:
            return self._await(peer, timeout_s)
        finally:
            self._is_inside = False

    def _await(self, peer: str, timeout_s: float) -> Frame:
        link, inbox = self._links[peer], self._inbox[peer]
        deadline = 0.0
        while True:
            if inbox:
                frame = inbox.popleft()
                self._inbox_bytes[peer] -= _cost(frame)
                return frame
            arrived, found = self._read(peer)
            if found is not None:
                if found[0] == peer:
                    return found[1]
                self._put(*found)
            # Read the clock only after something other than the frame arrived.
            now = time.monotonic()
            self._stop.check(f"waiting for {peer}")
            if not arrived or link.down_since is not None:
                self._read_ahead(MAX_INBOX_FRAMES // 2)
                self._look(peer)
            if not deadline or link.down_since is not None or peer in self.away:
                deadline = now + timeout_s
            if now > deadline:
                dialled = self._dialled.get(peer)
                why = f" ({dialled.trouble})" if dialled is not None and dialled.trouble else ""
                raise PeerTimeoutError(f"{peer} sent nothing for {timeout_s:.0f} s{why}")

    def _read(self, peer: str, *, wait: bool = True) -> tuple[bool, tuple[str, Frame] | None]:
        """Take one message of the socket that carries the frames of `peer`: whether there was one,
        by default within a slice, and the frame in it with its sender, who may be another peer."""
        dialled = self._dialled.get(peer)
        if dialled is not None:
            parts = dialled.receive(wait=wait)
            return (False, None) if parts is None else (True, self._take(peer, parts))
        if peer in self._relayed and self._relay is not None:
            relayed = self._relay.receive(wait=wait)
            if relayed is None or relayed[0] not in self._relayed:
                return relayed is not None, None
            return True, self._take(*relayed)
        message = self._listening.receive(wait=wait) if self._listening is not None else None
        if message is None or self._listening is None:
            return False, None
        return True, self._accept(self._listening, *message)

    def _look(self, peer: str) -> None:
        """Look after all connections; raise PeerLostError if `peer` is not to be expected any more.

        One slice lies between a break and the error, in which `receive` returns what had arrived
        before.
        """
        now = time.monotonic()
        self._tend()
        link = self._links[peer]
        if link.closed:
            raise PeerLostError(f"{peer} closed the connection")
        if link.down_since is not None and now - link.down_since > self._reconnect_s:
            waited = f" and did not come back within {self._reconnect_s:g} s"
            raise PeerLostError(
                f"the connection to {peer} broke{waited if self._reconnect_s else ''}"
            )

    def _tend(self) -> None:
        """Notice broken connections, make them again, and say what is due."""
        for name, dialled in self._dialled.items():
            if dialled.update():
                dialled.send((self._tag,))
                self._resume(name, is_first=not dialled.lost)
            if dialled.lost:
                self._break(name)
        if self._relay is not None:
            if self._relay.update():
                for name in self._relayed:
                    self._resume(name, is_first=False)
            if self._relay.is_lost:
                for name in self._relayed:
                    self._break(name)
        if self._listening is not None:
            self._listening.update()
            while self._listening.lost:
                route = self._listening.lost.popleft()
                name = self._listening.names.get(route, "")
                if self._routes.get(name) == route:
                    self._break(name)
        now = time.monotonic()
        for name, link in self._links.items():
            if not self._is_up(name):
                self._tell(name, link, now)
                continue
            if link.held and link.asks():
                self._say(name, ASK)
            elif link.received != link.reported:
                self._say(name, ACK)
            self._pass(name)
            if link.probes(now):
                self._say(name, SENT)

    def _tell(self, name: str, link: Link, now: float) -> None:
        """Warn of a break, once, if it lasts: at the end of a run one node closes first."""
        if link.down_since is None or now - link.down_since < TELL_AFTER_S:
            return
        if name in self._untold:
            self._untold.discard(name)
            log.warning(
                "the connection to %s broke; waiting up to %g s for it", name, self._reconnect_s
            )

    def _break(self, name: str) -> None:
        link = self._links[name]
        self._routes.pop(name, None)
        if link.down_since is None:
            self._untold.add(name)
        link.breaks(time.monotonic())

    def _resume(self, name: str, *, is_first: bool) -> None:
        """On a new connection: ask what the peer has received. Before the first one was made,
        everything is sent again."""
        link = self._links[name]
        if is_first:
            link.restart()
            self._pass(name)
        else:
            self._break(name)
            self._queue(name, (link.message(ASK),))

    def _keep(self) -> None:
        """In the keeper's thread: look after the connections while the compute thread is
        elsewhere."""
        seen = sum(link.sent + link.received for link in self._links.values())
        if seen != self._seen:
            self._seen = seen
            return
        with self._lock:
            self._is_kept = True
            try:
                if not self._is_inside:
                    self._tend()
                    self._read_ahead(MAX_AHEAD_FRAMES)
            finally:
                self._is_kept = False

    def _read_ahead(self, frames: int) -> None:
        """Set aside what has arrived, up to this many frames of each peer: whoever waits to send
        more of them gets on, and with it those who wait for that node."""
        for peer, inbox in self._inbox.items():
            for _ in range(MAX_LOOKS):
                if len(inbox) >= frames:
                    break
                arrived, found = self._read(peer, wait=False)
                if found is not None:
                    self._put(*found)
                if not arrived:
                    break

    def close(self, linger_s: float) -> None:
        """Say farewell to the peers and close all connections; queued frames may still leave during
        `linger_s`, or CLOSING_S to peers that were dialled."""
        self._keeper.end()
        self._tend()
        for name in self._links:
            with contextlib.suppress(PartiesError, ProtocolError):
                self._say(name, BYE)
        # Not longer: a socket whose connection is gone keeps what is queued until then.
        for dialled in self._dialled.values():
            dialled.close(CLOSING_S)
        if self._listening is not None:
            self._listening.close(max(linger_s, CLOSING_S))
        if self._relay is not None:
            self._relay.close()
        self._dialled.clear()
        self._links.clear()
        self._listening = self._relay = None


class _Keeper(threading.Thread):
    """Calls `keep` again and again until it ends; an error stops the node."""

    def __init__(self, keep: Callable[[], None], stop: StopFlag) -> None:
        super().__init__(name="connections", daemon=True)
        self._keep, self._stop_flag = keep, stop
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.wait(KEEPER_S):
                self._keep()
        except Exception as error:
            self._stop_flag.set(error)

    def end(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join()
