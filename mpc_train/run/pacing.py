"""How often the progress of a run is reported: often enough to see that it is alive.

A log gets a line for each twentieth of a stage or after each minute, whichever comes first, but not
two within a second. Machines get one progress event per second, over all nodes together; nodes take
turns. The first and the last event of a stage are always passed on.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

LINE_SHARE = 0.05
LINE_INTERVAL_S, MIN_LINE_INTERVAL_S = 60.0, 1.0
EVENT_INTERVAL_S = 1.0


class LinePace:
    """When the next line of a log is due."""

    def __init__(self) -> None:
        self._stage = ""
        self._part = 0.0
        self._last = 0.0

    def begin(self, stage: str) -> None:
        """A new stage begins; its announcement counts as its first line."""
        self._stage, self._part, self._last = stage, 0.0, time.monotonic()

    def due(self, stage: str, share: float) -> bool:
        """Whether a line is due when this part of a stage is done, from 0 to 1; if so, the next one
        is timed from here."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._part = stage, 0.0
        waited = now - self._last
        more = share - self._part >= LINE_SHARE - 1e-9 and waited >= MIN_LINE_INTERVAL_S
        if not more and waited < LINE_INTERVAL_S:
            return False
        self._part, self._last = share, now
        return True

    def again(self) -> None:
        """Another line was printed: a new minute begins."""
        self._last = time.monotonic()

    def silent_s(self) -> float:
        """How long ago the last line was."""
        return time.monotonic() - self._last


_ENDS = (("step", "steps"), ("rows", "of_rows"))


class EventPace:
    """Which progress events are passed on to machines. May be asked from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        self._stages: set[tuple[str, object]] = set()
        self._ended: set[tuple[str, object]] = set()

    def due(self, node: str, news: Mapping[str, Any]) -> bool:
        """Whether a node's event is passed on now. news: its `phase`, and how much of what is
        done."""
        with self._lock:
            return self._due(node, news)

    def _due(self, node: str, news: Mapping[str, Any]) -> bool:
        stage, now = (node, news.get("phase")), time.monotonic()
        ends = any(done in news and news[done] == news.get(of) for done, of in _ENDS)
        always = stage not in self._stages or (ends and stage not in self._ended)
        last, mine = max(self._told.values(), default=0.0), self._told.get(node, 0.0)
        self._told.setdefault(node, 0.0)
        turn = now - mine >= EVENT_INTERVAL_S * len(self._told)
        if not always and not (now - last >= EVENT_INTERVAL_S and turn):
            return False
        self._stages.add(stage)
        if ends:
            self._ended.add(stage)
        self._told[node] = now
        return True
