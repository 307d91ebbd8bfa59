"""An HTTP proxy on loopback with CONNECT, as strict or as broken as a test wants it.

    with HttpProxy(names={"study.invalid": address}, user="ann", password="pale ale") as proxy:
        Proxy.from_url(proxy.url)

It resolves the names that it is given and no others, so a test shows that names are resolved at the
proxy: `study.invalid` exists nowhere else.
"""

import base64
import contextlib
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any


class HttpProxy:
    """Listens on a free port of 127.0.0.1 until closed.

    names: by host name, tcp://host:port of what is behind it. user, password: needed, if given.
    answer: what is sent instead of an answer to CONNECT; the connection then stays open. delay_s:
    how long it takes to answer. idle_s: a tunnel without traffic for so long is closed, without a
    word. hold_bytes: bytes of one direction are passed on only when so many have come, after the
    first hold_after. keeps: an end that closes is not noticed. cut_bytes: a tunnel is closed when
    so many bytes have passed in either direction.
    """

    def __init__(self, names: Mapping[str, str] | None = None, **habits: Any) -> None:
        self.names = dict(names or {})
        self.user = habits.pop("user", "")
        self.password = habits.pop("password", "")
        self.answer: bytes | None = habits.pop("answer", None)
        self.scheme: str = habits.pop("scheme", 'Basic realm="proxy"')
        self.delay_s: float = habits.pop("delay_s", 0.0)
        self.idle_s: float | None = habits.pop("idle_s", None)
        self.hold_bytes: int = habits.pop("hold_bytes", 0)
        self.hold_after: int = habits.pop("hold_after", 0)
        self.cut_bytes: int | None = habits.pop("cut_bytes", None)
        self.keeps: bool = habits.pop("keeps", False)
        assert not habits, habits
        self.asked: list[tuple[str, dict[str, str]]] = []
        """The target and the header fields, names in small letters, of each CONNECT."""
        self.carried = bytearray()
        """What passed through tunnels, in both directions."""
        self.open = 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._server.close()

    def __enter__(self) -> "HttpProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                if not select.select([self._server], [], [], 0.2)[0]:
                    continue
                client, _ = self._server.accept()
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(4096)
            if not piece:
                return
            head += piece
        first, *lines = head.split(b"\r\n\r\n")[0].decode().split("\r\n")
        method, target, _ = first.split(" ")
        fields = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        self.asked.append((target, fields))
        self._over.wait(self.delay_s)
        if self.answer is not None:
            client.sendall(self.answer)
            if b"\r\n\r\n" in self.answer or not self.answer:
                self._over.wait(0.5)
            return
        if self.user:
            expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            if fields.get("proxy-authorization") != f"Basic {expected}":
                client.sendall(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    + f"Proxy-Authenticate: {self.scheme}\r\nContent-Length: 0\r\n\r\n".encode()
                )
                return
        host = target.rpartition(":")[0]
        if method != "CONNECT" or host not in self.names:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        to, _, at = self.names[host].removeprefix("tcp://").rpartition(":")
        try:
            far = socket.create_connection((to, int(at)), 5)
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        with far:
            client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
            self.open += 1
            try:
                self._carry(client, far)
            finally:
                self.open -= 1

    def _carry(self, client: socket.socket, far: socket.socket) -> None:
        held = {client: b"", far: b""}
        other = {client: far, far: client}
        passed, quiet_since = {client: 0, far: 0}, time.monotonic()
        while not self._over.is_set():
            readable, _, _ = select.select([client, far], [], [], 0.05)
            now = time.monotonic()
            if readable:
                quiet_since = now
            elif self.idle_s is not None and now - quiet_since > self.idle_s:
                return
            for end in readable:
                data = end.recv(65536)
                if not data and self.keeps:
                    self._over.wait()
                if not data:
                    return
                if len(self.carried) < 1 << 24:
                    self.carried += data
                held[end] += data
                if passed[end] < self.hold_after or len(held[end]) >= self.hold_bytes:
                    other[end].sendall(held[end])
                    passed[end] += len(held[end])
                    held[end] = b""
            if self.cut_bytes is not None and max(passed.values()) > self.cut_bytes:
                return
