"""An evaluator's desk: counts questions before they are computed, and keeps account of them.

A client whose connection was lost sends a question again under the same name. If it was answered
before, it gets the same answer once more, whatever the repetition asks: the same words, sealed
under the keys of its present visit, so that no mask meets a second value and the repetition says
nothing new about the model. Answers are kept in memory, the newest of each client.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

from mpc_train.errors import QueryRefusedError
from mpc_train.serving.allowance import Allowance
from mpc_train.serving.journal import Journal
from mpc_train.serving.monitoring.record import Counts, Record
from mpc_train.serving.offered import Offered
from protocols.arrays import Words

MOST_KEPT, MOST_KEPT_WORDS = 64, 1 << 19
"""Answers of one client that are kept, and the words in them (4 MiB)."""


@dataclass(frozen=True, repr=False)
class Kept:
    """This evaluator's summands of an answer, int64[rows, answers]. batch: names the unit that made
    them, the same at all evaluators; summands of two units are no answer together."""

    model: str
    batch: bytes
    words: Words


class Answers:
    """The newest answers of each client, by the names of their questions. For one thread."""

    def __init__(self) -> None:
        self._kept: dict[str, OrderedDict[bytes, Kept]] = {}

    def keep(self, client: str, name: bytes, kept: Kept) -> None:
        mine = self._kept.setdefault(client, OrderedDict())
        mine.pop(name, None)
        mine[name] = kept
        while (
            len(mine) > MOST_KEPT or sum(one.words.size for one in mine.values()) > MOST_KEPT_WORDS
        ):
            mine.popitem(last=False)

    def find(self, client: str, name: bytes, model: str, rows: int) -> Kept | None:
        kept = self._kept.get(client, OrderedDict[bytes, Kept]()).get(name)
        return kept if kept and (kept.model, len(kept.words)) == (model, rows) else None


class ServiceDesk:
    """As `program.Desk`; a context manager, which writes what waits. me: this node, which keeps a
    record of drift where a job says so."""

    def __init__(self, me: str, allowance: Allowance, journal: Journal, record: Record) -> None:
        self._me, self._allowance, self._journal, self._record = me, allowance, journal, record

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.write()

    def take(self, client: str, model: Offered, rows: int, name: bytes) -> None:
        serve = model.job.serve
        if serve is None:
            raise QueryRefusedError(f"{model.name} has no [serve]", "not-allowed")
        self._allowance.take(client, model.digest, rows, serve.rows_a_day, name)

    def left(self, client: str, model: Offered) -> int:
        serve = model.job.serve
        return 0 if serve is None else self._allowance.left(client, model.digest, serve.rows_a_day)

    def answered(self, client: str, model: str, rows: int, name: bytes) -> None:
        self._allowance.answered(client, name)
        self._journal.answered(client, model, rows)

    def refused(self, client: str, model: str, code: str, rows: int) -> None:
        self._journal.refused(client, model, code, rows)

    def releasing(self, model: Offered, rows: int) -> None:
        drift = model.job.drift
        assert drift is not None
        self._journal.releasing(model.digest, rows, str(drift.epsilon))

    def released(
        self, model: Offered, rows: int, counts: Counts | None, training: Counts | None
    ) -> None:
        drift = model.job.drift
        if drift is not None and self._me in drift.to:
            self._record.add(model.digest, model.job, rows, counts, training)

    def lose(self, client: str, name: bytes) -> None:
        self._allowance.lose(client, name)

    def lose_all(self) -> None:
        self._allowance.lose_all()

    def idle(self) -> None:
        self._journal.write_if_due()
