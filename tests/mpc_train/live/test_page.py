"""The live page: reached from this machine alone, by its own name, and it changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mpc_train.errors import ConfigError, DataError
from mpc_train.live import server
from mpc_train.live.board import Board
from mpc_train.live.server import HEADERS, LivePage
from tests.support.commands import mpc_train

NAMES = ("ann", "bob")
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def board() -> Board:
    made = Board(NAMES)
    made.event("proposed", {"job": EVIL, "digest": "ab"})
    made.event("started", {})
    for step in (1, 5, 9):
        for name in NAMES:
            fields = {"step": step, "steps": 10, "phase": EVIL if name == "bob" else "training"}
            made.event("progress", {"node": name, "fields": fields})
        made.event("loss", {"step": step, "loss": 1 / step})
    return made


@pytest.fixture
def url(board: Board) -> Iterator[str]:
    with LivePage(board.snapshot, 0) as page:
        yield page.url


def ask(
    url: str, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    place = urlsplit(url)
    link = http.client.HTTPConnection("127.0.0.1", place.port, timeout=30)
    link.request(method, path, headers={} if host is None else {"Host": host})
    answer = link.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    link.close()
    return found


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/state.json"])
def test_each_part_is_served_with_what_keeps_browsers_strict(url: str, path: str) -> None:
    status, content, headers = ask(url, path)
    assert status == 200
    assert content
    assert HEADERS.items() <= headers.items()


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    text = b"".join(ask(url, path)[1] for path in ("/", "/page.js", "/page.css")).decode()
    assert {*re.findall(r"https?://[^\s\"']+", text)} <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", text)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", ""])
def test_another_name_gets_nothing(url: str, host: str) -> None:
    status, content, _ = ask(url, "/state.json", host=host)
    assert status == 421
    assert b"ann" not in content


def test_localhost_is_its_own_name(url: str) -> None:
    assert ask(url, "/state.json", host=f"localhost:{urlsplit(url).port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_reading_is_possible(url: str, method: str) -> None:
    assert ask(url, "/state.json", method)[0] == 501


@pytest.mark.parametrize(
    "path", ["/../server.py", "/page.html", "/%2e%2e/", "/x//", "/state.json?x", "/x" * 3000]
)
def test_other_paths_are_not_there(url: str, path: str) -> None:
    assert ask(url, path)[0] == 404


def test_bytes_that_are_no_request_end_the_connection_alone(url: str) -> None:
    port = urlsplit(url).port
    assert port is not None
    for data in (
        b"\0" * 100,
        b"GET " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
            link.sendall(data + b"\r\n\r\n")
            link.settimeout(30)
            try:
                while link.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert ask(url, "/state.json")[0] == 200


def test_connections_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = urlsplit(url).port
    idle = [
        socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(server.MAX_AT_ONCE)
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one_more:
        assert one_more.recv(1) == b""
    for link in idle:
        link.close()


def test_who_connects_and_says_nothing_takes_a_bounded_number_of_threads(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_AT_ONCE", 2)
    with LivePage(board.snapshot, 0) as page, contextlib.ExitStack() as held:
        place = ("127.0.0.1", urlsplit(page.url).port)
        silent = [held.enter_context(socket.create_connection(place, 30)) for _ in range(2)]
        refused = held.enter_context(socket.create_connection(place, 30))
        refused.settimeout(5)
        assert refused.recv(1) == b""
        for each in silent:
            each.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert each.recv(12) == b"HTTP/1.0 421"
    assert 0 < server._Handler.timeout <= 30, "and for a bounded time"


def test_a_port_that_is_taken(url: str, board: Board) -> None:
    port = urlsplit(url).port
    assert port is not None
    with pytest.raises(ConfigError, match=f"--live {port}: cannot listen"):
        LivePage(board.snapshot, port)
    with pytest.raises(ConfigError, match="choose another port"):
        LivePage(board.snapshot, 70_000)


def test_watch_shows_a_run_until_it_ends(
    url: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpc_train.commands.operating.watch.LOOK_S", 0.01)
    board.event("done", {})
    shown = mpc_train("watch", url)
    assert shown.exit_code == 0
    assert "all results are signed" in shown.stdout
    assert "step 9 of 10" in shown.stderr
    said = [
        json.loads(line) for line in mpc_train("watch", url, "--format", "json").stdout.splitlines()
    ]
    assert said[-1]["phase"] == "done"
    board.ended("bob was lost")
    failed = mpc_train("watch", url)
    assert failed.exit_code == 8
    assert "bob was lost" in failed.stderr
    board.ended("ann's data do not fit", 4)
    assert mpc_train("watch", url).exit_code == 4


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (ValueError("row 17: 42.5"), "internal error: ValueError", 1),
        (DataError("patients.csv: no column age"), "patients.csv: no column age", 4),
        (KeyboardInterrupt(), "the run was interrupted", 130),
    ],
)
def test_an_unexpected_error_is_not_quoted(
    board: Board, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str, status: int
) -> None:
    """Its message might be a row, and every user of the machine reads the page."""
    monkeypatch.setattr(server, "LAST_LOOK_S", 0.0)
    with pytest.raises(type(error)), server.on_page(board, 0, lambda url: None):
        raise error
    found = board.snapshot()
    assert found["message"].startswith(message) and "42.5" not in str(found)
    assert found["exit"] == status


@pytest.mark.parametrize(
    "wrong",
    [
        "http://example.org:80/",
        "https://127.0.0.1:1/",
        "127.0.0.1:7700",
        "http://127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:port/",
        "http://[::1/",
    ],
)
def test_watch_asks_this_machine_alone(wrong: str) -> None:
    shown = mpc_train("watch", wrong)
    assert shown.exit_code == 3
    assert "expected http://127.0.0.1:PORT/" in shown.stderr


def test_watch_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_train.commands.operating.watch.AWAY_S", 0.0)
    monkeypatch.setattr("mpc_train.commands.operating.watch.LOOK_S", 0.01)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shown = mpc_train("watch", f"http://127.0.0.1:{probe.getsockname()[1]}/")
    assert shown.exit_code == 7
    assert "no run answers there" in shown.stderr


@pytest.mark.parametrize(
    "strange",
    [
        {"events": [{}]},
        {"events": [{"number": 1, "seconds": "soon", "text": ""}]},
        {"events": 5},
        {"step": {}},
        {"phase": []},
        {"left_s": "soon"},
        {"bytes_sent": None},
        {"exit": "no"},
        {"message": 1},
    ],
)
def test_watch_believes_no_other_program(board: Board, strange: dict[str, object]) -> None:
    with LivePage(lambda: board.snapshot() | strange, 0) as page:
        shown = mpc_train("watch", page.url)
    assert shown.exit_code == 7
    assert "another program answers there" in shown.stderr


def test_watch_reads_bounded_nesting_and_goes_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpc_train.commands.operating.watch.AWAY_S", 0.0)
    asked = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if len(asked) == 1 else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"[" * 100_000)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Stranger) as strange:
        threading.Thread(target=strange.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{strange.server_port}/"
        assert [mpc_train("watch", url).exit_code for _ in range(2)] == [7, 7]
        strange.shutdown()
    assert set(asked) == {"/state.json"}


@pytest.mark.slow
def test_a_real_browser_shows_texts_as_texts(url: str, tmp_path: Path) -> None:
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium here")
    argv = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [*argv, "--virtual-time-budget=900", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    page = shown.stdout
    assert '<h1 id="job">&lt;img src=x onerror=alert(1)&gt;</h1>' in page
    assert "<img" not in page
    assert re.search(r'<svg id="progress".*?<path d="M[\d. L]+"', page, re.S)
    # Both charts are drawn for the width that they have beside each other.
    widths = re.findall(r'<svg id="(?:progress|losses)"[^>]* viewBox="0 0 (\d+) 200"', page)
    assert len(widths) == 2 and widths[0] == widths[1]
    assert re.search(r'<svg id="losses".*?<path d="M[\d. L]+"', page, re.S)
    assert '<td class="computing">computing</td>' in page
    assert 'aria-valuenow="90"' in page
