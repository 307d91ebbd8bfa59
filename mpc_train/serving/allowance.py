"""How many rows each client may still ask of each model today (UTC), counted on a node's own disk.

The file says how many rows are reserved, and no row is given out before it is: a crash, a restart
or a power cut never gives rows again. Rows are reserved some ahead, so that most questions write
nothing; those that were reserved and not used are lost if the process does not end in order, at
most a SHARE of what is allowed. A clock that goes back does not begin a day anew: the latest day
that was seen goes on until the clock has reached the next one.

A question that was counted and not answered, because its session was lost, may be asked once more
under the same name and is not counted again. Such names are on the disk only between an end in
order and the next start: after a crash the question counts again, which never gives rows again.

A count is of the evaluator that keeps it, and of one process: two on one file would each give out
what the other has.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Lock
from types import MappingProxyType
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


class _Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is on the disk: rows by client and model."""

    day: date
    rows: dict[str, dict[str, Annotated[int, Meta(ge=0)]]]
    unanswered: tuple[tuple[str, str, str, int], ...] = ()
    """Client, name in hexadecimal, model, rows."""


def _today() -> date:
    return datetime.now(UTC).date()


Key = tuple[str, str]

MOST_UNANSWERED = 1024
"""Names of one client; older ones are forgotten, and their questions count again."""


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
        self._asked: dict[tuple[str, bytes], tuple[str, int]] = {}
        """By client and name, the model and the rows of what was counted and is being answered."""
        self._unanswered: dict[tuple[str, bytes], tuple[str, int]] = {}
        """The same of what will not be answered unless it is asked again."""
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
            if found.unanswered:
                # No name is on the disk while it may be used: a crash would bring it back.
                with contextlib.suppress(QueryRefusedError):
                    self._write(dict(self._reserved))
                    self._unanswered = {
                        (client, bytes.fromhex(name)): (model, rows)
                        for client, name, model, rows in found.unanswered
                    }
        self._spent = dict(self._reserved)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, client: str, model: str, rows: int, most: int, name: bytes = b"") -> Taken:
        """Count `rows` more of this client and model today, durably, if that is at most `most`.
        Nothing for a name of which `lose` or `lose_all` has said that it was not answered.

        Raises QueryRefusedError: "quota" if it is more, "unavailable" if they cannot be counted.
        """
        key = client, model
        with self._lock:
            self._begin_day()
            if name and self._unanswered.get((client, name)) == (model, rows):
                self._asked[client, name] = self._unanswered.pop((client, name))
                return Taken(self._day, key, 0)
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
            if name:
                self._asked[client, name] = model, rows
            return Taken(self._day, key, rows)

    def left(self, client: str, model: str, most: int) -> int:
        """How many of `most` rows this client may still ask of a model today."""
        with self._lock:
            self._begin_day()
            return max(0, most - self._spent.get((client, model), 0))

    def answered(self, client: str, name: bytes) -> None:
        """A question is about to be answered: under its name nothing is free any more."""
        with self._lock:
            self._asked.pop((client, name), None)
            self._unanswered.pop((client, name), None)

    def lose(self, client: str, name: bytes) -> None:
        """A question that was counted will not be answered."""
        with self._lock:
            if (found := self._asked.pop((client, name), None)) is not None:
                self._unanswered[client, name] = found
                of_client = [each for each in self._unanswered if each[0] == client]
                for oldest in of_client[:-MOST_UNANSWERED]:
                    del self._unanswered[oldest]

    def lose_all(self) -> None:
        """None that was counted and not answered will be: the session is over."""
        for client, name in tuple(self._asked):
            self.lose(client, name)

    def refund(self, taken: Taken) -> None:
        """Give rows back whose question was not computed; only once, and only on their day."""
        with self._lock:
            rows, taken.rows = taken.rows, 0
            if taken.day == self._day:
                self._spent[taken.key] -= rows

    def close(self) -> None:
        """Give back what was reserved and not used. Without this, as after a crash, it is spent."""
        self.lose_all()
        with self._lock:
            if self._spent != self._reserved or self._unanswered:
                self._write(dict(self._spent), self._unanswered)

    def _begin_day(self) -> None:
        today = self._today()
        if today > self._day:
            # Nothing of the new day is on the disk yet, and nothing is given out before it is.
            self._day, self._spent, self._reserved = today, {}, {}
            self._asked, self._unanswered = {}, {}

    def _write(
        self,
        reserved: dict[Key, int],
        unanswered: Mapping[tuple[str, bytes], tuple[str, int]] = MappingProxyType({}),
    ) -> None:
        rows: dict[str, dict[str, int]] = {}
        for (client, model), count in sorted(reserved.items()):
            rows.setdefault(client, {})[model] = count
        names = tuple(
            (client, name.hex(), model, count)
            for (client, name), (model, count) in unanswered.items()
        )
        data = msgspec.json.encode(_Reserved(self._day, rows, names))
        try:
            write_atomic(self._path, data)
        except OSError as error:
            what = f"{self._path}: rows cannot be counted ({error.strerror})"
            log.error("%s; no question is answered until they can", what)
            raise QueryRefusedError(what, "unavailable") from error
        self._reserved = reserved
