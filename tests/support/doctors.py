"""The other side of an examination on loopback: a `Listener`, or a port with a `Desk` of a kind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from parties.doctor.desk import Desk
from parties.doctor.findings import Finding
from parties.doctor.line import Target
from parties.doctor.link import Wanted, examine
from parties.wire.control_plane import ControlServer
from parties.wire.proxy import Proxy
from parties.wire.zmq_transport import CurveKeys, Transport

LISTEN = "tcp://127.0.0.1:*"
VERSION = 7
DESK, ANN, MALLORY = (CurveKeys.generate() for _ in range(3))


class Served:
    """A port that admits ann and answers as `desk` does, in a thread of its own."""

    def __init__(self, desk: Desk, *, quiet: bool = False, deaf: bool = False) -> None:
        self._transport = Transport(DESK, {"ann": ANN.public}, quiet=quiet)
        answer = (lambda name, parts: None) if deaf else desk.answer
        self._server = ControlServer(self._transport, LISTEN, {}, answer)
        self.address = self._server.address
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while not self._over.is_set():
            list(self._server.poll(0.05))
            self._server.lost()

    def __enter__(self) -> "Served":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(10)
        self._server.close(0)
        self._transport.close()


@contextmanager
def served(desk: Desk | None = None, **how: Any) -> Iterator[str]:
    """The address of such a port."""
    with Served(desk or Desk(VERSION), **how) as port:
        yield port.address


def found(
    address: str,
    *,
    keys: CurveKeys = ANN,
    expected: CurveKeys = DESK,
    proxy: Proxy | None = None,
    **wanted: Any,
) -> dict[str, Finding]:
    """What ann's doctor says of `address`, by check."""
    target = Target("desk", address, expected.public)
    wanted = {"version": VERSION, "megabytes": 1, **wanted}
    return {each.check: each for each in examine(keys, target, Wanted(**wanted), proxy)}
