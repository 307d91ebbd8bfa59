"""Counts of forbidden actions, by name, logged ever more rarely.

A peer that knocks, floods or repeats itself must not fill a disk with our log: only the first,
second, fourth, eighth … time is logged.
"""

from collections import Counter


class Tally:
    """Counts by name. Names come from keys, not from messages, so there are only as many as
    cards."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> int:
        """Count once more; return the number if it should be logged, otherwise 0."""
        self._counts[name] += 1
        count = self._counts[name]
        return count if count.bit_count() == 1 else 0

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
