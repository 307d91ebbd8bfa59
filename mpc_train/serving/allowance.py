"""How many rows each client may still ask of each model today (UTC), counted on a node's own disk.

The file says how many rows are reserved, and no row is given out before it is: a crash, a restart
or a power cut never gives rows again. Rows are reserved some ahead, so that most questions write
nothing; those that were reserved and not used are lost if the process does not end in order, at
most a SHARE of what is allowed. A clock that goes back does not begin a day anew: the latest day
that was seen goes on until the clock has reached the next one.

A count is of the evaluator that keeps it, and of one process: two on one file would each give out
what the other has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from mpc_train.errors import ConfigError, QueryRefusedError
from parties.files import read_private, write_atomic

log = logging.getLogger(__name__)

MAX_BYTES = 16 << 20
SHARE = 16
"""A write reserves up to a sixteenth of the allowed rows ahead: some 16 writes a day for a
client and a model, however many its questions."""


class _Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on the disk: rows by client and model."""

    day: date
    rows: dict[str, dict[str, Annotated[int, Meta(ge=0)]]]


def _today() -> date:
    return datetime.now(UTC).date()


Key = tuple[str, str]


@dataclass(slots=True)
class Taken:
    """Rows that were counted, which can be given back once."""

    day: date
    key: Key
    rows: int


class Allowance:
    """The counts in `path`. For several threads.

    today: the present day, UTC. Raises ConfigError for a file that cannot be read: the operator
    decides whether to remove it.
    """

    def __init__(self, path: Path, today: Callable[[], date] = _today) -> None:
        self._path, self._today, self._lock = path, today, Lock()
        self._day = date.min
        self._reserved: dict[Key, int] = {}
        if path.exists():
            try:
                found = msgspec.json.decode(read_private(path, MAX_BYTES), type=_Reserved)
            except (OSError, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}: the rows counted today cannot be read ({error}); remove the file to "
                    "count from 0"
                ) from error
            self._day = found.day
            self._reserved = {
                (client, model): rows
                for client, models in found.rows.items()
                for model, rows in models.items()
            }
        self._spent = dict(self._reserved)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, client: str, model: str, rows: int, most: int) -> Taken:
        """Count `rows` more of this client and model today, durably, if that is at most `most`.

        Raises QueryRefusedError: "quota" if it is more, "unavailable" if they cannot be counted.
        """
        key = client, model
        with self._lock:
            self._begin_day()
            total = self._spent.get(key, 0) + rows
            if total > most:
                raise QueryRefusedError(
                    f"{client} may ask {most} rows on one day, and has asked for "
                    f"{total - rows} and now {rows} on {self._day} (UTC)",
                    "quota",
                )
            if total > self._reserved.get(key, 0):
                ahead = most // SHARE // rows * rows if rows else 0
                self._write({**self._reserved, key: min(most, total + ahead)})
            self._spent[key] = total
            return Taken(self._day, key, rows)

    def refund(self, taken: Taken) -> None:
        """Give rows back whose question was not computed; only once, and only on their day."""
        with self._lock:
            rows, taken.rows = taken.rows, 0
            if taken.day == self._day:
                self._spent[taken.key] -= rows

    def close(self) -> None:
        """Give back what was reserved and not used. Without this, as after a crash, it is spent."""
        with self._lock:
            if self._spent != self._reserved:
                self._write(dict(self._spent))

    def _begin_day(self) -> None:
        today = self._today()
        if today > self._day:
            # Nothing of the new day is on the disk yet, and nothing is given out before it is.
            self._day, self._spent, self._reserved = today, {}, {}

    def _write(self, reserved: dict[Key, int]) -> None:
        rows: dict[str, dict[str, int]] = {}
        for (client, model), count in sorted(reserved.items()):
            rows.setdefault(client, {})[model] = count
        data = msgspec.json.encode(_Reserved(self._day, rows))
        try:
            write_atomic(self._path, data)
        except OSError as error:
            what = f"{self._path}: rows cannot be counted ({error.strerror})"
            log.error("%s; no question is answered until they can", what)
            raise QueryRefusedError(what, "unavailable") from error
        self._reserved = reserved
