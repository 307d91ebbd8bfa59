"""ZeroMQ connections between nodes: the only module that imports zmq.

Guarantees: every connection is CURVE-encrypted to a key on the allow-list, anything else is
turned away before a byte of it reaches our parsers; a message is bounded in size; a wait is
sliced, so that a stop flag, a deadline or a broken connection ends it; closing never hangs.
Leaves to others: what messages mean (`control`), and the end-to-end protection of data frames
(`secure_channel`), which does not rely on CURVE.

Three ways frames travel between two nodes, the same for the caller (`DataPlane`): a socket that
dialled the peer, the one listening socket that peers dialled, or the coordinator's relay. They
are used from the compute thread without a thread hop; ZeroMQ's own I/O thread does the waiting
on the wire and the CURVE work. ZMTP heartbeats are answered by that thread too, so a node that
computes for long is not mistaken for a dead one. A connection that broke is not resumed: frames
may be gone, and the session ends.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from parties.errors import PortInUseError, TransportError
from parties.stop import StopFlag
from protocols.channel import MAX_LABEL_BYTES, Buffer
from protocols.errors import FrameError, PeerLostError, PeerTimeoutError

log = logging.getLogger(__name__)

SLICE_MS = 100
"""Longest wait in one call: how late a stop flag or a lost peer is noticed."""

HEARTBEAT_MS = 1000
SILENCE_MS = 5000
"""A connection that answers no heartbeat for this long counts as broken."""

INLINE_BYTES = 128 * 1024
"""Up to here label and payload share one message part: a second part costs 9 us a round trip
(measured on loopback), copying this many bytes at either end about as much."""

ZERO_COPY_BYTES = 256 * 1024
"""From here on a payload is handed to ZeroMQ without a copy."""

MAX_FRAME_BYTES = 1 << 30
MAX_CONTROL_BYTES = 4 << 20
QUEUED_FRAMES = 1 << 16
MAX_EARLY_FRAMES = 256
MAX_INBOX_BYTES = 4 << 30
"""Frames of one peer set aside while another one is awaited; beyond this the peer misbehaves."""

_CONTROL, _RELAY_HELLO, _RELAY = b"C", b"H", b"R"
_LENGTH = [bytes([n]) for n in range(MAX_LABEL_BYTES + 1)]
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_FAILED = {
    zmq.Event.HANDSHAKE_FAILED_AUTH,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
}
_WATCHED = (
    zmq.Event.ACCEPTED | zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | sum(_FAILED)
)


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """This node's CURVE key pair, 32 raw bytes each."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "CurveKeys":
        public, secret = zmq.curve_keypair()
        return cls(z85.decode(public), z85.decode(secret))


class Transport:
    """One ZeroMQ context under one allow-list: all the connections of one process.

    `allowed` maps names to CURVE public keys. Listening sockets accept those keys only, and
    know the name that belongs to each connection; dialling sockets insist on the key of the
    name they dial. One I/O thread: two only help where one connection saturates a core.
    """

    def __init__(self, keys: CurveKeys, allowed: Mapping[str, bytes]) -> None:
        self._keys = keys
        self._names = {key: name for name, key in allowed.items()}
        if len(self._names) != len(allowed):
            raise TransportError("two names of the roster have the same CURVE key")
        self.allowed = dict(allowed)
        self.refused = 0
        """Connections turned away because their key is not on the allow-list."""
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        gate = self._context.socket(zmq.REP)
        gate.linger = 0
        gate.bind(_ZAP_ADDRESS)
        self._gate = threading.Thread(
            target=self._admit, args=(gate,), name="curve-allow-list", daemon=True
        )
        self._gate.start()

    def _admit(self, gate: "zmq.Socket[bytes]") -> None:
        """Answer ZeroMQ's authentication requests (ZAP 1.0) from the allow-list."""
        try:
            while True:
                request = gate.recv_multipart()
                name = None
                if len(request) == 7 and request[0] == b"1.0" and request[5] == b"CURVE":
                    name = self._names.get(request[6])
                if name is None:
                    self.refused += 1
                    if self.refused.bit_count() == 1:  # 1, 2, 4, 8 …: knocking fills no disk
                        log.warning(
                            "%d connections with a key outside the roster were refused",
                            self.refused,
                        )
                    verdict = [b"400", b"not on the allow-list", b"", b""]
                else:
                    verdict = [b"200", b"OK", name.encode(), b""]
                gate.send_multipart([b"1.0", request[1] if len(request) > 1 else b"", *verdict])
        except zmq.ContextTerminated:
            gate.close(0)

    def socket(self, kind: int, *, max_bytes: int, server_key: bytes | None) -> "zmq.Socket[bytes]":
        """A CURVE socket: a server's if `server_key` is None, else a client of that key."""
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.maxmsgsize = max_bytes
        socket.sndhwm = socket.rcvhwm = QUEUED_FRAMES
        socket.rcvtimeo = socket.sndtimeo = SLICE_MS
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = 60
        socket.tcp_keepalive_intvl = 15
        socket.tcp_keepalive_cnt = 4
        socket.heartbeat_ivl = HEARTBEAT_MS
        socket.heartbeat_timeout = SILENCE_MS
        socket.heartbeat_ttl = SILENCE_MS
        socket.handshake_ivl = 10_000
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2_000
        socket.curve_publickey = self._keys.public
        socket.curve_secretkey = self._keys.secret
        if server_key is None:
            socket.curve_server = 1
            socket.zap_domain = b"mpc"
        else:
            socket.curve_serverkey = server_key
        return socket

    def bind(self, socket: "zmq.Socket[bytes]", address: str) -> str:
        """Bind and return the address in numbers; PortInUseError if somebody has it."""
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            socket.close(0)
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"cannot listen on {address}: the port is in use; choose another one or "
                    "end the program that holds it"
                ) from error
            raise TransportError(f"cannot listen on {address}: {error.strerror}") from error
        endpoint: Any = socket.getsockopt(zmq.LAST_ENDPOINT)
        return bytes(endpoint).rstrip(b"\0").decode()

    def close(self) -> None:
        """End the context; sockets must be closed before, their linger bounds the wait."""
        self._context.term()
        self._gate.join(timeout=2)


class _Watch:
    """What ZeroMQ reports about the connections of one socket."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        address = f"inproc://watch-{os.urandom(8).hex()}"
        socket.monitor(address, int(_WATCHED))
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.linger = 0
        # Unbounded: ZeroMQ's I/O thread would wait for room, so strangers who knock again and
        # again could stop all traffic while we compute.
        self._monitor.rcvhwm = 0
        self._monitor.connect(address)

    def drain(self) -> list[tuple[int, int]]:
        """(event, value) pairs since the last call; value is a descriptor or a status."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                parts = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            report: Any = parse_monitor_message(parts)
            found.append((report["event"], report["value"]))

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)


class _Dialled:
    """A DEALER socket that dialled one listening node, and the state of that connection."""

    def __init__(self, transport: Transport, address: str, server_key: bytes, max_bytes: int):
        self.socket = transport.socket(zmq.DEALER, max_bytes=max_bytes, server_key=server_key)
        self._watch = _Watch(self.socket)
        self.address = address
        self.connected = False
        self.lost = False
        self.trouble: str | None = None
        """Why the last attempt to connect failed, in words for the user."""
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.close(0)
            raise TransportError(f"cannot use the address {address}: {error.strerror}") from error

    def update(self) -> None:
        """Take in what happened to the connection since the last call."""
        for event, value in self._watch.drain():
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.connected, self.trouble = True, None
            elif event == zmq.Event.HANDSHAKE_FAILED_AUTH and value == 400:
                self.trouble = f"{self.address} refuses this node: its roster lacks this node's key"
            elif event in _FAILED:
                self.trouble = f"whoever answers at {self.address} does not hold the expected key"
            elif event == zmq.Event.DISCONNECTED and self.connected:
                self.lost = True

    def close(self, linger_s: float) -> None:
        self._watch.close()
        self.socket.close(int(linger_s * 1000))


class _Accepted:
    """A ROUTER socket, the names behind its connections, and which of them broke."""

    def __init__(self, transport: Transport, address: str, max_bytes: int) -> None:
        self.socket = transport.socket(zmq.ROUTER, max_bytes=max_bytes, server_key=None)
        self.socket.router_mandatory = 1
        self.address = transport.bind(self.socket, address)
        self._watch = _Watch(self.socket)
        self.names: dict[bytes, str] = {}
        self._route_of: dict[int, bytes] = {}
        self._closed: set[int] = set()
        self.lost: deque[bytes] = deque()
        """Routes whose connection broke, oldest first."""

    def name_of(self, route: bytes, frame: "zmq.Frame") -> str:
        """The roster name that CURVE authenticated for this connection."""
        name = self.names.get(route)
        if name is None:
            # Descriptors are used again: first close the books on the previous connection.
            self.update()
            name = self.names[route] = str(frame.get("User-Id"))
            descriptor = int(frame.get(zmq.SRCFD))
            if descriptor in self._closed:
                self.lost.append(route)
            else:
                self._route_of[descriptor] = route
        return name

    def update(self) -> None:
        for event, value in self._watch.drain():
            if event == zmq.Event.ACCEPTED:
                self._closed.discard(value)
            elif event == zmq.Event.DISCONNECTED:
                route = self._route_of.pop(value, None)
                if route is None:
                    self._closed.add(value)
                else:
                    self.lost.append(route)

    def close(self, linger_s: float) -> None:
        self._watch.close()
        self.socket.close(int(linger_s * 1000))


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message at the coordinator, with the name that CURVE authenticated."""

    route: bytes
    name: str
    data: bytes


class ControlServer:
    """The coordinator's one port: control messages of all nodes, and frames that it relays.

    For one thread. Relayed frames go from connection to connection without being looked at;
    a node can only reach peers, and only under its own name.
    """

    def __init__(self, transport: Transport, address: str) -> None:
        self._accepted = _Accepted(transport, address, MAX_FRAME_BYTES)
        self._relays: dict[str, bytes] = {}
        self._early: dict[str, list[tuple[str, list[zmq.Frame]]]] = {}
        self.address = self._accepted.address
        self.relayed_bytes = 0

    def poll(self, timeout_s: float) -> Iterator[Arrival]:
        """Messages that came within `timeout_s`, at once when there are some."""
        socket = self._accepted.socket
        if not socket.poll(int(timeout_s * 1000)):
            return
        for _ in range(1000):  # a flood must not keep the caller from its other duties
            try:
                route = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            parts = _rest(socket, socket.recv(copy=False))
            name = self._accepted.name_of(route, parts[0])
            kind = parts[0].bytes
            if kind == _RELAY and len(parts) > 2 and self._relays.get(name) == route:
                self._forward(name, parts[1].bytes.decode("ascii", "replace"), parts[2:])
            elif kind == _CONTROL and len(parts) == 2 and len(parts[1]) <= MAX_CONTROL_BYTES:
                yield Arrival(route, name, parts[1].bytes)
            elif kind == _RELAY_HELLO and len(parts) == 2 and name not in self._relays:
                self._relays[name] = route
                for sender, early in self._early.pop(name, []):
                    self._forward(sender, name, early)
            else:
                yield Arrival(route, name, b"")

    def _forward(self, sender: str, receiver: str, parts: list["zmq.Frame"]) -> None:
        target = self._relays.get(receiver)
        if target is None:
            # Both start at the same message of the coordinator, so the receiver is about to
            # connect; until it does, all that a sender has for it is one handshake message.
            early = self._early.setdefault(receiver, [])
            if len(early) < MAX_EARLY_FRAMES and len(self._early) < MAX_EARLY_FRAMES:
                early.append((sender, parts))
            return
        socket = self._accepted.socket
        try:
            socket.send(target, zmq.SNDMORE | zmq.NOBLOCK)
            socket.send(sender.encode(), zmq.SNDMORE | zmq.NOBLOCK)
            for part in parts:
                socket.send(part, (zmq.SNDMORE if part.more else 0) | zmq.NOBLOCK, copy=False)
                self.relayed_bytes += len(part)
        except zmq.Again as error:
            raise TransportError(f"{receiver} takes no more relayed frames") from error
        except zmq.ZMQError as error:
            log.warning("a frame for %s could not be relayed: %s", receiver, error.strerror)

    def lost(self) -> list[bytes]:
        """Routes of connections that broke since the last call."""
        self._accepted.update()
        routes = list(self._accepted.lost)
        self._accepted.lost.clear()
        for name, route in list(self._relays.items()):
            if route in routes:
                del self._relays[name]
        return routes

    def name_of(self, route: bytes) -> str:
        """Who was behind `route`."""
        return self._accepted.names.get(route, "?")

    def send(self, route: bytes, data: bytes) -> bool:
        """Queue a control message; False if that connection is gone or takes no more."""
        try:
            self._accepted.socket.send_multipart([route, _CONTROL, data], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def close(self, linger_s: float) -> None:
        self._accepted.close(linger_s)


class ControlClient:
    """A node's control connection to the coordinator, for one thread; `wake` for all others."""

    def __init__(self, transport: Transport, address: str, server_key: bytes) -> None:
        self._link = _Dialled(transport, address, server_key, MAX_CONTROL_BYTES + 1024)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._poller = zmq.Poller()
        self._poller.register(self._link.socket, zmq.POLLIN)
        self._poller.register(self._reader, zmq.POLLIN)

    @property
    def trouble(self) -> str | None:
        """Why there is no connection yet, in words; None if nothing is known to be wrong."""
        return self._link.trouble

    def state(self) -> str:
        """'connecting', 'connected' or 'lost'."""
        self._link.update()
        if self._link.lost:
            return "lost"
        return "connected" if self._link.connected else "connecting"

    def poll(self, timeout_s: float) -> bytes | None:
        """The next message, or None after `timeout_s` or a `wake`."""
        for source, _ in self._poller.poll(int(timeout_s * 1000)):
            if source == self._reader:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._reader, 4096)
        try:
            parts = self._link.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return parts[1] if len(parts) == 2 and parts[0] == _CONTROL else b""

    def send(self, data: bytes) -> None:
        """Queue a message. Raises TransportError if the queue has been full for a while."""
        try:
            self._link.socket.send_multipart([_CONTROL, data])
        except zmq.Again as error:
            raise TransportError("the coordinator takes no more messages") from error

    def wake(self) -> None:
        """From any thread: end a `poll` in progress."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writer, b"w")

    def close(self, linger_s: float) -> None:
        self._link.close(linger_s)
        os.close(self._reader)
        os.close(self._writer)


Frame = tuple[bytes, Buffer]
"""Label and payload as they travelled: sealed once the handshake is done."""


def _pack(label: bytes, payload: Buffer) -> list[Any]:
    if len(payload) <= INLINE_BYTES:
        return [b"".join((_LENGTH[len(label)], label, payload))]
    return [_LENGTH[len(label)] + label, payload]


def _unpack(peer: str, parts: Sequence["zmq.Frame"]) -> Frame:
    head = parts[0].buffer
    size = head[0] if len(head) else 0
    if len(parts) > 2 or not len(head) or size > MAX_LABEL_BYTES or len(head) < 1 + size:
        raise FrameError(f"{peer} sent a frame without a well-formed label")
    label = bytes(head[1 : 1 + size])
    if len(parts) == 1:
        return label, head[1 + size :]
    if len(head) != 1 + size:
        raise FrameError(f"{peer} sent a frame with bytes between label and payload")
    return label, parts[1].buffer


def _send(socket: "zmq.Socket[bytes]", parts: list[Any]) -> None:
    """All parts or zmq.Again. Only the last one may be worth sending without a copy."""
    for part in parts[:-1]:
        socket.send(part, zmq.SNDMORE)
    last = parts[-1]
    socket.send(last, copy=len(last) < ZERO_COPY_BYTES)


def _rest(socket: "zmq.Socket[bytes]", first: "zmq.Frame") -> list["zmq.Frame"]:
    parts = [first]
    while parts[-1].more:
        parts.append(socket.recv(copy=False))
    return parts


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one peer: by dialling `address`, by waiting for it, or through the relay."""

    kind: str
    """'dial', 'listen' or 'relay'"""
    address: str = ""


def choose_route(me: str, peer: str, listens: Mapping[str, str | None]) -> Route:
    """The route both ends choose alike: `listens` holds each node's address for peers.

    If both listen, the one that stands first in roster order is dialled.
    """
    mine, theirs = listens.get(me), listens.get(peer)
    if mine and (not theirs or me < peer):
        return Route("listen")
    if theirs:
        return Route("dial", theirs)
    return Route("relay")


class DataPlane:
    """Raw frames to the named peers of one session, by whatever route there is.

    `listen` binds at once, so that `advertise` is known before peers are; `open` connects.
    Not thread-safe: everything happens in the thread that computes.
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
        self._dialled: dict[str, _Dialled] = {}
        self._listening: _Accepted | None = None
        self._relay: _Dialled | None = None
        self._route: dict[str, bytes] = {}
        self._inbox: dict[str, deque[Frame]] = {}
        self._inbox_bytes: dict[str, int] = {}
        self._gone: set[str] = set()
        self._by_relay: set[str] = set()
        self.address: str | None = None
        """What peers are to dial; None if this node does not listen."""
        if listen is not None:
            self._listening = _Accepted(transport, listen, MAX_FRAME_BYTES)
            self.address = advertise or self._listening.address
            if "//0.0.0.0:" in self.address or "//[::]:" in self.address:
                self._listening.close(0)
                raise TransportError(
                    f"listening on {listen} needs an address that peers can dial (advertise)"
                )

    @property
    def _accepted(self) -> _Accepted:
        if self._listening is None:
            raise TransportError("this node does not listen for peers")
        return self._listening

    @property
    def _relayed(self) -> _Dialled:
        if self._relay is None:
            raise TransportError("this node has no relay")
        return self._relay

    def open(
        self,
        tag: bytes,
        listens: Mapping[str, str | None],
        relay: tuple[str, bytes] | None,
        timeout_s: float,
    ) -> None:
        """Connect to every peer of `listens` for the session named by `tag`.

        `relay` is the coordinator's address and CURVE key. Raises PeerTimeoutError with the
        names that did not connect within `timeout_s`.
        """
        peers = [name for name in listens if name != self._me]
        deadline = time.monotonic() + timeout_s
        awaited = set()
        for peer in peers:
            self._inbox[peer] = deque()
            self._inbox_bytes[peer] = 0
            route = choose_route(self._me, peer, listens)
            if route.kind == "listen":
                awaited.add(peer)
            elif route.kind == "dial":
                link = _Dialled(
                    self._transport, route.address, self._transport.allowed[peer], MAX_FRAME_BYTES
                )
                self._dialled[peer] = link
                link.socket.send(tag)
            else:
                self._by_relay.add(peer)
        if self._by_relay:
            if relay is None:
                raise TransportError(
                    f"neither {self._me} nor {min(self._by_relay)} listens, and there is no relay"
                )
            self._relay = _Dialled(self._transport, relay[0], relay[1], MAX_FRAME_BYTES)
            self._relay.socket.send_multipart([_RELAY_HELLO, tag])
        self._await_dials(tag, awaited, deadline)

    def _await_dials(self, tag: bytes, awaited: set[str], deadline: float) -> None:
        while awaited:
            self._stop.check("waiting for peers to connect")
            if time.monotonic() > deadline:
                raise PeerTimeoutError(f"did not connect in time: {', '.join(sorted(awaited))}")
            socket = self._accepted.socket
            try:
                route = socket.recv()
            except zmq.Again:
                continue
            parts = _rest(socket, socket.recv(copy=False))
            self._greeted(route, parts, tag, awaited)

    def _greeted(
        self, route: bytes, parts: list["zmq.Frame"], tag: bytes, awaited: set[str]
    ) -> None:
        """First message of a connection: the tag of the session it is for."""
        known = route in self._accepted.names
        name = self._accepted.name_of(route, parts[0])
        if known and self._route.get(name) == route:
            self._put(name, _unpack(name, parts))
        elif name in awaited and len(parts) == 1 and parts[0].bytes == tag:
            self._route[name] = route
            awaited.discard(name)
        else:
            log.warning("ignored a connection of %s that is not for this session", name)

    def _put(self, peer: str, frame: Frame) -> None:
        self._inbox[peer].append(frame)
        self._inbox_bytes[peer] += len(frame[1])
        if self._inbox_bytes[peer] > MAX_INBOX_BYTES:
            raise FrameError(f"{peer} sent more than is bearable before it was asked for")

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        """Queue one frame for `peer`; waits only if its queue is full."""
        if self._stop.reason is not None:
            self._stop.check(f"sending to {peer}")
        parts = _pack(label, payload)
        link = self._dialled.get(peer)
        if link is not None:
            socket = link.socket
        elif peer in self._route:
            socket = self._accepted.socket
            parts.insert(0, self._route[peer])
        else:
            socket = self._relayed.socket
            parts[:0] = [_RELAY, peer.encode()]
        while True:
            try:
                return _send(socket, parts)
            except zmq.Again:
                self._stop.check(f"sending to {peer}")
                self._look(peer)
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    raise PeerLostError(f"the connection to {peer} broke") from error
                raise

    def receive(self, peer: str, timeout_s: float) -> Frame:
        """The next frame of `peer`.

        Raises PeerTimeoutError after `timeout_s`, PeerLostError when the connection broke and
        nothing of it is left to read, InterruptedRunError when the node is to stop.
        """
        inbox = self._inbox[peer]
        if inbox:
            frame = inbox.popleft()
            self._inbox_bytes[peer] -= len(frame[1])
            return frame
        link = self._dialled.get(peer)
        if link is not None:
            return self._receive_dialled(peer, link.socket, timeout_s)
        return self._receive_shared(peer, timeout_s)

    def _receive_dialled(self, peer: str, socket: "zmq.Socket[bytes]", timeout_s: float) -> Frame:
        deadline = 0.0
        while True:
            try:
                return _unpack(peer, _rest(socket, socket.recv(copy=False)))
            except zmq.Again:
                deadline = self._waited(peer, deadline, timeout_s)

    def _receive_shared(self, peer: str, timeout_s: float) -> Frame:
        """From a socket that several peers share: frames of others are set aside."""
        relayed = peer in self._by_relay
        socket = self._relayed.socket if relayed else self._accepted.socket
        deadline = 0.0
        while True:
            try:
                key = socket.recv()
            except zmq.Again:
                deadline = self._waited(peer, deadline, timeout_s)
                continue
            parts = _rest(socket, socket.recv(copy=False))
            name = self._relayed_by(key) if relayed else self._arrived_on(key, parts)
            if name == peer:
                return _unpack(peer, parts)
            if name is not None:
                self._put(name, _unpack(name, parts))
            if deadline and time.monotonic() > deadline:
                deadline = self._waited(peer, deadline, timeout_s)

    def _relayed_by(self, key: bytes) -> str | None:
        name = key.decode("ascii", "replace")
        return name if name in self._by_relay else None

    def _arrived_on(self, route: bytes, parts: list["zmq.Frame"]) -> str | None:
        """Whose connection this is; None for one that is not part of the session."""
        name = self._accepted.names.get(route)
        if name is None:
            name = self._accepted.name_of(route, parts[0])
            log.warning("ignored a late connection of %s", name)
        return name if self._route.get(name) == route else None

    def _waited(self, peer: str, deadline: float, timeout_s: float) -> float:
        """After a slice without a frame: stop, lost, too late? Else the deadline stands."""
        self._stop.check(f"waiting for {peer}")
        self._look(peer)
        now = time.monotonic()
        if not deadline:
            return now + timeout_s - SLICE_MS / 1000
        if now > deadline:
            link = self._dialled.get(peer) or self._relay
            trouble = f" ({link.trouble})" if link is not None and link.trouble else ""
            raise PeerTimeoutError(f"{peer} sent nothing for {timeout_s:.0f} s{trouble}")
        return deadline

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
            self._relay.update()
            if self._relay.lost:
                self._gone |= self._by_relay
        if self._listening is not None:
            self._listening.update()
            while self._listening.lost:
                route = self._listening.lost.popleft()
                name = self._listening.names[route]
                if self._route.get(name) == route:
                    self._gone.add(name)

    def close(self, linger_s: float) -> None:
        """Close all connections; what is queued may still leave for `linger_s`."""
        links: Iterable[_Dialled | _Accepted | None] = (
            *self._dialled.values(),
            self._listening,
            self._relay,
        )
        for link in links:
            if link is not None:
                link.close(linger_s)
        self._dialled.clear()
        self._listening = self._relay = None
