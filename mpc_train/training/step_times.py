"""How long the steps of a training took, in memory that does not grow with their number."""

import statistics

MAX_KEPT = 4096


class StepTimes:
    """Counts and adds up all steps; keeps evenly spaced ones for the median, at most MAX_KEPT."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self._kept: list[float] = []
        self._every = 1

    def add(self, seconds: float) -> None:
        """One more step has taken so long."""
        if self.count % self._every == 0:
            if len(self._kept) == MAX_KEPT:
                self._every *= 2
                del self._kept[1::2]
            if self.count % self._every == 0:
                self._kept.append(seconds)
        self.count += 1
        self.total_s += seconds

    def median_s(self) -> float:
        """Of the steps that were kept: all of them in a short training. 0 before the first one."""
        return statistics.median(self._kept or [0.0])
