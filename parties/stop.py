"""One flag per node that ends its current work, with the reason.

Set from any thread (an abort that arrives, a signal, the loss of the coordinator), read by the
compute thread each time it sends or waits. The first reason is kept; later ones are consequences.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from protocols.errors import InterruptedRunError


class StopFlag:
    """The flag: why this node must stop, if it must."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self.reason: Exception | None = None

    def set(self, reason: Exception) -> None:
        """Ask the node to stop because of `reason`; only the first call counts."""
        with self._lock:
            if self.reason is None:
                self.reason = reason
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """True as soon as the flag is set, False after `timeout_s`."""
        return self._event.wait(timeout_s)

    def check(self, doing: str) -> None:
        """Raise InterruptedRunError if the node must stop; its cause is the reason."""
        if self.reason is not None:
            raise InterruptedRunError(f"stopped while {doing}: {self.reason}") from self.reason


def _at_once() -> bool:
    return False


@contextmanager
def sigterm_interrupts(defers: Callable[[], bool] = _at_once) -> Iterator[None]:
    """Inside this context SIGTERM raises KeyboardInterrupt, as Ctrl-C does; its argument is the
    signal.

    defers: asked at each signal; True: nothing is raised, because the node will stop by itself.
    Only the main thread can install this; in other threads it does nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not defers():
            raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asking = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
