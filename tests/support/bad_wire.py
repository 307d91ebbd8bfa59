"""A wire between two nodes of one process or of several, which a test cuts and stalls.

What passes is unaltered and in order, as TCP has it; what a cut loses is lost.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of zero: closing resets the connection and discards what is under way."""


class BadWire:
    """Listens on `address` and passes each connection on to `target` (tcp://host:port)."""

    def __init__(self, target: str, *, bytes_per_s: float | None = None) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._pause_s = 0.0 if bytes_per_s is None else (1 << 14) / bytes_per_s
        self._piece = 1 << 16 if bytes_per_s is None else 1 << 14
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self.cuts = 0
        self.connections = 0
        self.passed: list[int] = []
        """Bytes over each connection."""
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self._refuses:
                _abort(near)
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                _abort(near)
                continue
            with self._lock:
                self._open += [near, far]
                self.connections += 1
                self.passed.append(0)
                place = len(self.passed) - 1
            for a, b in ((near, far), (far, near)):
                with contextlib.suppress(OSError):  # a cut may have come in between
                    a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(a, b, place), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, place: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self._piece):
                self._flows.wait()
                target.sendall(data)
                self.passed[place] += len(data)
                time.sleep(self._pause_s)
            target.shutdown(socket.SHUT_WR)
            return
        for end in (source, target):
            _abort(end)

    def cut(self) -> None:
        """Reset all connections at once."""
        with self._lock:
            ends, self._open = self._open, []
            self.cuts += 1
        for end in ends:
            _abort(end)

    def stall(self) -> None:
        """Nothing passes until `flow`; connections stay open."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()
        self._refuses = False

    def refuse(self) -> None:
        """Cut, and take no new connection until `flow`."""
        self._refuses = True
        self.cut()

    def close(self) -> None:
        # Closing alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.flow()
        self.cut()

    def __enter__(self) -> BadWire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _abort(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        # Another thread may wait in recv, which a close alone would not end.
        end.shutdown(socket.SHUT_RDWR)
    end.close()
