"""All roles of a computation in one process, exactly one of them running at any time.

Each role has a thread, but a thread runs only while it holds the baton, and hands it on where it
has to wait for another. CrypTen keeps process-wide state (the attached role, whether autograd
records); the baton saves and restores it, so that several parties share one process without
seeing each other's. Runs are deterministic.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from protocols.crypten_tensor import tensor as crypten_backend
from protocols.crypten_tensor.importing import crypten
from protocols.errors import FrameError, PeerLostError
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from tests.support.loopback import (
    Endpoint,
    InsecureLoopback,
    combine_masked,
    make_role,
    shares_of,
)

TIMEOUT_S = 100


class Stopped(BaseException):
    """Another role has failed; this one cannot go on."""


class Baton:
    """Passes the right to run round the threads of one computation."""

    def __init__(self) -> None:
        self._turns: list[threading.Semaphore] = []
        self._alive: list[bool] = []
        self._idle = 0
        self._place = threading.local()
        self.failure: BaseException | None = None

    def run(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of all `works`; the first error that one of them raised, if any."""
        results: list[Any] = [None] * len(works)
        self._turns = [threading.Semaphore(0) for _ in works]
        self._alive = [True] * len(works)
        clean = _save()

        def body(place: int) -> None:
            self._place.index = place
            self._turns[place].acquire()
            _restore(clean)
            try:
                if self.failure is None:
                    results[place] = works[place]()
            except Stopped:
                pass
            except BaseException as error:
                self.failure = self.failure or error
            finally:
                self._alive[place] = False
                self._idle = 0
                self._hand_on(place)

        threads = [threading.Thread(target=body, args=(i,), daemon=True) for i in range(len(works))]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a role hangs"
        _restore(clean)
        if self.failure is not None:
            raise self.failure
        return results

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Let the others run until `ready`; raises PeerLostError when nobody can go on."""
        place = self._place.index
        while not ready():
            self._idle += 1
            if self._idle > 2 * len(self._turns):
                raise PeerLostError(f"role {place} waits for something that nobody will send")
            state = _save()
            self._hand_on(place)
            self._turns[place].acquire()
            _restore(state)
            if self.failure is not None:
                raise Stopped
        self._idle = 0

    def _hand_on(self, place: int) -> None:
        count = len(self._turns)
        for step in range(1, count + 1):
            following = (place + step) % count
            if self._alive[following]:
                self._turns[following].release()
                return


def _save() -> tuple[Any, bool]:
    return crypten_backend._runtime, crypten.CrypTensor.AUTOGRAD_ENABLED


def _restore(state: tuple[Any, bool]) -> None:
    crypten_backend._runtime, crypten.CrypTensor.AUTOGRAD_ENABLED = state


class LockstepLoopback(InsecureLoopback):
    """The in-memory network of `loopback`, with the baton handed on at every wait."""

    def __init__(self) -> None:
        super().__init__()
        self.baton = Baton()

    def endpoint(self, name: str) -> Endpoint:
        return LockstepEndpoint(self, name)


class LockstepEndpoint(Endpoint):
    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        assert isinstance(self.net, LockstepLoopback)
        incoming: queue.Queue[Any] = self.net.queue(peer, self.name)
        self.net.baton.wait_until(lambda: not incoming.empty())
        if len(incoming.queue[0][1]) > max_bytes:
            raise FrameError(f"{peer}: a frame of more than {max_bytes} bytes")
        return super().receive(peer, max_bytes)


def run_lockstep(
    program: Callable[[Role], Any],
    evaluators: int,
    seed: int = 1,
    net: LockstepLoopback | None = None,
) -> list[Any]:
    """As `loopback.run_roles`, one role at a time; roles are closed at the end."""
    net = net or LockstepLoopback()
    roles = [make_role(net, evaluators, i, seed) for i in [*range(evaluators), None]]

    def work(role: Role) -> Any:
        role.begin_step(0)
        result = program(role)
        role.close()
        return result

    return net.baton.run([partial(work, role) for role in roles])


def compute(program: Callable[[Role], Masked], evaluators: int = 2, seed: int = 1) -> Any:
    """The plaintext of what `program` returns, after a check that all roles agree on it."""
    return combine_masked(run_lockstep(lambda role: shares_of(program(role)), evaluators, seed))
