"""Tells people at once of what an audit log calls alarming: by a web hook, a command, or both.

Each gets one JSON object (`Alert.record`), the hook as the body of a POST over verified TLS, the
command on its standard input. Calls run in a thread of their own, with a time limit, at most so
many a minute; the next one says how many were left out. One that fails is logged, and stops
nothing.
"""

import contextlib
import json
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parties.audit.entries import ALARMING, Entry

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
"""Of one call."""
LINGER_S = 12.0
"""How long the end of a node waits for calls that are under way."""
MAX_WAITING = 64


@dataclass(frozen=True)
class AlertSettings:
    """webhook: https://…, or nothing. command: program and arguments, or nothing."""

    webhook: str = ""
    command: tuple[str, ...] = ()
    per_minute: int = 6

    @property
    def on(self) -> bool:
        return bool(self.webhook or self.command)


class Alerts:
    """Call it with each entry of a log, of whatever kind. failed: hears which way failed and how,
    in one word each, from another thread."""

    def __init__(
        self,
        node: str,
        settings: AlertSettings,
        failed: Callable[[str, str], None],
        tls: "ssl.SSLContext | None" = None,
    ) -> None:
        self._node, self._settings, self._failed = node, settings, failed
        self._tls = tls
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._sent: list[float] = []
        self._left_out = 0
        self._thread: threading.Thread | None = None

    def __call__(self, number: int, entry: Entry) -> None:
        if not self._settings.on or entry.kind not in ALARMING:
            return
        with self._lock:
            now = time.monotonic()
            self._sent = [moment for moment in self._sent if moment > now - 60]
            if len(self._sent) >= self._settings.per_minute:
                self._left_out += 1
                return
            record = {"node": self._node, **entry.record(number), "left_out": self._left_out}
            try:
                self._waiting.put_nowait(json.dumps(record).encode() + b"\n")
            except queue.Full:
                self._left_out += 1
                return
            self._sent.append(now)
            self._left_out = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait a moment for calls that are under way."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(LINGER_S)

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            for way, call in self._ways():
                try:
                    call(body)
                except Exception as error:
                    log.warning("an alert by %s failed: %s", way, type(error).__name__)
                    self._failed(way, type(error).__name__)

    def _ways(self) -> Sequence[tuple[str, Callable[[bytes], None]]]:
        ways: list[tuple[str, Callable[[bytes], None]]] = []
        if self._settings.webhook:
            ways.append(("webhook", self._post))
        if self._settings.command:
            ways.append(("command", self._command))
        return ways

    def _post(self, body: bytes) -> None:
        # Loads an HTTP client and TLS, which few nodes need.
        from parties.audit.webhook import post

        post(self._settings.webhook, body, TIMEOUT_S, self._tls)

    def _command(self, body: bytes) -> None:
        subprocess.run(
            self._settings.command,
            input=body,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
        )
