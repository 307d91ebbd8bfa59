"""One connection to a desk, and questions on it."""

import time
from dataclasses import dataclass

from parties.doctor.desk import MAX_PAYLOAD_BYTES, Told, question, read_answer
from parties.errors import ControlError
from parties.wire.control_plane import MEASURE
from parties.wire.zmq_transport import Dialled, Transport

CONNECT_S = 12.0
ANSWER_S = 4.0
"""A small answer that takes longer counts as lost: before heartbeats give the connection up."""


@dataclass(frozen=True)
class Target:
    """The other side: its name, its address (tcp://host:port) and its CURVE key."""

    name: str
    address: str
    key: bytes

    @property
    def words(self) -> str:
        return f"{self.name} at {self.address}"


class LineLostError(Exception):
    """The connection broke, or an answer did not come."""


class Line:
    """A connection like that of a run. The constructor raises TransportError."""

    def __init__(self, transport: Transport, target: Target) -> None:
        self.target = target
        # By a function, so that a break is seen although another connection follows at once.
        self._link = Dialled(
            transport, target.address, lambda number: target.key, MAX_PAYLOAD_BYTES + 1024
        )
        self._asked = 0
        self._broken = False

    def connect(self, timeout_s: float = CONNECT_S) -> str | None:
        """Wait for the connection; why there is none, otherwise."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._link.update()
            if self._link.connected:
                return None
            if self._link.trouble is not None:
                return self._link.trouble
            if time.monotonic() > deadline:
                return f"no connection came about within {timeout_s:.0f} s"
            time.sleep(0.005)

    def ask(self, want: int = 0, payload: bytes = b"") -> None:
        """Send a question. Raises LineLostError."""
        if not self._link.send((MEASURE, *question(self._asked, want, payload))):
            raise LineLostError
        self._asked += 1

    def answer(self, timeout_s: float = ANSWER_S) -> tuple[Told, int]:
        """The next answer and the bytes of its payload. Raises LineLostError and ControlError."""
        deadline = time.monotonic() + timeout_s
        while True:
            parts = self._link.receive()
            if parts is not None:
                if parts[0].bytes != MEASURE:
                    raise ControlError(f"{self.target.name} sent something else than an answer")
                return read_answer(parts[1:], self.target.name)
            if self.broken or time.monotonic() > deadline:
                raise LineLostError

    @property
    def broken(self) -> bool:
        """Whether the connection broke; later ones do not count."""
        self._broken = self._link.update() or self._link.lost or self._broken
        return self._broken

    def close(self) -> None:
        self._link.close(0)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
