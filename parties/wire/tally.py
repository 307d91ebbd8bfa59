"""How often somebody did what nobody may: kept by name, logged ever more rarely.

A peer that knocks, floods or repeats itself must not fill a disk with our own log: the first time
is worth a line, then the second, the fourth, the eighth …
"""

from collections import Counter


class Tally:
    """Counts by name. Names come from keys, not from messages: there are as many as cards."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> int:
        """Count once more; the number if it is worth a line in the log, else 0."""
        self._counts[name] += 1
        count = self._counts[name]
        return count if count.bit_count() == 1 else 0

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
