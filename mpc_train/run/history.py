"""What a node has revealed of its tables, and whether a further run would reveal too much.

Every run that began is recorded: a run that broke off may already have revealed its results. For a
table two marks are recorded, made under a key that never leaves this file's owner: one of its
location, and one of its cells as the job reads them. If either is equal it is the same table, so
that neither a copy under another name nor a table that has grown counts as new, nor a copy of that.
For its rows it is recorded which of them the result was made from, and which were measured; if
records are joined, that is all of them.

Three things are refused. Noise: a further run over one table draws it again, and means over several
runs have less of it (`rules.repeats`). Differences: two results over nearly the same rows differ by
the information of the other rows (`rules.least_difference`). Budgets: what jobs with `[privacy]`
cost adds up over a table (`rules.privacy`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import zlib
from collections.abc import Iterable
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpc_train.admission.effective_rows import row_shares
from mpc_train.admission.rules import Rules, count
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.tables.source import Source

if TYPE_CHECKING:
    from mpc_train.owners.table import Table

MIN_SHARE = 2.0**-10
"""A row that counts less than this part of the one that counts most is not in a result."""

MARKED_ROWS = 1 << 14
"""How many rows a table's mark processes at a time."""

Chosen = NDArray[np.bool_]


class Revealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run that began. source, table: marks, hexadecimal. trained, measured, pooled: which rows
    of the table, in its own order, packed (`packed`). trained is empty if nothing was."""

    at: str
    job: str
    digest: str
    source: str
    table: str
    trained: str
    measured: str = ""
    """Empty: no metric was revealed."""
    pooled: str = ""
    """All training rows, even those in no batch: the means and scales that recipients get, and
    means over folds, are over these. Empty: there are none."""
    epsilon: str = ""
    """The ε of the noise on its metrics, and on counts of its training rows, added up; empty: there
    was none."""
    budget_epsilon: Decimal | None = None
    """The ε and δ that its `[privacy]` promised for all that it revealed; None: nothing."""
    budget_delta: Decimal | None = None


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All runs, oldest first. key: hexadecimal, used only for the marks."""

    key: str
    runs: tuple[Revealed, ...] = ()
    version: int = 1

    @classmethod
    def begun(cls) -> History:
        return cls(os.urandom(32).hex())

    def of_source(self, source: Source) -> list[Revealed]:
        """The runs over the table at this location, as `like`, as far as its cells need not be
        read: those of a table of which it is an unused copy are not found."""
        return self._linked({source_mark(bytes.fromhex(self.key), source)}, set())

    def like(self, run: Revealed) -> list[Revealed]:
        """The runs over the same table: those with a mark in common, and those that have one in
        common with these. A copy of a table that has grown since a run is the table of that run."""
        return self._linked({run.source}, {run.table})

    def _linked(self, sources: set[str], tables: set[str]) -> list[Revealed]:
        """The runs that these marks lead to, directly or over others."""
        found = 0
        while True:
            same = [old for old in self.runs if old.source in sources or old.table in tables]
            if len(same) == found:
                return same
            found = len(same)
            sources |= {old.source for old in same}
            tables |= {old.table for old in same}

    def entry(self, at: str, job: Job, me: str, source: Source, table: Table) -> Revealed:
        """The record of a run of `job` at the owner `me`. at: when it began."""
        key = bytes.fromhex(self.key)
        trained, measured, pooled = rows_of(job, me, table)
        statistics = (job.pipeline.secret and job.has_own_statistics) or job.reveal.folds
        return Revealed(
            at=at,
            job=job.name,
            digest=job.digest().hex(),
            source=source_mark(key, source),
            table=table_mark(key, table),
            trained=packed(trained) if job.trains else "",
            measured=packed(measured) if job.reveal.metrics else "",
            pooled=packed(pooled) if statistics else "",
            epsilon=_noise(job),
            budget_epsilon=job.privacy.epsilon if job.privacy else None,
            budget_delta=job.privacy.small_delta if job.privacy else None,
        )


def _noise(job: Job) -> str:
    found = [] if job.reveal.noise is None else [job.reveal.noise.epsilon]
    if job.counts_training and job.drift is not None:
        found.append(job.drift.epsilon)
    return str(sum(found)) if found else ""


def check_history(rules: Rules, history: History, run: Revealed) -> None:
    """Raise RefusedError if `run` after those of `history` reveals more than the rules allow."""
    before = history.like(run)
    noisy = [old for old in before if old.epsilon]
    budgeted = _check_budget(rules, before, run)
    if run.epsilon and len(noisy) >= rules.repeats and not budgeted:
        spent = sum((Decimal(old.epsilon) for old in noisy), Decimal(run.epsilon))
        times = "a run has" if len(noisy) == 1 else f"{len(noisy)} runs have"
        raise RefusedError(
            f"{times} already revealed numbers with noise over this table ({_named(noisy)}), and "
            f"the job {run.job!r} would draw new noise, repeats = {rules.repeats}. Nothing was "
            f"shared. If your organisation agrees to ε = {spent} in all, write repeats = "
            f"{len(noisy) + 1} under [rules]"
        )
    for old in before:
        for what, now, then in (
            ("trains on", run.trained, old.trained),
            ("measures", run.measured, old.measured),
            ("takes means and scales of", run.pooled, old.pooled),
        ):
            rows = _difference(now, then) if now and then else 0
            if 0 < rows < rules.least_difference:
                raise RefusedError(
                    f"the job {run.job!r} {what} other rows of this table than {_named([old])} "
                    f"did, by {count(rows)}: the results would differ by the information of those, "
                    f"least_difference = {rules.least_difference}. Nothing was shared. Use the "
                    "same rows (split_seed, test_fraction, batch_size), or write least_difference "
                    f"= {rows} under [rules] if your organisation agrees"
                )


def _check_budget(rules: Rules, before: list[Revealed], run: Revealed) -> bool:
    """Raise RefusedError if `run` costs more than is left of its table's budget; return whether the
    rules have a budget for it.

    Runs add up by simple composition: ε to ε and δ to δ, whichever rows trained in which. For the
    sum it does not matter whether they promise privacy for one row or for more.
    """
    limits = rules.privacy
    if limits is None or run.budget_epsilon is None or run.budget_delta is None:
        return False
    if limits.budget_epsilon is None or limits.budget_delta is None:
        return False
    spent = spent_before(before)
    for what, cost, most, old in (
        ("ε", run.budget_epsilon, limits.budget_epsilon, spent.epsilon),
        ("δ", run.budget_delta, limits.budget_delta, spent.small_delta),
    ):
        if old + cost > most:
            key = "epsilon" if what == "ε" else "delta"
            runs = f" by {_named(spent.runs)}" if spent.runs else ""
            raise RefusedError(
                f"the job {run.job!r} would cost {what} = {cost}, and of the budget of this table "
                f"{old} of {most} is spent{runs}. Nothing was shared. If your organisation agrees "
                f"to {old + cost} in all, write budget_{key} = {old + cost} under [rules.privacy]"
            )
    return True


class Spent(NamedTuple):
    """What runs with `[privacy]` have cost together."""

    epsilon: Decimal
    small_delta: Decimal
    runs: list[Revealed]


def spent_before(runs: Iterable[Revealed]) -> Spent:
    """What these runs have cost together, by simple composition."""
    counted = [run for run in runs if run.budget_epsilon is not None]
    return Spent(
        sum((run.budget_epsilon or Decimal(0) for run in counted), Decimal(0)),
        sum((run.budget_delta or Decimal(0) for run in counted), Decimal(0)),
        counted,
    )


def _named(runs: list[Revealed]) -> str:
    return ", ".join(f"{run.job} of {run.at}" for run in runs)


def rows_of(job: Job, me: str, table: Table) -> tuple[Chosen, Chosen, Chosen]:
    """Which rows of the table of `me` the result is made from, which are measured, and over which
    statistics are taken."""
    if job.data.partition == "columns":
        everything = np.ones(table.rows, np.bool_)
        return everything, everything, everything
    training, held_out = split(job)
    if job.federates and job.federated.sizes == "secret":
        trained = np.ones(table.rows, np.bool_)  # at least nearly all: the last ones are held out
        return trained, trained, trained
    shares = None if job.federates else row_shares(job) if job.trains else np.zeros(job.rows)
    chosen = np.isin(np.arange(job.rows), training) if shares is None else shares > MIN_SHARE
    mine = slice(job.first_row(me), job.first_row(me) + table.rows)
    trained = chosen[mine]
    measured, pooled = (np.isin(np.arange(job.rows)[mine], part) for part in (held_out, training))
    if not len(table.places):
        return trained, measured, pooled
    # Rows that the node dropped from its table are counted, but are in none of these sets.
    found = np.zeros((3, int(table.places.max()) + 1), np.bool_)
    found[:, table.places] = trained, measured, pooled
    return found[0], found[1], found[2]


def packed(rows: Chosen) -> str:
    """Base64 of packed bits, compressed."""
    return base64.b64encode(zlib.compress(np.packbits(rows).tobytes())).decode()


def _difference(one: str, other: str) -> int:
    """In how many rows two sets differ; a row that a table did not have yet is not in its set."""
    first, second = (np.frombuffer(_unpacked(text), np.uint8) for text in (one, other))
    length = max(len(first), len(second))
    pad = [np.pad(bits, (0, length - len(bits))) for bits in (first, second)]
    return int(np.unpackbits(pad[0] ^ pad[1]).sum())


def _unpacked(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, zlib.error) as error:
        raise RefusedError("the record of what was revealed is damaged") from error


def source_mark(key: bytes, source: Source) -> str:
    """The location of a table: its file, with links resolved, or its database and query."""
    place = os.path.realpath(source.file) if source.file else f"{source.url} {source.query}"
    if source.stored:
        place = source.file
    return hmac.new(key, place.encode(), sha256).hexdigest()


def table_mark(key: bytes, table: Table) -> str:
    """A table's cells as a job reads them, in the table's own order."""
    order = np.argsort(table.places) if len(table.places) else None
    mark = hmac.new(key, digestmod=sha256)
    for part in (table.features, table.labels, table.present, table.weights):
        mark.update(repr(part.shape).encode())
        for start in range(0, len(part), MARKED_ROWS):  # copies some rows, never the whole table
            rows = slice(start, start + MARKED_ROWS)
            mark.update(np.ascontiguousarray(part[rows if order is None else order[rows]]).data)
    return mark.hexdigest()
