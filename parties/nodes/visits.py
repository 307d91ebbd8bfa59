"""The coordinator's part in a service: clients come and go, and it carries their sealed messages.

A client is named in the contract, but has no part in the session: whatever it sends, and whenever
it leaves, the session goes on. It may be connected several times, each of which is a visit.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION, Roles
from parties.agreement.control import FromCoordinator
from parties.errors import ControlError
from parties.wire.control_plane import Arrival, ControlServer

log = logging.getLogger(__name__)

MAX_OPEN = 80
"""Messages of one visit to one evaluator that are not answered; a client of this release keeps
below (`client.MAX_ASKED`)."""


@dataclass
class _Visit:
    name: str
    open: dict[str, int] = field(default_factory=dict)
    """By evaluator, how many messages are not answered."""


class Visits:
    """All visits of clients.

    deliver: sends a message to a node of the session, if it is there. admits: whether the client's
    first message is believed. refuse: answers a process that is not let in.
    """

    def __init__(
        self,
        roles: Roles,
        me: str,
        server: ControlServer,
        deliver: Callable[[str, FromCoordinator], None],
        admits: Callable[[Arrival, control.Hello], bool],
        refuse: Callable[[bytes, str, str], None],
    ) -> None:
        self._roles, self._me, self._server = roles, me, server
        self._deliver, self._admits, self._refuse = deliver, admits, refuse
        self._visits: dict[bytes, _Visit] = {}
        self._serving: control.Serving | None = None

    def __len__(self) -> int:
        return len(self._visits)

    def begin(self, serving: control.Serving) -> None:
        """A session runs: from now on messages are carried."""
        self._serving = serving
        for process, visit in self._visits.items():
            visit.open.clear()
            self._send(process, serving)

    def pause(self, missing: tuple[str, ...]) -> None:
        """No session runs; clients are told who is missing."""
        self._serving = None
        for process in self._visits:
            self._send(process, control.Waiting((), missing, 0))

    def take(self, arrival: Arrival) -> None:
        """A message of a client. One that is malformed or not due ends the visit."""
        visit = self._visits.get(arrival.process)
        try:
            message = control.decode_from_node(arrival.data, arrival.name)
        except ControlError as error:
            self._end(arrival, error.code)
            return
        if visit is None:
            self._greet(arrival, message)
        elif isinstance(message, control.Abort):
            self.left(arrival.process)
            self._server.forget(arrival.process)
        elif not isinstance(message, control.Carry) or message.to not in self._roles.evaluators:
            self._end(arrival, "control")
        elif self._serving is None:
            self._send(arrival.process, control.Waiting((), (), 0))
        else:
            waiting = visit.open[message.to] = visit.open.get(message.to, 0) + 1
            if waiting > MAX_OPEN:
                self._end(arrival, "control")
                return
            self._deliver(message.to, control.Carried(visit.name, message.data, arrival.process))

    def answer(self, evaluator: str, message: control.Carry) -> None:
        """A message of an evaluator; dropped if the client has left."""
        visit = self._visits.get(message.visit)
        if visit is not None and visit.name == message.to:
            visit.open[evaluator] = max(0, visit.open.get(evaluator, 0) - 1)
            self._send(message.visit, control.Carried(evaluator, message.data))

    def left(self, process: bytes) -> None:
        """A process is gone."""
        self._visits.pop(process, None)

    def close(self, message: control.Aborted) -> None:
        """The run is over."""
        for process in self._visits:
            self._send(process, message)

    def _greet(self, arrival: Arrival, message: control.FromNode) -> None:
        if not isinstance(message, control.Hello) or message.name != arrival.name:
            self._end(arrival, "control")
        elif message.version != CONTRACT_VERSION:
            self._end(arrival, "version")
        elif self._admits(arrival, message):
            self._visits[arrival.process] = _Visit(arrival.name)
            self._server.keep(arrival.process)
            self._send(arrival.process, control.Welcome(CONTRACT_VERSION, self._me))
            self._send(arrival.process, self._serving or control.Waiting((), (), 0))

    def _end(self, arrival: Arrival, code: str) -> None:
        self.left(arrival.process)
        self._refuse(arrival.process, arrival.name, code)
        self._server.forget(arrival.process)

    def _send(self, process: bytes, message: FromCoordinator) -> None:
        if not self._server.send(process, control.encode(message)):
            log.info("a client left before a %s reached it", type(message).__name__)
