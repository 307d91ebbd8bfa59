"""A client and a server of encrypted questions in one process, without sockets."""

from collections import deque
from collections.abc import Sequence
from functools import cache

import numpy as np

from mpc_train.errors import QueryRefusedError
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.evaluation import Weights
from mpc_train.homomorphic.keys import KeyPair
from mpc_train.homomorphic.messages import Parts
from mpc_train.homomorphic.seal import Seal
from mpc_train.homomorphic.service import Served, Service
from mpc_train.results.predicting import Predictor


@cache
def seal() -> Seal:
    return Seal()


@cache
def pair(name: str = "ann") -> KeyPair:
    return KeyPair.generate(seal())


class Counted:
    """A quota in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}

    def take(self, client: str, model: str, rows: int, most: int) -> None:
        total = self.rows.get((client, model), 0) + rows
        if total > most:
            raise QueryRefusedError("the quota of today is spent", "quota")
        self.rows[client, model] = total


class Desk:
    """A service, what it wrote down, and a clock that tests move."""

    def __init__(self, models: dict[str, Served]) -> None:
        self.now = 0.0
        self.written: list[tuple[bool, str, str, str]] = []
        self.quota = Counted()
        self.service = Service(
            models, self.quota, lambda *said: self.written.append(said), lambda: self.now
        )

    def line(self, client: str, route: bytes = b"1") -> "InnerLine":
        return InnerLine(self.service, client, route)


class InnerLine:
    """A client's connection to a service in the same process."""

    server = "company"

    def __init__(self, service: Service, client: str, route: bytes) -> None:
        self._service, self._client, self._route = service, client, route
        self.waiting: deque[Parts] = deque()
        self.seen: list[Parts] = []

    def send(self, parts: Parts) -> None:
        self.seen.append(parts)
        self.waiting += self._service.on_message(self._route, self._client, parts)

    def receive(self) -> Sequence[bytes]:
        return self.waiting.popleft()


def served(
    predictor: Predictor, name: str = "risk", clients: Sequence[str] = ("ann",), rows: int = 40960
) -> Served:
    from mpc_train.commands.serving.serve import folded_weights

    description = Description.of(name, predictor.job)
    weights = Weights(seal(), *folded_weights(description, predictor))
    return Served(description, weights, frozenset(clients), rows)


def plain_served(inputs: int, outputs: int = 1) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Random weights, and what they were encoded from."""
    generator = np.random.default_rng(inputs)
    weights = generator.normal(size=(outputs, inputs))
    intercepts = generator.normal(size=outputs)
    return Weights(seal(), weights, intercepts), weights, intercepts
