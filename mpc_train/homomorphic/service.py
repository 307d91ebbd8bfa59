"""What the server does with messages: who may ask what, how much, and what is written down.

No sockets and no files: `commands.serving` connects it. A client is known by the name that its
connection has proved. Nothing that one client sends concerns another: each has at most one
request, which ends with its first error, and all together have at most `MAX_REQUESTS`. A request
takes `outputs` + 2 ciphertexts of memory, and the time of a message is bounded by its fixed size
times the model's outputs.

Every request is written down before it is admitted and before its answers leave, without a value:
who, which model, and 4,096 rows, since the server does not know how many of the slots are used.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpc_train.errors import QueryError, QueryRefusedError
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.evaluation import Evaluation, Weights
from mpc_train.homomorphic.messages import (
    Answer,
    Ask,
    Give,
    Go,
    Got,
    Parts,
    Refused,
    Show,
    Shown,
    encode,
    read_at_server,
)
from mpc_train.homomorphic.parameters import SLOTS, check_parameters

MAX_REQUESTS = 16
PATIENCE_S = 60.0
"""How long a request may be silent before it is given up."""


@dataclass(frozen=True)
class Served:
    """A model and its policy. rows_a_day: of each client, counted as `SLOTS` for each request."""

    description: Description
    weights: Weights
    clients: Collection[str]
    rows_a_day: int


class Quota(Protocol):
    """Counts the rows of today (UTC), durably."""

    def take(self, client: str, model: str, rows: int, most: int) -> object:
        """Count `rows` more if that is at most `most` today, or raise QueryRefusedError."""


Record = Callable[[bool, str, str, str], None]
"""Writes down a request, durably: whether it is answered, client, model, and the code if it is
refused. Not for what never named a model."""


@dataclass
class _Request:
    client: str
    model: str
    evaluation: Evaluation
    last: float


class Service:
    """All requests of one server, for one thread. A route stands for a connection."""

    def __init__(
        self,
        models: dict[str, Served],
        quota: Quota,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._quota, self._record, self._clock = models, quota, record, clock
        self._requests: dict[bytes, _Request] = {}
        self.answered = 0

    def on_message(self, route: bytes, client: str, parts: Sequence[bytes]) -> list[Parts]:
        """The messages that answer this one, in order. Errors of the record are passed on."""
        try:
            message, blob = read_at_server(parts)
            if isinstance(message, Show):
                served = self._served(client, message.model)
                return [encode(Shown(), served.description.data)]
            if isinstance(message, Ask):
                return self._begin(route, client, message, blob)
            return self._take(route, message, blob)
        except QueryError as error:
            request = self._requests.pop(route, None)
            if request is not None:
                self._record(False, request.client, request.model, error.code)
            return [encode(Refused(error.code))]

    def _served(self, client: str, model: str) -> Served:
        served = self._models.get(model)
        # The same answer for a model that is there: who may not ask does not learn its name.
        if served is None or client not in served.clients:
            raise QueryRefusedError(f"{client} may not ask this model", "unknown-model")
        return served

    def _begin(self, route: bytes, client: str, ask: Ask, public: bytes) -> list[Parts]:
        """1. One request for each connection and client, and so many in all.
        2. The model is there, for this client, and is the one that it knows.
        3. The parameters are secure and ours, and the key is one.
        4. The quota allows it; then it is counted, whether the client stays or leaves.
        """
        if route in self._requests:  # 1
            raise QueryError("a request begins before another has ended", "order")
        self.forget_idle()
        served = self._served(client, ask.model)  # 2
        try:
            busy = any(each.client == client for each in self._requests.values())
            if busy or len(self._requests) >= MAX_REQUESTS:
                raise QueryRefusedError("too many requests at once", "busy")
            if ask.description != served.description.digest:
                raise QueryRefusedError("the client knows another description", "changed")
            check_parameters(ask.parameters)  # 3
            evaluation = Evaluation(served.weights, public)
            self._quota.take(client, ask.model, SLOTS, served.rows_a_day)  # 4
        except QueryError as error:
            self._record(False, client, ask.model, error.code)
            raise
        self._requests[route] = _Request(client, ask.model, evaluation, self._clock())
        return [encode(Go())]

    def _take(self, route: bytes, give: Give, blob: bytes) -> list[Parts]:
        request = self._requests.get(route)
        if request is None:
            raise QueryError("a ciphertext without a request", "order")
        request.last = self._clock()
        evaluation = request.evaluation
        evaluation.take(give.column, blob)
        replies = [encode(Got(give.column))]
        if evaluation.taken == evaluation.weights.columns:
            answers = evaluation.answers()
            self._record(True, request.client, request.model, "")
            del self._requests[route]
            self.answered += 1
            replies += [encode(Answer(place), each) for place, each in enumerate(answers)]
        return replies

    def on_lost(self, route: bytes) -> None:
        """The connection is gone, and its request with it."""
        self._requests.pop(route, None)

    def forget_idle(self) -> None:
        """Give up requests that were silent for too long."""
        now = self._clock()
        for route, request in list(self._requests.items()):
            if now - request.last > PATIENCE_S:
                del self._requests[route]
