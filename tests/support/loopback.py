"""All roles of a computation in one process, a thread each, over in-memory queues.

`InsecureLoopback` carries frames in the clear and derives stream roots from a test's seed: it is
for tests of the arithmetic and cannot be reached from any command.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from protocols.errors import PeerTimeoutError
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from protocols.shares.inputs import from_evaluator
from protocols.shares.masked import Masked
from tests.support.patience import PATIENCE_S

DEALER = "dealer"
Program = Callable[[Role], Any]


class InsecureLoopback:
    """Frames between named nodes of one process; keeps the transcript of each."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], queue.Queue] = {}
        self.transcript: dict[tuple[str, str], list[tuple[bytes, bytes]]] = {}
        self.lock = threading.Lock()

    def queue(self, sender: str, receiver: str) -> queue.Queue:
        with self.lock:
            self.transcript.setdefault((sender, receiver), [])
            return self.queues.setdefault((sender, receiver), queue.Queue())

    def endpoint(self, name: str) -> Endpoint:
        return Endpoint(self, name)


class Endpoint:
    def __init__(self, net: InsecureLoopback, name: str) -> None:
        self.net, self.name = net, name
        self.bytes_sent = self.bytes_received = 0

    def send(self, peer: str, label: bytes, payload: bytes | bytearray | memoryview) -> None:
        frame = (bytes(label), bytes(payload))
        self.bytes_sent += len(frame[0]) + len(frame[1])
        self.net.queue(self.name, peer).put(frame)
        self.net.transcript[self.name, peer].append(frame)

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        try:
            label, payload = self.net.queue(peer, self.name).get(timeout=PATIENCE_S)
        except queue.Empty:
            raise PeerTimeoutError(f"{self.name}: nothing from {peer}") from None
        assert len(payload) <= max_bytes
        self.bytes_received += len(label) + len(payload)
        return label, memoryview(bytearray(payload))  # the caller may write into it


def insecure_root(seed: int, index: int) -> bytes:
    return hashlib.sha256(f"test {seed} {index}".encode()).digest()


def make_role(net: InsecureLoopback, evaluators: int, index: int | None, seed: int = 1) -> Role:
    names = [f"p{i}" for i in range(evaluators)]
    if index is None:
        streams = [Stream(insecure_root(seed, i)) for i in range(evaluators)]
        return Dealer(
            net.endpoint(DEALER),
            names=names,
            streams=streams,
            entropy=lambda count: insecure_root(seed, -1 - evaluators)[:count],
        )
    return Evaluator(
        net.endpoint(names[index]),
        index=index,
        names=names,
        dealer=DEALER,
        stream=Stream(insecure_root(seed, index)),
        entropy=lambda count: insecure_root(seed, -1 - index)[:count],
    )


def run_roles(
    program: Program, evaluators: int, seed: int = 1, net: InsecureLoopback | None = None
) -> list[Any]:
    """Results of `program(role)` at evaluators 0 … N−1 and, last, the dealer."""
    net = net or InsecureLoopback()
    roles = [make_role(net, evaluators, i, seed) for i in [*range(evaluators), None]]
    results: list[Any] = [None] * len(roles)
    errors: list[BaseException] = []

    def work(place: int, role: Role) -> None:
        try:
            role.begin_step(0)
            results[place] = program(role)
            role.finish()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(roles)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    return results


def secret(role: Role, value: np.ndarray, owner: int = 0) -> Masked:
    """Input of a test value: every role is given it, only the owner uses it."""
    words = np.asarray(value, np.int64)
    return from_evaluator(role, owner, words.shape, words if role.index == owner else None)


def shares_of(x: Masked) -> tuple[np.ndarray | None, np.ndarray]:
    """(Δ, [λ]_i) at an evaluator, (None, λ) at the dealer."""
    lam = np.zeros(x.shape, np.int64) if x.lam is None else np.array(x.lam)
    if x.role.is_dealer:
        return None, lam
    return np.array(x.delta.get()), lam


def combine_masked(results: Sequence[Any]) -> np.ndarray:
    """The secret of what `shares_of` returned at all roles, after checking that they agree."""
    *evaluators, dealer = results
    total = sum(lam for _, lam in evaluators)
    for delta, _ in evaluators[1:]:
        np.testing.assert_array_equal(delta, evaluators[0][0])
    np.testing.assert_array_equal(total, dealer[1])
    return evaluators[0][0] - total
