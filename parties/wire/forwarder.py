"""Loopback ends of tunnels through an HTTP proxy, for sockets that know no proxies.

ZeroMQ cannot ask a proxy for a tunnel, so it dials a port of this machine; what it sends there goes
through the proxy to the one address for which the port was made, and back, unread. CURVE, tickets
and the handshake hold from end to end, through both. Another user of this machine who finds the
port gets no further than to that address, as a stranger.

One thread carries the bytes: at most BUFFER_BYTES of each direction of each connection are under
way here, and a sender waits while they are. Each connection asks for its tunnel in a thread of its
own, since a proxy may take its time. If the tunnel fails, the connection is closed after AGAIN_S,
or ZeroMQ would ask the proxy ten times a second.
"""

import contextlib
import logging
import queue
import selectors
import socket
import threading
import time

from parties.errors import ProxyError
from parties.wire.proxy import Proxy
from parties.wire.reach import split
from parties.wire.tally import Tally

log = logging.getLogger(__name__)

BUFFER_BYTES = 256 << 10
"""Of one direction of one connection."""

MAX_CONNECTIONS = 64
"""Tunnels at a time: a node has one or two for each node that it dials."""

OPEN_S = 9.0
"""How long a tunnel may take: ZeroMQ gives up a connection without a greeting after 10 s."""

AGAIN_S = 2.0
"""The time from one try to the next after a tunnel could not be had."""

LEAVE_S = 10.0
"""How long the last bytes may take to the proxy when all is closed."""

CLOSE_S = 2.0
"""How long the proxy may take to close a tunnel whose near end is closed."""

TURNS = 8
"""How often one direction is served before the others."""


class Forwarder:
    """Loopback ports, each of which leads to one address through `proxy`. `close` ends it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._ports: dict[str, str] = {}
        self._open: dict[socket.socket, _Tunnel] = {}
        self._left: dict[_Tunnel, float] = {}
        """When the near end of a tunnel was closed."""
        self._pending = 0
        self._news: queue.SimpleQueue[_Tunnel | None] = queue.SimpleQueue()
        self._listeners: queue.SimpleQueue[tuple[socket.socket, str, int]] = queue.SimpleQueue()
        self._failures = Tally()
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._selector.register(self._reader, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def way(self, address: str) -> str:
        """What to dial to get to `address` (tcp://host:port): itself if its host is dialled without
        the proxy, otherwise a port of this machine, the same for the same address."""
        host, port = split(address)
        if not self._proxy.covers(host):
            return address
        if address not in self._ports:
            listening = socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            self._ports[address] = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
            self._listeners.put((listening, host, port))
            self._wake()
        return self._ports[address]

    def close(self) -> None:
        """Take no more connections, let what is under way leave, and close all."""
        self._closing.set()
        self._wake()
        self._thread.join(LEAVE_S + CLOSE_S + 1)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._writer.send(b"w")

    def _run(self) -> None:
        deadline = None
        try:
            while True:
                if self._closing.is_set():
                    deadline = deadline or time.monotonic() + LEAVE_S
                    if time.monotonic() > deadline or not self._open:
                        return
                self._drop_left()
                for key, _ in self._selector.select(0.1 if deadline or self._left else None):
                    if key.fileobj == self._reader:
                        self._take_news()
                    elif isinstance(key.data, tuple):
                        self._accept(key.fileobj, *key.data)  # type: ignore[arg-type]
                    elif key.fileobj in self._open:
                        self._serve(self._open[key.fileobj])
        finally:
            self._end()

    def _take_news(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        while not self._listeners.empty():
            listening, host, port = self._listeners.get()
            self._selector.register(listening, selectors.EVENT_READ, (host, port))
        while not self._news.empty():
            self._pending -= 1
            tunnel = self._news.get()
            if tunnel is not None:
                self._open[tunnel.near] = self._open[tunnel.far] = tunnel
                self._serve(tunnel)

    def _accept(self, listening: socket.socket, host: str, port: int) -> None:
        try:
            near, _ = listening.accept()
        except OSError:
            return
        if self._closing.is_set() or self._pending + len(self._open) // 2 >= MAX_CONNECTIONS:
            near.close()
            return
        self._pending += 1
        threading.Thread(
            target=self._tunnel, args=(near, host, port), name="proxy-connect", daemon=True
        ).start()

    def _tunnel(self, near: socket.socket, host: str, port: int) -> None:
        """Ask the proxy for a tunnel and pass it on; in a thread of its own."""
        tunnel = None
        try:
            far, early = self._proxy.open(host, port, OPEN_S)
            tunnel = _Tunnel(near, far, early)
        except ProxyError as error:
            if count := self._failures.add(str(error)):
                log.warning("%s (%d times)" if count > 1 else "%s", error, *[count][: count > 1])
            self._closing.wait(AGAIN_S)
        finally:
            if tunnel is None:
                near.close()
            self._news.put(tunnel)
            self._wake()

    def _serve(self, tunnel: "_Tunnel") -> None:
        tunnel.carry()
        if tunnel.over:
            self._drop(tunnel)
            return
        if tunnel.left:
            self._left.setdefault(tunnel, time.monotonic())
        for end, interest in tunnel.interests():
            registered = end in self._selector.get_map()
            if interest and registered:
                self._selector.modify(end, interest)
            elif interest:
                self._selector.register(end, interest)
            elif registered:
                self._selector.unregister(end)

    def _drop_left(self) -> None:
        """Close tunnels that nobody here uses any more although the proxy keeps them."""
        for tunnel, since in list(self._left.items()):
            if time.monotonic() - since > CLOSE_S:
                self._drop(tunnel)

    def _drop(self, tunnel: "_Tunnel") -> None:
        self._left.pop(tunnel, None)
        for end in (tunnel.near, tunnel.far):
            if end in self._selector.get_map():
                self._selector.unregister(end)
            self._open.pop(end, None)
            end.close()

    def _end(self) -> None:
        for tunnel in set(self._open.values()):
            self._drop(tunnel)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._writer.close()
        self._selector.close()


class _Flow:
    """One direction: reads again only when all that was read has been passed on.

    A source that broke has ended. For a target that broke, what comes is read and discarded, so
    that the other direction may still leave: closing with unread bytes would reset the connection.
    """

    def __init__(self, source: socket.socket, target: socket.socket, early: bytes = b"") -> None:
        self.source, self.target = source, target
        self.rest = memoryview(early)
        self.ended = False
        self._deaf = False

    def carry(self) -> None:
        """Pass on what can be passed on at once."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(TURNS):
                if not self.rest and not self.ended:
                    self._read()
                if self.ended:
                    return
                self._write()

    def _read(self) -> None:
        try:
            data = self.source.recv(BUFFER_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            data = b""
        self.rest = memoryview(b"" if self._deaf else data)
        if not data:
            self.ended = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)

    def _write(self) -> None:
        if not self.rest:
            return
        try:
            self.rest = self.rest[self.target.send(self.rest) :]
        except BlockingIOError:
            raise
        except OSError:
            self._deaf, self.rest = True, memoryview(b"")


class _Tunnel:
    """A connection of this machine (near), its tunnel through the proxy (far), both directions."""

    def __init__(self, near: socket.socket, far: socket.socket, early: bytes) -> None:
        self.near, self.far = near, far
        for end in (near, far):
            end.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out, self._in = _Flow(near, far), _Flow(far, near, early)

    @property
    def left(self) -> bool:
        """Whether this machine's program has closed its end and all its bytes are at the proxy."""
        return self._out.ended

    @property
    def over(self) -> bool:
        return self._out.ended and self._in.ended

    def carry(self) -> None:
        self._out.carry()
        self._in.carry()

    def interests(self) -> list[tuple[socket.socket, int]]:
        """What each socket is waited for: 0 for nothing."""
        found = []
        for end, reading, writing in (
            (self.near, self._out, self._in),
            (self.far, self._in, self._out),
        ):
            read = selectors.EVENT_READ if not reading.rest and not reading.ended else 0
            found.append((end, read | (selectors.EVENT_WRITE if writing.rest else 0)))
        return found
