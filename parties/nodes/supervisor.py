"""Local runs: start the nodes of a job as processes on this machine, watch them, and leave none
behind.

When one fails, or on Ctrl-C, the others get a moment to end by themselves (they hear of it from the
coordinator), then SIGTERM, then SIGKILL. No child outlives this process, however that ends: each
child holds the reading end of a pipe whose other end only we hold, and ends itself when that closes
(`end_with_parent`). Secrets reach a child through a pipe, never through its arguments or
environment.

Children get a session of their own, so that Ctrl-C in a terminal reaches the supervisor alone. In a
child's arguments `{secret_fd}` stands for the descriptor from which it reads its secret, and
`{report_fd}` for one to which it may write a line (`report`), such as the address that it listens
on: nobody has to guess a free port.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from parties.errors import TransportError

log = logging.getLogger(__name__)

PARENT_FD = "MPC_TRAIN_PARENT_FD"
"""Environment variable that tells a child which descriptor shows that its parent is alive."""

TAIL_LINES = 200
PARENT_GONE_S = 5.0
_POLL_S = 0.05

OnLine = Callable[[str, str, str], None]
"""Called with a child's name, 'stdout' or 'stderr', and the line, from one thread per stream."""


@dataclass(frozen=True)
class ChildSpec:
    """One process to start. `secret` is written to the pipe behind `{secret_fd}`."""

    name: str
    argv: Sequence[str]
    secret: bytes | None = field(default=None, repr=False)
    environment: Mapping[str, str] | None = None
    """Added to this process's environment."""


@dataclass
class Child:
    """A started process and the last lines of its two streams."""

    name: str
    process: "subprocess.Popen[bytes]"
    report_fd: int
    threads: list[threading.Thread] = field(default_factory=list, repr=False)
    stdout: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES), repr=False)
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES), repr=False)

    @property
    def returncode(self) -> int | None:
        """The exit status: negative for a signal, None while it runs."""
        return self.process.poll()


class Supervisor:
    """A context manager: leaving it ends every child that still runs.

    `settle_s`: how long children may take to end by themselves after one of them failed; `grace_s`:
    the time from SIGTERM to SIGKILL.
    """

    def __init__(
        self, on_line: OnLine | None = None, settle_s: float = 8.0, grace_s: float = 4.0
    ) -> None:
        self.children: dict[str, Child] = {}
        self.first_failure: Child | None = None
        """The child that ended with an error before any other did."""
        self._on_line = on_line
        self._settle_s = settle_s
        self._grace_s = grace_s
        self._alive_reader, self._alive_writer = os.pipe()

    def start(self, spec: ChildSpec) -> Child:
        """Start one child. Raises OSError if its program cannot be started."""
        report_reader, report_writer = os.pipe()
        inherited = [self._alive_reader, report_writer]
        words = {"report_fd": str(report_writer)}
        secret_writer = -1
        if spec.secret is not None:
            secret_reader, secret_writer = os.pipe()
            inherited.append(secret_reader)
            words["secret_fd"] = str(secret_reader)
        environment = {**os.environ, **(spec.environment or {})}
        environment[PARENT_FD] = str(self._alive_reader)
        try:
            process = subprocess.Popen(
                [_fill(word, words) for word in spec.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=inherited,
                start_new_session=True,
            )
            if spec.secret is not None:
                # A pipe holds 64 KiB before it blocks, and a secret is far smaller.
                os.write(secret_writer, spec.secret)
        except OSError:
            os.close(report_reader)
            raise
        finally:
            for descriptor in {*inherited, secret_writer} - {self._alive_reader, -1}:
                os.close(descriptor)
        child = Child(spec.name, process, report_reader)
        self.children[spec.name] = child
        for stream, title, tail in (
            (process.stdout, "stdout", child.stdout),
            (process.stderr, "stderr", child.stderr),
        ):
            if stream is not None:
                reader = threading.Thread(
                    target=self._read, args=(spec.name, title, stream, tail), daemon=True
                )
                reader.start()
                child.threads.append(reader)
        return child

    def _read(self, name: str, title: str, stream: IO[bytes], tail: deque[str]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                tail.append(line)
                if self._on_line is not None:
                    self._on_line(name, title, line)

    def wait_report(self, child: Child, timeout_s: float) -> str:
        """The line that a child writes with `report`. Raises TransportError if none comes."""
        deadline = time.monotonic() + timeout_s
        text = b""
        while not text.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([child.report_fd], [], [], max(0.0, left))
            piece = os.read(child.report_fd, 4096) if ready else b""
            if not piece:
                if not ready:
                    raise TransportError(f"{child.name} was not ready within {timeout_s:.0f} s")
                self._join_readers(child)
                last = child.stderr[-1] if child.stderr else "it said nothing"
                raise TransportError(f"{child.name} ended before it was ready: {last}")
            text += piece
        return text.decode("utf-8", "replace").strip()

    def wait(self, timeout_s: float | None = None) -> dict[str, int]:
        """Wait for all children; return their exit statuses.

        After one fails, the others get `settle_s` to end by themselves, then they are ended; after
        `timeout_s` all are. KeyboardInterrupt passes through; then leave the context.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while running := [child for child in self.children.values() if child.returncode is None]:
            now = time.monotonic()
            if self._note_failure():
                settle = now + self._settle_s
                deadline = settle if deadline is None else min(deadline, settle)
            if deadline is not None and now > deadline:
                log.warning("ending %s", ", ".join(child.name for child in running))
                self.stop()
                break
            time.sleep(_POLL_S)
        self._note_failure()
        self._join_readers()
        return {name: child.process.wait() for name, child in self.children.items()}

    def _note_failure(self) -> bool:
        """True if this call saw the first failure."""
        if self.first_failure is None:
            for child in self.children.values():
                if child.returncode:
                    self.first_failure = child
                    return True
        return False

    def stop(self) -> None:
        """Send SIGTERM to the children that still run, SIGKILL after the grace period, then
        reap."""
        for number, patience in ((signal.SIGTERM, self._grace_s), (signal.SIGKILL, 5.0)):
            running = [child for child in self.children.values() if child.returncode is None]
            for child in running:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(number)
            deadline = time.monotonic() + patience
            for child in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - time.monotonic()))
        self._join_readers()

    def _join_readers(self, *only: Child) -> None:
        for child in only or self.children.values():
            for thread in child.threads:
                thread.join(timeout=1.0)

    def close(self) -> None:
        """End the remaining children and close the pipes."""
        self.stop()
        for child in self.children.values():
            os.close(child.report_fd)
        self.children.clear()
        os.close(self._alive_reader)
        os.close(self._alive_writer)

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def report(descriptor: int, line: str) -> None:
    """In a child: write one line to the supervisor, once, through `{report_fd}`."""
    with os.fdopen(descriptor, "w") as stream:
        stream.write(line + "\n")


def end_with_parent() -> None:
    """In a child: end when the supervisor has ended, even if it was killed. Call this first.

    Sends SIGTERM to this process, which a node treats like Ctrl-C, and exits unconditionally after
    `PARENT_GONE_S`. Does nothing in a process that no supervisor started.
    """
    text = os.environ.pop(PARENT_FD, "")
    if not text.isdigit():
        return
    descriptor = int(text)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PARENT_GONE_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
