"""ZeroMQ connections: the only module that imports zmq.

Guarantees: a peer that connects here holds a key on the allow-list, and any other is refused before
a byte reaches our parsers; a message's size is bounded; no call waits longer than a slice, so that
a stop flag, a deadline or a broken connection ends every wait; closing never hangs. Other modules
give messages their meaning (`data_plane`, `control_plane`) and protect data frames end to end
(`secure_channel`), which does not rely on this module.

Two kinds of connections:

* To and from the coordinator: CURVE; both ends are known by their keys.
* Between two nodes of a session: `Ticket`s, each good for one connection, which only the holders
  of the pair's CURVE keys can make (`admission`). Frames there are already sealed, by AES-256-GCM
  under the keys of the signed post-quantum handshake, like TLS records over TCP. Only that
  handshake shows who answers such a dial: an attacker on the path can send bytes that our parsers
  then refuse, and can fill memory up to the queues' bounds plus an endless message.

Unread messages are bounded in number and size. One message that never ends is not bounded. ZeroMQ
keeps its parts until the last one arrives, in a queue whose limit (ZMQ_RCVHWM) counts whole
messages; ZMQ_MAXMSGSIZE limits each part but not their number, no option does, and neither a poll
nor a heartbeat reports it. 400 parts of 1 MiB take 400 MiB, with nothing to receive, until the
connection is closed. Strangers cannot do this: no part is read before a key or a ticket is
admitted. An admitted peer, or an attacker on the path of a connection by ticket, can fill this
process's memory and thereby end it; a limit on the process (`systemd-run -p MemoryMax=`, `ulimit
-v`) protects the rest of the machine.

The compute thread uses the sockets directly; ZeroMQ's own I/O thread waits on the wire and does the
CURVE work. That thread also answers ZMTP heartbeats, so a node that computes for a long time is not
mistaken for a dead one. A broken connection may have lost messages; a `Dialled` makes a new one if
its owner wants that, and `data_plane` sends again what was lost.
"""

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from parties.errors import PortInUseError, TransportError
from parties.wire.admission import Admission, Ticket, link_key, make_ticket, split_user
from parties.wire.forwarder import Forwarder
from parties.wire.proxy import Proxy
from parties.wire.reach import by_ipv6, numeric_addresses
from parties.wire.tally import Tally
from protocols.channel import Buffer
from protocols.errors import PeerLostError

log = logging.getLogger(__name__)

SLICE_MS = 100
"""The longest wait in one call: the delay until a stop flag or a lost peer is noticed."""

HEARTBEAT_MS = 1000
SILENCE_MS = 5000
"""A connection that answers no heartbeat for this long counts as broken."""

ZERO_COPY_BYTES = 256 * 1024
"""From this size on a payload is passed to ZeroMQ without a copy."""

PATIENCE_S = 1.0
"""How long early diallers of a session wait before they have to dial again."""

EARLY_MS = 2000
"""After this long a connection that came too early for a session is dropped, so that the peer dials
again."""

NEVER_MS = 10**9
CONNECT_MS = 5000
"""How long one attempt may take until TCP is connected."""

ATTEMPT_S = 12.0
"""How long one attempt may take until the connection is made."""

MIN_REDIAL_S, MAX_REDIAL_S = 0.1, 2.0
"""The pause before an attempt that follows a failed one; it doubles. The first attempt after a
break comes at once."""

QUEUED_MESSAGES = 1 << 16
"""How much may wait in this node's outgoing queues before sending blocks."""

UNREAD_MESSAGES = 1 << 12
"""How many messages may wait at a socket that is not read: 4 GiB of frames per connection."""

MAX_GONE = 1 << 13
"""Of how many connections that broke the name is kept: a node may come back a million times."""

MAX_PARTS = 6
"""More parts than any message of ours has; of a longer message this many are kept, and it is not
obeyed."""

Part = zmq.Frame
"""One received part of a message: `.bytes` copies, `.buffer` does not."""

_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_KEYS = b"keys"
"""The domain of sockets that admit by CURVE key; every other domain admits by ticket."""
_FAILED = {
    zmq.Event.HANDSHAKE_FAILED_AUTH,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
}
_WATCHED = (
    zmq.Event.ACCEPTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | sum(_FAILED)
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
    """One ZeroMQ context with one allow-list: all connections of one process.

    `allowed` maps names to CURVE public keys. Listening sockets accept only those keys, and know
    the name of each connection, or only the tickets that they expect; dialling sockets require the
    key of the name that they dial, or show their ticket. `known`: keys that are refused like a
    stranger's, but named in the log. `on_refused` is told who was refused and how often, ever more
    rarely, in a thread of the transport. What this end dials goes through `proxy`. pulse: seconds
    between heartbeats, and after how many without an answer a connection counts as broken. quiet:
    sends nothing by itself on a connection, to find out how long one may be silent. One I/O thread:
    a second one helps only if one connection saturates a core.
    """

    def __init__(
        self,
        keys: CurveKeys,
        allowed: Mapping[str, bytes],
        known: Mapping[str, bytes] | None = None,
        on_refused: Callable[[str, int], None] = lambda who, count: None,
        proxy: Proxy | None = None,
        quiet: bool = False,
        pulse: tuple[float, float] | None = None,
    ) -> None:
        self._quiet, self._pulse = quiet, pulse
        self._keys = keys
        self._on_refused = on_refused
        self._known = {key: name for name, key in (known or {}).items()}
        self._turned_away = Tally()
        self._names = {key: name for name, key in allowed.items()}
        if len(self._names) != len(allowed):
            raise TransportError("two names of the roster have the same CURVE key")
        self.allowed = dict(allowed)
        self.refused = 0
        """Refused connections: a key outside the allow-list, or an invalid ticket."""
        self._expected: dict[bytes, Admission | None] = {}
        self._patience: dict[bytes, float] = {}
        self._change = threading.Condition()
        self._closed = False
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        gate = self._context.socket(zmq.REP)
        gate.linger = 0
        gate.bind(_ZAP_ADDRESS)
        self._gate = threading.Thread(
            target=self._admit, args=(gate,), name="curve-allow-list", daemon=True
        )
        self._gate.start()
        self._forwarder = None if proxy is None else Forwarder(proxy)

    def _admit(self, gate: "zmq.Socket[bytes]") -> None:
        """Answer ZeroMQ's authentication requests (ZAP 1.0)."""
        try:
            while True:
                request = gate.recv_multipart()
                number = request[1] if len(request) > 1 else b""
                gate.send_multipart([b"1.0", number, *self._verdict(request)])
        except zmq.ContextTerminated:
            gate.close(0)

    def _verdict(self, request: Sequence[bytes]) -> list[bytes]:
        """Status, reason, name, and an empty part. The domain says what a socket requires."""
        name, who = None, "without a key or ticket"
        if len(request) > 5 and request[0] == b"1.0":
            domain, mechanism, credentials = request[2], request[5], request[6:]
            if domain == _KEYS and mechanism == b"CURVE" and len(credentials) == 1:
                name = self._names.get(credentials[0])
                stranger = self._known.get(credentials[0])
                who = who if stranger is None else f"of {stranger}, who is not admitted here,"
            elif domain in self._expected and mechanism == b"PLAIN" and len(credentials) == 2:
                admission = self._admission_of(domain)
                if admission is None:
                    # No session yet. ZeroMQ drops the connection, and the other end dials again.
                    return [b"300", b"not yet", b"", b""]
                name = admission.admit(*credentials)
        if name is not None:
            return [b"200", b"OK", name.encode(), b""]
        self.refused += 1
        count = self._turned_away.add(who)
        if count:
            log.warning("%d connections %s were refused", count, who)
            self._on_refused(who, count)
        return [b"400", b"not on the allow-list", b"", b""]

    def _admission_of(self, domain: bytes) -> Admission | None:
        """The tickets of the session; None before the call of `expect`.

        A peer may start the session a moment earlier: the first that knocks waits, for PATIENCE_S
        in all, so that strangers who knock cannot pile up requests here.
        """
        with self._change:
            if self._expected[domain] is None and not self._closed:
                until = self._patience.setdefault(domain, time.monotonic() + PATIENCE_S)
                self._change.wait_for(
                    lambda: self._closed or self._expected[domain] is not None,
                    max(0.0, until - time.monotonic()),
                )
            return self._expected[domain]

    def expect(self, domain: bytes, peers: Iterable[str], session: bytes, me: str) -> None:
        """Let these peers' tickets of the session in at the socket of `domain`."""
        publics = {peer: self.allowed[peer] for peer in peers}
        with self._change:
            self._expected[domain] = Admission(self._keys.secret, publics, session, me)
            self._change.notify_all()

    def ticket(
        self, peer: str, session: bytes, *, dialler: str, listener: str, number: int = 0
    ) -> Ticket:
        """The ticket that admits `dialler` at `listener` in `session`; the two are this node and
        `peer`."""
        secret, public = self._keys.secret, self.allowed[peer]
        return make_ticket(
            secret, public, session, dialler=dialler, listener=listener, number=number
        )

    def link_keys(self, peer: str, session: bytes, me: str) -> tuple[bytes, bytes]:
        """The keys of messages about the connection between this node and `peer`: for those that
        this node sends, and for the peer's."""
        secret, public = self._keys.secret, self.allowed[peer]
        return (
            link_key(secret, public, session, sender=me, receiver=peer),
            link_key(secret, public, session, sender=peer, receiver=me),
        )

    def control_keys(
        self, process: bytes, *, peer: str = "", server: bytes = b""
    ) -> tuple[bytes, bytes]:
        """The keys of messages about the connection between this node and the coordinator, whose
        key is `server`; or, at the coordinator, the node `peer`: for those that it sends, and for
        those that it gets."""
        secret, public = self._keys.secret, server or self.allowed[peer]
        up = link_key(secret, public, process, sender="node", receiver="coordinator")
        down = link_key(secret, public, process, sender="coordinator", receiver="node")
        return (up, down) if server else (down, up)

    def inner_pair(self) -> "tuple[Inner, Inner]":
        """Two ends for two threads of this process; what the second one does not read is bounded
        like what comes from a network."""
        address = f"inproc://inner-{os.urandom(8).hex()}"
        near, far = (self._socket(zmq.PAIR, -1) for _ in range(2))
        near.sndhwm = 1
        near.bind(address)
        far.connect(address)
        return Inner(near), Inner(far)

    def listening(
        self,
        *,
        max_bytes: int,
        domain: bytes | None,
        queued: int = QUEUED_MESSAGES,
        unread: int = UNREAD_MESSAGES,
    ) -> "zmq.Socket[bytes]":
        """A socket for the keys of the allow-list, or for the tickets expected in `domain`.

        queued: messages that may wait here for one receiver; unread: that may wait here of one
        sender.
        """
        socket = self._socket(zmq.ROUTER, max_bytes)
        socket.sndhwm, socket.rcvhwm = queued, unread
        socket.router_mandatory = 1
        socket.zap_domain = domain or _KEYS
        if domain is None:
            socket.curve_secretkey = self._keys.secret
            socket.curve_server = 1
        else:
            self._expected[domain] = None
            socket.plain_server = 1
            socket.handshake_ivl = EARLY_MS
        return socket

    def dialling(self, *, max_bytes: int, proof: bytes | Ticket) -> "zmq.Socket[bytes]":
        """A socket that requires the peer's CURVE key `proof`, or shows a ticket."""
        socket = self._socket(zmq.DEALER, max_bytes)
        if isinstance(proof, Ticket):
            socket.plain_username = proof.user.encode()
            socket.plain_password = proof.proof.encode()
        else:
            socket.curve_publickey = self._keys.public
            socket.curve_secretkey = self._keys.secret
            socket.curve_serverkey = proof
        return socket

    def way(self, address: str) -> str:
        """What a socket connects to in order to reach `address`: itself, or the near end of a
        tunnel through the proxy."""
        return address if self._forwarder is None else self._forwarder.way(address)

    def _socket(self, kind: int, max_bytes: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.maxmsgsize = max_bytes
        socket.sndhwm, socket.rcvhwm = QUEUED_MESSAGES, UNREAD_MESSAGES
        socket.rcvtimeo = socket.sndtimeo = SLICE_MS
        socket.handshake_ivl = 10_000
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2_000
        if self._quiet:
            return socket
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = 60
        socket.tcp_keepalive_intvl = 15
        socket.tcp_keepalive_cnt = 4
        beat_ms, silence_ms = HEARTBEAT_MS, SILENCE_MS
        if self._pulse is not None:
            beat_ms, silence_ms = (round(1000 * each) for each in self._pulse)
        # The other end goes by ours, too: of two the smaller holds.
        socket.heartbeat_ivl = beat_ms
        socket.heartbeat_timeout = socket.heartbeat_ttl = silence_ms
        return socket

    def bind(self, socket: "zmq.Socket[bytes]", address: str) -> str:
        """Bind and return the numeric address; PortInUseError if it is taken."""
        # Only if the address needs it: with it ZeroMQ reports 127.0.0.1 as ::ffff:127.0.0.1.
        socket.ipv6 = "//[" in address
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
        """End the context. Sockets must be closed before; their linger limits the wait."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._context.term()
        self._gate.join(timeout=2)
        if self._forwarder is not None:
            self._forwarder.close()


class _Watch:
    """What ZeroMQ reports about the connections of one socket."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        address = f"inproc://watch-{os.urandom(8).hex()}"
        socket.monitor(address, int(_WATCHED))
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.linger = 0
        # Unbounded: otherwise ZeroMQ's I/O thread would wait for room, and strangers who knock
        # again and again could stop all traffic while we compute.
        self._monitor.rcvhwm = 0
        self._monitor.connect(address)

    def drain(self) -> list[tuple[int, int]]:
        """(event, value) pairs since the last call; the value is a descriptor or a status."""
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


def _send_parts(
    socket: "zmq.Socket[bytes]", parts: Sequence[Buffer | Part], *, wait: bool = True
) -> bool:
    """Send all parts; if the queue stays full for a slice, send none and return False."""
    flags = 0 if wait else zmq.NOBLOCK
    try:
        for part in parts[:-1]:
            socket.send(part, flags | zmq.SNDMORE)
        last: Any = parts[-1]
        socket.send(last, flags, copy=len(last) < ZERO_COPY_BYTES)
    except zmq.Again:
        return False
    return True


def _receive(socket: "zmq.Socket[bytes]", *, wait: bool) -> list[Part] | None:
    try:
        first = socket.recv(0 if wait else zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return _receive_parts(socket, first)


def _receive_parts(socket: "zmq.Socket[bytes]", first: Part) -> list[Part]:
    parts = [first]
    while parts[-1].more:
        part = socket.recv(copy=False)
        if len(parts) < MAX_PARTS:
            parts.append(part)
        else:
            parts[-1] = part
    return parts


class Inner:
    """One end of a connection between two threads."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self.socket = socket

    def send(self, parts: Sequence[Buffer | Part], *, wait: bool = True) -> bool:
        """Queue one message; False if the queue is full, by default for a slice."""
        return _send_parts(self.socket, parts, wait=wait)

    def receive(self, *, wait: bool = True) -> list[Part] | None:
        """The next message; None if there is none, by default after a slice."""
        return _receive(self.socket, wait=wait)

    def close(self) -> None:
        self.socket.close(0)


class Dialled:
    """A socket that dialled one listening node, and the state of that connection.

    proof: the CURVE key that the other end must hold, or this end's ticket; ZeroMQ then dials until
    the first connection is made, and `lost` is final. If it is a function, this object dials
    itself, also after a break, with what the function returns for the number of the attempt, at
    each address of the host in turn; for that somebody has to call `update` again and again.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        proof: bytes | Ticket | Callable[[int], bytes | Ticket],
        max_bytes: int,
        queued: int = QUEUED_MESSAGES,
    ) -> None:
        self._transport, self._proof, self._max_bytes = transport, proof, max_bytes
        self._queued = queued
        self._redials = callable(proof)
        self._refused = False
        self.address = address
        self.connected = False
        self.lost = False
        """Whether the connection broke and no other was made yet."""
        self.attempts = 0
        self.trouble: str | None = None
        """Why the last attempt to connect failed, as text for the user."""
        self._unread: deque[list[Part]] = deque()
        way = transport.way(address)
        self._addresses = numeric_addresses(way) if self._redials else [way]
        self._pause_s = 0.0
        self._failed_at: float | None = None
        self._dial()

    def _dial(self) -> None:
        proof = self._proof(self.attempts) if callable(self._proof) else self._proof
        self._by_ticket = isinstance(proof, Ticket)
        address = self._addresses[self.attempts % len(self._addresses)]
        self.attempts += 1
        self._began = time.monotonic()
        self._socket = self._transport.dialling(max_bytes=self._max_bytes, proof=proof)
        self._socket.sndhwm = self._queued
        if self._redials:
            # Never, but not -1: with that ZeroMQ discards what has arrived and was not read yet.
            self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = NEVER_MS, 0
            self._socket.connect_timeout = CONNECT_MS
        self._watch = _Watch(self._socket)
        self._socket.ipv6 = by_ipv6(address)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close(0)
            raise TransportError(
                f"cannot use the address {self.address}: {error.strerror}"
            ) from error

    def send(self, parts: Sequence[Buffer | Part], *, wait: bool = True) -> bool:
        """Queue one message; False if the queue is full, by default for a slice."""
        return _send_parts(self._socket, parts, wait=wait)

    def receive(self, *, wait: bool = True) -> list[Part] | None:
        """The next message; None if there is none, by default after a slice."""
        return self._unread.popleft() if self._unread else _receive(self._socket, wait=wait)

    def wait(
        self,
        timeout_s: float,
        descriptor: int,
        near: "Inner | None" = None,
        *,
        room: bool = False,
    ) -> bool:
        """Wait for a message here or at `near`, or for `descriptor`, or for room to send; True if
        `descriptor` is readable."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if room else 0))
        poller.register(descriptor, zmq.POLLIN)
        if near is not None:
            poller.register(near.socket, zmq.POLLIN)
        ready = not self._unread
        found = poller.poll(int(timeout_s * 1000) if ready else 0)
        return any(each == descriptor for each, _ in found)

    def update(self) -> bool:
        """Process what happened to the connection since the last call; dial again if that is due.

        True if a new attempt began: what was queued before and did not arrive will not.
        """
        failed = False
        for event, value in self._watch.drain():
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.connected, self.lost, self.trouble = True, False, None
                self._pause_s = 0.0
            elif event == zmq.Event.HANDSHAKE_FAILED_AUTH and value == 400:
                failed = self._refused = True
                why = (
                    "another session or key"
                    if self._by_ticket
                    else "it has no role in the job there, or the roster there lacks its key"
                )
                self.trouble = f"{self.address} refuses this node: {why}"
            elif event in _FAILED:
                failed = True
                self.trouble = (
                    f"the peer that answers at {self.address} does not hold the expected key"
                )
            elif event == zmq.Event.DISCONNECTED:
                failed = True
                self.lost = self.lost or self.connected
                self.connected = False
            elif event == zmq.Event.CLOSED:
                failed = True
        return self._redials and self._redial(failed)

    @property
    def refused(self) -> bool:
        """Whether the other end refused this one's key or ticket before any connection was made,
        and will do so again."""
        return self._refused and not self.lost

    def _redial(self, failed: bool) -> bool:
        now = time.monotonic()
        if not self.connected and now - self._began > ATTEMPT_S:
            failed = True
        if failed and self._failed_at is None:
            self._failed_at = now
        if self._failed_at is None or self.refused or now - self._failed_at < self._pause_s:
            return False
        self._failed_at = None
        self._pause_s = min(max(2 * self._pause_s, MIN_REDIAL_S), MAX_REDIAL_S)
        while (message := _receive(self._socket, wait=False)) is not None:
            self._unread.append(message)
        self.close(0)
        self._dial()
        return True

    def close(self, linger_s: float) -> None:
        """Close; queued messages may still leave during `linger_s`."""
        self._watch.close()
        self._socket.close(int(linger_s * 1000))


class Accepted:
    """A listening socket: messages of many nodes, their senders' names, and broken connections.

    A route stands for one connection and is never reused; its name is that of the key or the ticket
    that admitted it, whatever the messages say. by_ticket: admit only tickets of the peers that
    `expect` named, each once; otherwise every key on the allow-list. queued: how many messages may
    wait for one receiver before `send` returns False. unread: how many of one sender may wait here.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        max_bytes: int,
        *,
        by_ticket: bool = False,
        queued: int = QUEUED_MESSAGES,
        unread: int = UNREAD_MESSAGES,
    ) -> None:
        self._transport = transport
        self._domain = os.urandom(8).hex().encode() if by_ticket else None
        self._socket = transport.listening(
            max_bytes=max_bytes, domain=self._domain, queued=queued, unread=unread
        )
        self.address = transport.bind(self._socket, address)
        self._watch = _Watch(self._socket)
        self.names: dict[bytes, str] = {}
        self.numbers: dict[bytes, int] = {}
        """Of connections by ticket, the ticket's number."""
        self._route_of: dict[int, bytes] = {}
        self._closed: set[int] = set()
        self.lost: deque[bytes] = deque()
        """Routes whose connection broke, oldest first."""
        self._gone: deque[bytes] = deque()

    def expect(self, peers: Iterable[str], session: bytes, me: str) -> None:
        """Let these peers connect by tickets of the session; until then they wait."""
        if self._domain is None:
            raise ValueError("this socket admits keys, not tickets")
        self._transport.expect(self._domain, peers, session, me)

    def send(self, route: bytes, parts: Sequence[Buffer | Part], *, wait: bool = True) -> bool:
        """Queue one message; False if the queue is full, by default for a slice.

        Raises PeerLostError if the connection is closed.
        """
        try:
            return _send_parts(self._socket, (route, *parts), wait=wait)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise PeerLostError(f"the connection to {self.names.get(route)} broke") from error

    def receive(self, *, wait: bool = True) -> tuple[bytes, list[Part]] | None:
        """Route and parts of the next message; None if there is none, by default after a slice."""
        try:
            route = self._socket.recv(0 if wait else zmq.NOBLOCK)
        except zmq.Again:
            return None
        parts = _receive_parts(self._socket, self._socket.recv(copy=False))
        if route not in self.names:
            self._learn(route, parts[0])
        return route, parts

    def waiting(self, timeout_s: float = 0.0) -> bool:
        """Whether a message is there within `timeout_s`."""
        return bool(self._socket.poll(int(timeout_s * 1000)))

    def _learn(self, route: bytes, part: Part) -> None:
        # Descriptors are reused: first finish with the previous connection.
        self.update()
        self.names[route], self.numbers[route] = split_user(str(part.get("User-Id")))
        descriptor = int(part.get(zmq.SRCFD))
        if descriptor in self._closed:
            self._lose(route)
        else:
            self._route_of[descriptor] = route

    def update(self) -> None:
        """Process the connections that broke since the last call."""
        for event, value in self._watch.drain():
            if event == zmq.Event.ACCEPTED:
                self._closed.discard(value)
            elif event == zmq.Event.DISCONNECTED:
                route = self._route_of.pop(value, None)
                if route is None:
                    self._closed.add(value)
                else:
                    self._lose(route)

    def _lose(self, route: bytes) -> None:
        """A connection broke. Messages of it may still be read, but not after thousands more."""
        self.lost.append(route)
        self._gone.append(route)
        if len(self._gone) > MAX_GONE:
            forgotten = self._gone.popleft()
            self.names.pop(forgotten, None)
            self.numbers.pop(forgotten, None)

    def close(self, linger_s: float) -> None:
        """Close; queued messages may still leave during `linger_s`."""
        self._watch.close()
        self._socket.close(int(linger_s * 1000))
