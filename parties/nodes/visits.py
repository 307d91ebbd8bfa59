"""The coordinator's part in a service: clients come and go, and it carries their sealed messages.

A client is named in the contract, but has no part in the session: whatever it sends, and whenever
it leaves, the session goes on. It may be connected several times, each of which is a visit.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION, Roles
from parties.agreement.control import FromCoordinator
from parties.agreement.pace import Pace
from parties.agreement.visitors import LEFT
from parties.errors import ControlError
from parties.wire.control_plane import Arrival, ControlServer

log = logging.getLogger(__name__)

BUSY = "busy"
"""The word for a client that connects too often."""
MAX_OPEN, MAX_OPEN_BYTES = 80, 24 << 20
"""Of one visit to one evaluator: messages that are not answered, and their bytes; a client of this
release keeps below (`client.MAX_ASKED`, `client.MAX_ASKED_BYTES`)."""


@dataclass
class _Visit:
    name: str
    open: dict[str, deque[int]] = field(default_factory=dict)
    """By evaluator, the sizes of the messages that are not answered."""


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
        self._pace = Pace()
        self._serving: control.Serving | None = None

    def __len__(self) -> int:
        return len(self._visits)

    def begin(self, serving: control.Serving) -> None:
        """A session runs: from now on messages are carried."""
        self._serving = serving
        for visit in self._visits.values():
            visit.open.clear()
        self._tell(serving)

    def pause(self, missing: tuple[str, ...]) -> None:
        """No session runs; clients are told who is missing."""
        self._serving = None
        self._tell(control.Waiting((), missing, 0))

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
            waiting = visit.open.setdefault(message.to, deque())
            waiting.append(len(message.data))
            if len(waiting) > MAX_OPEN or sum(waiting) > MAX_OPEN_BYTES:
                self._end(arrival, "control")
                return
            self._deliver(message.to, control.Carried(visit.name, message.data, arrival.process))

    def answer(self, evaluator: str, message: control.Carry) -> None:
        """A message of an evaluator; dropped if the client has left."""
        visit = self._visits.get(message.visit)
        if visit is not None and visit.name == message.to:
            if waiting := visit.open.get(evaluator):
                waiting.popleft()
            self._send(message.visit, control.Carried(evaluator, message.data))

    def left(self, process: bytes) -> None:
        """A process is gone. Evaluators forget it, so that it counts no more among the visits of
        its client."""
        visit = self._visits.pop(process, None)
        if visit is not None and self._serving is not None:
            for evaluator in visit.open:
                self._deliver(evaluator, control.Carried(visit.name, LEFT, process))

    def close(self, message: control.Aborted) -> None:
        """The run is over."""
        self._tell(message)

    def _tell(self, message: FromCoordinator) -> None:
        for process in tuple(self._visits):
            self._send(process, message)

    def _greet(self, arrival: Arrival, message: control.FromNode) -> None:
        if not isinstance(message, control.Hello) or message.name != arrival.name:
            self._end(arrival, "control")
        elif message.version != CONTRACT_VERSION:
            self._end(arrival, "version")
        elif not self._pace.admits(arrival.name):
            self._end(arrival, BUSY)
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
        if not self._server.has_room(process):
            # Whoever asks and does not read would fill the memory here.
            log.warning("a client that does not read its answers is not served any more")
            self.left(process)
            self._server.forget(process)
        elif not self._server.send(process, control.encode(message)):
            log.info("a client left before a %s reached it", type(message).__name__)
