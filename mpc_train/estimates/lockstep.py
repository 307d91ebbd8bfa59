"""All nodes of a run in one process, exactly one of them running at any time.

Each node has a thread, but a thread runs only while it holds the baton, and hands it on where it
has to wait for another. CrypTen keeps process-wide state (the attached role, whether autograd
records); the baton saves and restores it, so that several nodes share one process without
seeing each other's. Runs are deterministic.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from protocols.crypten_tensor.tensor import attached, crypten, reattach
from protocols.errors import PeerLostError


class Stopped(BaseException):
    """Another node has failed; this one cannot go on."""


class Baton:
    """Passes the right to run round the threads of one computation."""

    def __init__(self) -> None:
        self._turns: list[threading.Semaphore] = []
        self._alive: list[bool] = []
        self._idle = 0
        self._place = threading.local()
        self.failure: BaseException | None = None

    def run(self, works: Sequence[Callable[[], Any]], timeout_s: float | None = None) -> list[Any]:
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
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError("a node of a computation in one process hangs")
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
                raise PeerLostError(f"node {place} waits for something that nobody will send")
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
    return attached(), crypten.CrypTensor.AUTOGRAD_ENABLED


def _restore(state: tuple[Any, bool]) -> None:
    runtime, crypten.CrypTensor.AUTOGRAD_ENABLED = state
    reattach(runtime)
