"""Alerts: to a web hook over verified TLS and to a command, and never in the way of a run."""

import datetime
import http.server
import ipaddress
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from parties.audit import alerts as alerts_module
from parties.audit.alerts import Alerts, AlertSettings
from parties.audit.entries import Entry, Kind

ALARM = Entry("2026-01-01T00:00:00.000Z", Kind.AUTHENTICATION_FAILED, "study", "ab", {"times": 3})
CALM = Entry("2026-01-01T00:00:00.000Z", Kind.OPENING)


class Hook:
    """A web server with a certificate of its own, which only `tls` trusts."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hook")])
        now = datetime.datetime.now(datetime.UTC)
        local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(1))
            .add_extension(x509.SubjectAlternativeName([local]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = made.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = folder / "hook.pem"
        path.write_bytes(private + pem)
        self.tls = ssl.create_default_context(cadata=pem.decode())
        self.got: list[tuple[str, bytes]] = []
        self.answer = 204
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                hook.got.append((self.path, self.rfile.read(size)))
                self.send_response(hook.answer)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}/alert"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    made = Hook(tmp_path)
    yield made
    made.close()


def call(
    settings: AlertSettings, *entries: Entry, tls: ssl.SSLContext | None = None
) -> list[tuple[str, str]]:
    """What failed."""
    failed: list[tuple[str, str]] = []
    alerts = Alerts("ann", settings, lambda way, how: failed.append((way, how)), tls)
    for number, entry in enumerate(entries):
        alerts(number, entry)
    alerts.close()
    return failed


def test_the_hook_gets_what_is_alarming(hook: Hook) -> None:
    assert call(AlertSettings(hook.url), CALM, ALARM, tls=hook.tls) == []
    ((path, body),) = hook.got
    assert path == "/alert"
    assert json.loads(body) == {
        "node": "ann",
        "entry": 1,
        "time": ALARM.time,
        "kind": "authentication-failed",
        "job": "study",
        "digest": "ab",
        "fields": {"times": 3},
        "left_out": 0,
    }


def test_a_certificate_that_nobody_vouches_for_is_refused(hook: Hook) -> None:
    assert call(AlertSettings(hook.url), ALARM) == [("webhook", "URLError")]
    assert hook.got == []


@pytest.mark.parametrize("answer", [302, 307, 500])
def test_a_redirection_is_not_followed(hook: Hook, answer: int) -> None:
    hook.answer = answer
    assert call(AlertSettings(hook.url), ALARM, tls=hook.tls) == [("webhook", "HTTPError")]
    assert [path for path, _ in hook.got] == ["/alert"]


def test_a_command_gets_it_on_its_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    settings = AlertSettings(command=(sys.executable, "-c", program))
    assert call(settings, ALARM, ALARM) == []
    assert [json.loads(line)["entry"] for line in out.read_text().splitlines()] == [0, 1]


def test_a_command_that_fails_or_hangs_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = AlertSettings(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert call(fails, ALARM) == [("command", "CalledProcessError")]
    assert call(AlertSettings(command=("/no/such/program",)), ALARM) == [
        ("command", "FileNotFoundError")
    ]
    monkeypatch.setattr(alerts_module, "TIMEOUT_S", 0.5)
    started = time.monotonic()
    hangs = AlertSettings(command=(sys.executable, "-c", "import time; time.sleep(60)"))
    assert call(hangs, ALARM) == [("command", "TimeoutExpired")]
    assert time.monotonic() - started < 20


def test_so_many_in_a_minute_and_the_next_says_how_many_were_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, now = tmp_path / "out", [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    program = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    settings = AlertSettings(command=(sys.executable, "-c", program), per_minute=2)
    alerts = Alerts("ann", settings, lambda *_: None)
    for number in range(7):
        alerts(number, ALARM)
    now[0] += 61
    alerts(7, ALARM)
    monkeypatch.undo()
    alerts.close()
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["entry"], each["left_out"]) for each in found] == [(0, 0), (1, 0), (7, 5)]


def test_without_settings_there_is_no_thread() -> None:
    before = threading.active_count()
    assert call(AlertSettings(), ALARM) == [] and threading.active_count() == before
