"""How a service does at one evaluator, for those who watch it: counts and times, of no client and
no model.

A time is that from hearing a question, before it waits for others, to its answer leaving this
evaluator.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

NEWS_S = 0.5
KEPT_TIMES = 1000
"""The newest times, of which the median and the 99th percentile are told."""


class Figures:
    """Counts of this session. clock: seconds, that of `Heard.at`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=KEPT_TIMES)
        self._told: Mapping[str, float] | None = None
        self._next = 0.0
        self.questions = self.rows = self.batches = self.refused = 0

    def answered(self, rows: int, heard_at: float) -> None:
        """An answer leaves. rows: padded."""
        self.questions += 1
        self.rows += rows
        self._times.append(self._clock() - heard_at)

    def news(self, waiting: int, rounds: int) -> Mapping[str, float] | None:
        """What has changed, at most every NEWS_S; None if nothing has. waiting: questions that were
        heard and not answered."""
        now = self._clock()
        said = {
            "questions": self.questions,
            "rows": self.rows,
            "batches": self.batches,
            "refused": self.refused,
            "waiting": waiting,
            "rounds": rounds,
        }
        if self._told == said or (self._told is not None and now < self._next):
            return None
        self._told, self._next = said, now + NEWS_S
        return said | self._percentiles()

    def _percentiles(self) -> dict[str, float]:
        """In milliseconds, by nearest rank; nothing before the first answer."""
        ordered = sorted(self._times)
        if not ordered:
            return {}
        last = len(ordered) - 1
        return {
            "median_ms": round(1e3 * ordered[last // 2], 3),
            "slow_ms": round(1e3 * ordered[-(-99 * len(ordered) // 100) - 1], 3),
        }
