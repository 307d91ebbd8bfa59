"""Predictions for tables and requests by a model in shares, at the client that asks.

Rows are read, checked and prepared as for `mpc-train predict`, and asked in questions of at most
MOST_ROWS rows, of which several are on their way at once; `divided` says how many rows each has.
Answers are numbered classes, probabilities or the network's outputs, as the owners allow (`[serve]
answer`); of outputs the link function (sigmoid, softmax, exp, the label's unit) is applied here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.errors import ConfigError, QueryError, QueryLostError, QueryRefusedError
from mpc_train.owners.local import Local, local_terms
from mpc_train.results.predictions import Predictions, Records, kept_ids, with_ids
from mpc_train.serving.lanes import BUCKETS, bucket_of
from mpc_train.serving.offered import MOST_ROWS, NAME_BYTES, Offered, Service
from mpc_train.serving.offers import allowed
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.serve import Answer
    from mpc_train.tables.typed import TypedTable

AT_ONCE = 8
"""Questions of one table that are on their way."""
MOST_PARTS = 8
"""Questions in which the last rows of a table are asked at most: all on their way together."""
AGAIN = frozenset({"busy", "unavailable"})
"""Refusals after which the same question is asked again."""
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 5.0
PATIENCE_S = 120.0
"""How long a question of a table is asked again: longer than a node needs to start again."""


class Tally:
    """The rows of today that a service may have counted for this client. For several threads."""

    def __init__(self) -> None:
        self.rows = 0
        self._lock = threading.Lock()

    def add(self, rows: int) -> None:
        with self._lock:
            self.rows += rows


@dataclass(frozen=True, repr=False)
class SharedPredictor(Predictions):
    """Predictions by a model that nobody holds. May be used by several threads.

    first, most: which rows of a table are asked: from the row of this number on, at most so many
    (0: all). patience_s: how long a question that is refused as busy or unavailable is asked again.
    counted: padded rows of questions that were sent, without those that were refused.
    """

    service: Service
    model: Offered
    first: int = 1
    most: int = 0
    patience_s: float = PATIENCE_S
    counted: Tally = field(default_factory=Tally)

    @property
    def job(self) -> Job:  # type: ignore[override]
        return self.model.job

    @property
    def answer(self) -> Answer:
        return allowed(self.model).answer

    @property
    def columns(self) -> tuple[str, ...]:
        """As of any predictor; only the prediction if the owners allow nothing else."""
        return super().columns[:1] if self.answer == "class" else super().columns

    def rows_of(self, source: Records, ids: Sequence[str] = ()) -> list[int]:
        """The rows of each chunk that `records` would ask: the table is read to its end and
        checked, so that a fault in its last row is known before its first is asked, and counted."""
        self.check_ids(ids)
        return [table.rows for table in self.chosen(source, ids)]

    def chosen(self, source: Records, ids: Sequence[str] = ()) -> Iterator[TypedTable]:
        """The chunks of the table, without rows that are not to be asked."""
        passed = taken = 0
        for table in self.tables(source, ids):
            start = min(max(self.first - 1 - passed, 0), table.rows)
            stop = table.rows
            if self.most:
                stop = min(stop, start + self.most - taken)
            passed += table.rows
            taken += max(stop - start, 0)
            if start < stop:
                yield table if (start, stop) == (0, table.rows) else part(table, start, stop)

    def records(self, source: Records, ids: Sequence[str] = ()) -> Iterator[list[list[Any]]]:
        """For each question one list per row, as `Predictions.records`. In order.

        Raises what `predicted` does, after all rows before the question that failed.
        """
        self.check_ids(ids)
        waiting: deque[tuple[list[tuple[str, ...]], Future[list[list[Any]]]]] = deque()
        over = threading.Event()
        pool = ThreadPoolExecutor(AT_ONCE, "asking")
        questions = self._questions(source, ids)
        try:
            while True:
                for kept, local in islice(questions, AT_ONCE - len(waiting)):
                    waiting.append((kept, pool.submit(self._predicted, local, over)))
                if not waiting:
                    return
                kept, answer = waiting.popleft()
                yield with_ids(kept, answer.result())
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)

    def predicted(self, table: TypedTable) -> list[list[Any]]:
        """The predictions for at most MOST_ROWS rows with the job's features. Raises QueryError,
        QueryRefusedError and PartiesError."""
        return self._predicted(local_terms(self.job.pipeline, table), threading.Event())

    def of_answers(self, answers: Reals, rows: int) -> list[list[Any]]:
        """The predictions for what the evaluators answered about so many rows. Raises QueryError
        for answers that are none."""
        width = 1 if self.answer == "class" else self.job.outputs
        if answers.shape != (rows, width) or not np.isfinite(answers).all():
            raise self._strange()
        if self.answer == "number":
            return self.of_outputs(answers)
        if self.answer == "class":
            best = answers[:, 0].astype(np.int64)
            if not ((best == answers[:, 0]) & (best >= 0) & (best < len(self.classes))).all():
                raise self._strange()
            return [[self.classes[place]] for place in best]
        if width > 1:
            return self.labelled(answers.argmax(axis=1), answers)
        best, others = (answers[:, 0] >= 0.5).astype(np.int64), 1 - answers
        decimals = allowed(self.model).decimals
        if decimals is not None:
            others = np.round(others, decimals)  # 0.17, not 0.17000000000000004
        return self.labelled(best, np.hstack([others, answers]))

    def _strange(self) -> QueryError:
        return QueryError(
            f"the evaluators' answer about {self.model.name} is not one that the model can give; "
            "the question may have been altered, or they run another release"
        )

    def _questions(
        self, source: Records, ids: Sequence[str]
    ) -> Iterator[tuple[list[tuple[str, ...]], Local]]:
        for table in self.chosen(source, ids):
            kept, local = kept_ids(table, ids), local_terms(self.job.pipeline, table)
            start = 0
            for count in divided(table.rows):
                rows = slice(start, start + count)
                yield kept[rows], Local(local.values[rows], local.present[rows])
                start += count

    def _predicted(self, local: Local, over: threading.Event) -> list[list[Any]]:
        rows = len(local.values)
        if rows > MOST_ROWS:
            raise ConfigError(f"a question has at most {MOST_ROWS} rows")
        until, wait_s = time.monotonic() + self.patience_s, FIRST_WAIT_S
        name, lost = secrets.token_bytes(NAME_BYTES), False
        while True:
            if not lost:
                self.counted.add(bucket_of(rows))
            try:
                return self.of_answers(self.service.ask(self.model, local, name), rows)
            except QueryRefusedError as error:
                lost = isinstance(error, QueryLostError)
                if not lost:
                    self.counted.add(-bucket_of(rows))
                if error.code not in AGAIN or time.monotonic() + wait_s > until:
                    raise
                if over.wait(wait_s):
                    raise
                if not lost:
                    name = secrets.token_bytes(NAME_BYTES)  # an evaluator does not answer that one
                wait_s = min(2 * wait_s, MOST_WAIT_S)


def divided(rows: int) -> list[int]:
    """The rows of each question in which a chunk of a table is asked.

    Questions of MOST_ROWS rows; what is left over is one question, or some of the next smaller unit
    of `lanes`, or these and single rows: whichever counts the fewest rows with at most MOST_PARTS
    questions.
    """
    whole, rest = divmod(rows, MOST_ROWS)
    middle = BUCKETS[-2]
    full, single = divmod(rest, middle)
    ways = [[rest], [middle] * full + [single], [middle] * full + [1] * single]
    ways = [[count for count in way if count] for way in ways]
    few = [way for way in ways if len(way) <= MOST_PARTS]
    return [MOST_ROWS] * whole + min(few, key=lambda way: (sum(map(bucket_of, way)), len(way)))


def counts_for(rows: int) -> int:
    """How many rows a chunk of a table counts for: each question is padded."""
    return sum(map(bucket_of, divided(rows)))


def fitting(chunks: Sequence[int], most: int) -> int:
    """How many of the rows of a table, from the first on, count for at most `most`."""
    rows = 0
    for chunk in chunks:
        if counts_for(chunk) > most:
            start = min(chunk, most) // MOST_ROWS * MOST_ROWS
            # Of more rows fewer may count: 8 are 8 questions, 9 are padded to 16.
            stop = min(chunk, start + MOST_ROWS)
            return rows + max(each for each in range(start, stop + 1) if counts_for(each) <= most)
        rows, most = rows + chunk, most - counts_for(chunk)
    return rows


def part(table: TypedTable, start: int, stop: int) -> TypedTable:
    """Some consecutive rows of a chunk."""
    rows = slice(start, stop)
    return replace(
        table,
        values=table.values[rows],
        missing=table.missing[rows],
        identifiers={name: texts[rows] for name, texts in table.identifiers.items()},
        places=None if table.places is None else table.places[rows],
    )
