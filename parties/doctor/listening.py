"""The other side of an examination: a port that answers the doctors of others, and nothing else.

It admits the keys of the roster, sends nothing by itself, and tells a node that starts a run there
that no coordinator is running.
"""

import time
from collections.abc import Callable, Mapping

from parties.doctor.desk import Desk
from parties.doctor.findings import Finding, Level, machine, network
from parties.errors import PartiesError, PortInUseError, TransportError
from parties.wire.control_plane import ControlServer
from parties.wire.zmq_transport import CurveKeys, Transport

VISIT_S = 30.0
"""A node that asks again after so long has come back."""


class Listener:
    """Answers measurements at `address`; for one thread. Raises PortInUseError and TransportError.

    allowed: by name, whose CURVE keys are admitted. on_event(kind, name): 'visit', a node begins to
    ask; 'started', a node expects a coordinator here; 'refused', a key that is not admitted.
    """

    def __init__(
        self,
        keys: CurveKeys,
        allowed: Mapping[str, bytes],
        address: str,
        version: int,
        on_event: Callable[[str, str], None] = lambda kind, name: None,
    ) -> None:
        self._on_event = on_event
        self._seen: dict[str, tuple[int, float]] = {}
        self.desk = Desk(version, quiet=True)
        self._transport = Transport(
            keys, allowed, on_refused=lambda who, count: on_event("refused", who), quiet=True
        )
        try:
            self._server = ControlServer(self._transport, address, {}, self.desk.answer)
        except PartiesError:
            self._transport.close()
            raise
        self.address = self._server.address

    def attend(self, timeout_s: float) -> None:
        """Answer what comes within `timeout_s`."""
        for arrival in self._server.poll(timeout_s):
            if arrival.data:
                self._on_event("started", arrival.name)
        self._server.lost()
        now = time.monotonic()
        for name, count in self.desk.names.items():
            known, last = self._seen.get(name, (0, -VISIT_S))
            if count > known:
                self._seen[name] = count, now
                if now - last >= VISIT_S:
                    self._on_event("visit", name)

    def close(self) -> None:
        self._server.close(0)
        self._transport.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def port(address: str) -> Finding:
    """Whether this machine can listen at `address`."""
    try:
        Listener(CurveKeys.generate(), {}, address, 0).close()
    except PortInUseError:
        return machine(
            "port",
            Level.problem,
            f"the port of {address} is in use",
            "a node may be running already; otherwise end the program that holds it, or choose "
            "another port",
        )
    except TransportError as error:
        return network("port", Level.problem, str(error), "correct listen in the node's file")
    return machine("port", Level.passed, f"this machine can listen on {address}")
