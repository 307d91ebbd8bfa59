"""How often each of several clients may do what costs a node work, so that none harms the others.

Each has a bucket of its own that fills with time, and all of them one together. Who has not come
for a while does not need the common one: however many others there are, it is let in at once.
"""

import time
from collections.abc import Callable

EACH = (16.0, 1.0)
"""Of one client: at once, and a second."""
ALL = (64.0, 16.0)
"""Of all together, without those that come seldom."""
SELDOM_S = 10.0


class Pace:
    """For one thread. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._each: dict[str, tuple[float, float]] = {}
        self._all = (ALL[0], clock())
        self._last: dict[str, float] = {}

    def admits(self, name: str) -> bool:
        """Whether `name` may now. name: of a closed list, since each is remembered."""
        now = self._clock()
        mine = _filled(self._each.get(name, (EACH[0], now)), EACH, now)
        every = _filled(self._all, ALL, now)
        seldom = now - self._last.get(name, -SELDOM_S) >= SELDOM_S
        if mine < 1 or (every < 1 and not seldom):
            return False
        self._last[name] = now
        self._each[name] = mine - 1, now
        self._all = (every if seldom else every - 1), now
        return True


def _filled(bucket: tuple[float, float], most: tuple[float, float], now: float) -> float:
    level, since = bucket
    return min(most[0], level + (now - since) * most[1])
