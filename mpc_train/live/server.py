"""A read-only page about a run, on this machine only.

    /             the page; /page.js and /page.css belong to it
    /state.json   what it shows (`Board.snapshot`)
    /metrics      the same for Prometheus, if prometheus-client is installed (extra `live`)

It listens on a loopback address and on no other; who sits elsewhere makes a tunnel. It answers
requests of GET alone, to its own names (a page of another site cannot reach it through a name of
its own), of bounded size, and a bounded number at a time. Nothing in it can change a run. It is
Python's own HTTP server rather than a framework, so that it is there in every installation.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any

from mpc_train.errors import ConfigError, NodeFailedError, classify, explain
from mpc_train.live.board import Board
from mpc_train.live.metrics import exposition

ADDRESS = "127.0.0.1"
MAX_AT_ONCE = 16
PATIENCE_S = 10.0
LAST_LOOK_S = 1.5
"""How long a page stays after the run, so that whoever looks at it sees how it ended."""
PAGES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Snapshot = Callable[[], dict[str, Any]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    snapshot: Snapshot
    slots: threading.BoundedSemaphore

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S
    server_version, sys_version = "mpc-train", ""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in {f"{name}:{port}" for name in (ADDRESS, "localhost")}:
            self._answer(421, "text/plain", b"ask for this page by its own address\n")
        elif (name := PAGES.get(self.path)) is not None:
            content = files("mpc_train.live").joinpath("page", name).read_bytes()
            self._answer(200, TYPES[name.rpartition(".")[2]], content)
        elif self.path == "/state.json":
            content = json.dumps(self.server.snapshot(), separators=(",", ":")).encode()
            self._answer(200, "application/json", content)
        elif self.path == "/metrics":
            found = exposition(self.server.snapshot())
            if found is None:
                text = b'metrics need another package: pip install "mpc-train[live]"\n'
                self._answer(404, "text/plain", text)
            else:
                self._answer(200, *found)
        else:
            self._answer(404, "text/plain", b"there is no such page\n")

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        charset = "" if ";" in kind or "json" in kind else "; charset=utf-8"
        self.send_header("Content-Type", kind + charset)
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what a client asks for must not fill a log."""


@contextmanager
def on_page(board: Board, port: int | None, told: Callable[[str], None]) -> Iterator[None]:
    """Inside this context the run is shown on a page; without a port, not. told: called with its
    address."""
    if port is None:
        yield
        return
    with LivePage(board.snapshot, port) as page:
        told(page.url)
        try:
            yield
        except BaseException as error:
            board.ended(*end_of(error))
            raise
        else:
            board.ended()
        finally:
            time.sleep(LAST_LOOK_S)


def end_of(error: BaseException) -> tuple[str, int]:
    """What the page says of the error that ended a run, and the exit status. Of an unexpected one
    only the kind: its message might quote data, and every user of this machine reads the page."""
    name, code, status = classify(error)
    if isinstance(error, KeyboardInterrupt):
        return "the run was interrupted", status
    if code == "internal" and not isinstance(error, NodeFailedError):
        return f"internal error: {name}; the log of this process says where", status
    return explain(error) or name, status


class LivePage:
    """Serves the page inside a `with`. port: 0 for a free one. Raises ConfigError if it is taken.

    url: where it is.
    """

    def __init__(self, snapshot: Snapshot, port: int) -> None:
        try:
            self._server = _Server((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--live {port}: cannot listen on {ADDRESS} there ({error}); choose another port"
            ) from error
        self._server.snapshot = snapshot
        self._server.slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="live-page", daemon=True
        )

    def __enter__(self) -> LivePage:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
