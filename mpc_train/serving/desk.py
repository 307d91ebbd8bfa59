"""An evaluator's desk: counts questions before they are computed, and keeps account of them."""

from __future__ import annotations

from typing import Self

from mpc_train.errors import QueryRefusedError
from mpc_train.serving.allowance import Allowance
from mpc_train.serving.journal import Journal
from mpc_train.serving.monitoring.record import Counts, Record
from mpc_train.serving.offered import Offered


class ServiceDesk:
    """As `program.Desk`; a context manager, which writes what waits. me: this node, which keeps a
    record of drift where a job says so."""

    def __init__(self, me: str, allowance: Allowance, journal: Journal, record: Record) -> None:
        self._me, self._allowance, self._journal, self._record = me, allowance, journal, record

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.write()

    def take(self, client: str, model: Offered, rows: int) -> None:
        serve = model.job.serve
        if serve is None:
            raise QueryRefusedError(f"{model.name} has no [serve]", "not-allowed")
        self._allowance.take(client, model.digest, rows, serve.rows_a_day)

    def answered(self, client: str, model: str, rows: int) -> None:
        self._journal.answered(client, model, rows)

    def refused(self, client: str, model: str, code: str, rows: int) -> None:
        self._journal.refused(client, model, code, rows)

    def releasing(self, model: Offered, rows: int) -> None:
        drift = model.job.drift
        assert drift is not None
        self._journal.releasing(model.digest, rows, str(drift.epsilon))

    def released(self, model: Offered, rows: int, counts: Counts | None) -> None:
        drift = model.job.drift
        if drift is not None and self._me in drift.to:
            self._record.add(model.digest, model.job, rows, counts)

    def idle(self) -> None:
        self._journal.write_if_due()
