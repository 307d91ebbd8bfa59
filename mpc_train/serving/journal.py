"""Questions as entries of a node's audit log: one for all of a client that came within a second.

An entry for each would cost more than its question, and whoever asks what it may not could fill the
disk. A crash loses the entries of the last second, whose rows still count (`serving.allowance`).
An entry says who, which model, how many questions, and how many rows they were padded to; never a
value. What a client calls a model that there is not is no model, and stands in no entry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Lock

from parties.audit.entries import Kind, Value

EVERY_S = 1.0
MAX_KEYS = 1024
"""More different entries than this are not held back."""

_Key = tuple[Kind, str, str, str]
"""Kind, client, digest of the model, code."""


class Journal:
    """For several threads.

    append: writes an entry, as `AuditLog.append`; its errors are passed on, and what it did not
    write is tried again with the next. clock: seconds.
    """

    def __init__(
        self,
        append: Callable[[Kind, Mapping[str, Value]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._append, self._clock, self._lock = append, clock, Lock()
        self._waiting: dict[_Key, tuple[int, int]] = {}
        self._since = 0.0

    def answered(self, client: str, model: str, rows: int) -> None:
        """A question is about to be answered. rows: their padded number."""
        self._note((Kind.QUERY_ANSWERED, client, model, ""), rows)

    def refused(self, client: str, model: str, code: str, rows: int = 0) -> None:
        """A question is refused, with a word of `offered.REFUSALS`. model: its digest; empty for
        one that there is not."""
        self._note((Kind.QUERY_REFUSED, client, model, code), rows)

    def releasing(self, model: str, rows: int, epsilon: str) -> None:
        """Counts of a window of rows are about to leave with noise: written at once."""
        with self._lock:
            self._write()
            fields: dict[str, Value] = {"model": model, "rows": rows, "epsilon": epsilon}
            self._append(Kind.COUNTS_RELEASED, fields)

    def write_if_due(self) -> None:
        """Write what has waited for a second. To be called now and then, also when nobody asks."""
        with self._lock:
            if self._waiting and self._clock() - self._since >= EVERY_S:
                self._write()

    def write(self) -> None:
        """Write all that waits: before the log is closed."""
        with self._lock:
            self._write()

    def _note(self, key: _Key, rows: int) -> None:
        with self._lock:
            if not self._waiting:
                self._since = self._clock()
            questions, total = self._waiting.get(key, (0, 0))
            self._waiting[key] = questions + 1, total + rows
            if self._clock() - self._since >= EVERY_S or len(self._waiting) >= MAX_KEYS:
                self._write()

    def _write(self) -> None:
        while self._waiting:
            key = next(iter(self._waiting))
            kind, client, model, code = key
            questions, rows = self._waiting[key]
            fields: dict[str, Value] = {"client": client, "model": model, "rows": rows}
            if code:
                fields["code"] = code
            self._append(kind, {**fields, "questions": questions})
            del self._waiting[key]
