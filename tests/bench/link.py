"""A wide-area link between the processes of a benchmark: one proxy that delays and paces.

Every TCP connection between two nodes passes a process of its own, which carries its bytes
unchanged and in order:

* Each direction is delayed by half of the round trip.
* Each node has an uplink and a downlink of the given rate (per node, not per connection). On an
  uplink the node's connections take turns, a slice of about 1 ms each; on a downlink slices pass in
  the order in which they arrive. A slice is on the downlink of its receiver while it still leaves
  the uplink of its sender, so the rate is paid once: n bytes arrive n / rate + rtt / 2 after they
  were sent.
* A connection has at most WINDOW_BYTES under way; beyond that its sender waits, as TCP does.

What a real network adds is not there: loss, jitter, headers, slow start and congestion control.
Rates count the payload of TCP. Lateness of the event loop does not add up, because turns are
counted from when they were due. With neither delay nor rate the proxy adds 75 µs to a round trip of
a small frame (54 µs without) and 0.6 ms to a megabyte each way (`ping.py --rtt-ms 0`).

    with Link(rtt_ms=40, mbit_s=100) as link:
        address = link.route("a", "b", "tcp://127.0.0.1:4711")    # what a dials to reach b
"""

import argparse
import contextlib
import heapq
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

SLICE_S = 0.001
"""How long a connection holds a link before it is another one's turn."""
MIN_SLICE_BYTES = 1500
MAX_SLICE_BYTES = 256 * 1024
WINDOW_BYTES = 4 << 20
"""What Linux lets a TCP connection have under way by default (tcp_wmem)."""
EVENTS_BETWEEN_LOOKS = 64
"""Events handled before sockets are looked at again, so that no connection starves the others."""


class Link:
    """The proxy's process; `with` or `close` ends it.

    rtt_ms: round trip between any two nodes. mbit_s: rate of each node's uplink and of its
    downlink in 10^6 bits a second, None for no limit.
    """

    def __init__(self, rtt_ms: float, mbit_s: float | None = None) -> None:
        if rtt_ms < 0 or (mbit_s is not None and mbit_s <= 0):
            raise ValueError("a link needs a round trip of at least 0 and a rate above 0")
        self.rtt_ms, self.mbit_s = rtt_ms, mbit_s
        argv = [sys.executable, str(Path(__file__).resolve()), "--rtt-ms", repr(rtt_ms)]
        if mbit_s is not None:
            argv += ["--mbit-s", repr(mbit_s)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def described(self) -> dict[str, Any]:
        """What this link is, for a result."""
        rate = "any rate" if self.mbit_s is None else f"{self.mbit_s:g} Mbit/s per node and way"
        return {
            "kind": "proxy, per-node rate",
            "rtt_ms": self.rtt_ms,
            "mbit_s": self.mbit_s,
            "words": f"proxy, {self.rtt_ms:g} ms round trip, {rate}",
            "proxy_cpu_seconds": self.cpu_seconds(),
        }

    def route(self, source: str, target: str, address: str) -> str:
        """The address through which node `source` reaches `target`, who listens on `address`."""
        pipe, answers = self.process.stdin, self.process.stdout
        assert pipe is not None and answers is not None
        pipe.write(json.dumps([source, target, address]) + "\n")
        pipe.flush()
        return str(json.loads(answers.readline()))

    def cpu_seconds(self) -> float:
        """User and system time that the proxy has used so far."""
        import psutil

        return float(sum(psutil.Process(self.process.pid).cpu_times()[:2]))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark that say what is between its nodes."""
    parser.add_argument("--rtt-ms", type=float, help="round trip between any two nodes")
    parser.add_argument("--mbit-s", type=float, help="rate of each node's uplink and downlink")


def chosen(options: argparse.Namespace) -> Link | None:
    """The link of these options, None if loopback is to stay as it is; ValueError as of `Link`."""
    if options.rtt_ms is None and options.mbit_s is None:
        return None
    return Link(options.rtt_ms or 0.0, options.mbit_s)


# What follows runs inside the proxy.

Event = Callable[[float], None]
Turn = Callable[[float], int]


class _Loop:
    """Readable and writable sockets, and events in the order of their times.

    select instead of epoll: its timeout counts microseconds, that of Python's epoll milliseconds.
    """

    def __init__(self) -> None:
        self.readers: dict[socket.socket | int, Event] = {}
        self.writers: dict[socket.socket | int, Event] = {}
        self._events: list[tuple[float, int, Event]] = []
        self._order = count()

    def at(self, when: float, event: Event) -> None:
        """Call `event` with `when` as soon as it is that late."""
        heapq.heappush(self._events, (when, next(self._order), event))

    def run(self) -> NoReturn:
        events = self._events
        while True:
            for _ in range(EVENTS_BETWEEN_LOOKS):
                if not events or events[0][0] > time.monotonic():
                    break
                when, _, event = heapq.heappop(events)
                event(when)
            wait = max(0.0, events[0][0] - time.monotonic()) if events else None
            readable, writable, _ = select.select(list(self.readers), list(self.writers), (), wait)
            now = time.monotonic()
            for handlers, found in ((self.readers, readable), (self.writers, writable)):
                for source in found:
                    # Absent where one that came before has closed it.
                    handlers.get(source, _ignore)(now)


def _ignore(_: float) -> None:
    pass


class _Pace:
    """One direction of one node's link: connections wait for their turn, one slice each."""

    def __init__(self, loop: _Loop, bytes_per_s: float | None) -> None:
        self._loop = loop
        self._seconds_per_byte = 0.0 if bytes_per_s is None else 1 / bytes_per_s
        self._free_at = 0.0
        self._busy = False
        self._waiting: deque[tuple[float, Turn]] = deque()

    def ask(self, since: float, turn: Turn) -> None:
        """Queue for a turn. `turn` is given the time at which it begins, not before `since`, and
        returns how many bytes it puts on the link."""
        self._waiting.append((since, turn))
        if not self._busy:
            self._next(since)

    def needs(self, size: int) -> float:
        """Seconds that the link takes for `size` bytes."""
        return size * self._seconds_per_byte

    def _next(self, _: float) -> None:
        self._busy = True  # also for a turn that asks for the next one
        while self._waiting:
            since, turn = self._waiting.popleft()
            start = max(self._free_at, since)
            size = turn(start)
            if size:
                self._free_at = start + self.needs(size)
                self._loop.at(self._free_at, self._next)
                return
        self._busy = False


class _Flow:
    """One direction of one connection: from a socket over two links to another socket.

    end: called once, when nothing will pass any more. A source that broke has ended: what it sent
    before is still delivered, also when the other direction has nobody left to deliver to.
    """

    def __init__(
        self,
        loop: _Loop,
        source: socket.socket,
        target: socket.socket,
        up: _Pace,
        down: _Pace,
        delay_s: float,
        slice_bytes: int,
        end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._source, self._target = source, target
        self._up, self._down = up, down
        self._delay_s = delay_s
        self._slice_bytes = slice_bytes
        self._end = end
        self._arrived: deque[bytes] = deque()
        self._unwritten: deque[memoryview] = deque()
        self._under_way = 0
        self._paused = False
        self._source_ended = False
        self.ended = False
        loop.readers[source] = self._readable

    def _stop(self) -> None:
        self.ended = True
        self._loop.readers.pop(self._source, None)
        self._end()

    def _readable(self, now: float) -> None:
        del self._loop.readers[self._source]
        self._up.ask(now, self._read)

    def _read(self, start: float) -> int:
        """A turn on the uplink."""
        if self.ended:
            return 0
        try:
            data = self._source.recv(self._slice_bytes)
        except BlockingIOError:
            self._loop.readers[self._source] = self._readable
            return 0
        except OSError:
            data = b""
        # The first byte arrives before the last one has left: from then on it waits for the
        # receiver's link.
        self._loop.at(start + self._delay_s, lambda when: self._arrive(when, data))
        self._under_way += len(data)
        if self._under_way > WINDOW_BYTES:
            self._paused = True
        elif len(data) == self._slice_bytes:
            self._up.ask(start, self._read)
        elif data:
            self._loop.readers[self._source] = self._readable
        return len(data)

    def _arrive(self, when: float, data: bytes) -> None:
        self._arrived.append(data)
        self._down.ask(when, self._pass)

    def _pass(self, start: float) -> int:
        """A turn on the downlink."""
        data = self._arrived.popleft()
        self._loop.at(start + self._down.needs(len(data)), lambda _: self._write(data))
        return len(data)

    def _write(self, data: bytes) -> None:
        if self.ended:
            return
        self._source_ended = not data
        self._unwritten.append(memoryview(data))
        if len(self._unwritten) == 1:
            self._drain(0.0)

    def _drain(self, _: float) -> None:
        self._loop.writers.pop(self._target, None)
        try:
            while self._unwritten:
                rest = self._unwritten.popleft()
                sent = self._target.send(rest) if rest else 0
                self._under_way -= sent
                if sent < len(rest):
                    self._unwritten.appendleft(rest[sent:])
        except BlockingIOError:
            self._unwritten.appendleft(rest)
            self._loop.writers[self._target] = self._drain
        except OSError:
            self._stop()
            return
        if self._paused and self._under_way <= WINDOW_BYTES:
            self._paused = False
            self._loop.readers[self._source] = self._readable
        if self._source_ended and not self._unwritten:
            with contextlib.suppress(OSError):
                self._target.shutdown(socket.SHUT_WR)
            self._stop()


class _Proxy:
    """Listening sockets, one for each route, and the connections that came through them."""

    def __init__(self, rtt_ms: float, mbit_s: float | None) -> None:
        self._loop = _Loop()
        self._delay_s = rtt_ms / 2000
        self._bytes_per_s = bytes_per_s = None if mbit_s is None else mbit_s * 1e6 / 8
        self._slice_bytes = MAX_SLICE_BYTES
        if bytes_per_s is not None:
            a_turn = round(bytes_per_s * SLICE_S)
            self._slice_bytes = min(max(a_turn, MIN_SLICE_BYTES), MAX_SLICE_BYTES)
        self._paces: dict[tuple[str, str], _Pace] = {}
        self._listening: list[socket.socket] = []

    def run(self) -> NoReturn:
        """Serve until standard input ends."""
        self._loop.readers[0] = self._ask
        self._loop.run()

    def _ask(self, _: float) -> None:
        # One question is one line, and the next one waits for its answer.
        line = os.read(0, 1 << 16)
        if not line:
            sys.exit(0)
        source, target, address = json.loads(line)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self._listening.append(listening)
        self._loop.readers[listening] = lambda _: self._accept(
            listening, source, target, (host, int(port))
        )
        print(json.dumps(f"tcp://127.0.0.1:{listening.getsockname()[1]}"), flush=True)

    def _accept(
        self, listening: socket.socket, source: str, target: str, address: tuple[str, int]
    ) -> None:
        near, _ = listening.accept()
        try:
            far = socket.create_connection(address)  # on this machine: it does not wait
        except OSError:
            near.close()  # as if nobody listened
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flows: list[_Flow] = []

        def ended() -> None:
            if all(flow.ended for flow in flows):
                near.close()
                far.close()

        for a, b, sender, receiver in ((near, far, source, target), (far, near, target, source)):
            up, down = self._pace(sender, "up"), self._pace(receiver, "down")
            flows.append(_Flow(self._loop, a, b, up, down, self._delay_s, self._slice_bytes, ended))

    def _pace(self, node: str, way: str) -> _Pace:
        if (node, way) not in self._paces:
            self._paces[node, way] = _Pace(self._loop, self._bytes_per_s)
        return self._paces[node, way]


def main() -> None:
    parser = argparse.ArgumentParser(description="the proxy; takes routes as lines of JSON")
    parser.add_argument("--rtt-ms", type=float, required=True)
    parser.add_argument("--mbit-s", type=float)
    _Proxy(**vars(parser.parse_args())).run()


if __name__ == "__main__":
    main()
