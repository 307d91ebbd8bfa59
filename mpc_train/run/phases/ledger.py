"""The ledger of a run: what leaves the masked domain, as entries of the node's audit log.

An opening is an entry before it happens: what, after which step, to whom, by which key of the job,
how many numbers. An evaluator adds afterwards a digest of what it knows of them (`Session.mac`):
whoever holds the node's log key can show later that a value is the one that was opened, and nobody
else learns anything from it. The dealer opens no value, and its entries say what it took part in;
metrics it is told at the end (`evaluation.telling`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_train.jobs.audience import audience, linkage_disclosures
from mpc_train.jobs.outputs import clause
from mpc_train.preparation.gaps import gap_outputs
from mpc_train.results.outcome import Opening
from mpc_train.training.watch import disclosures
from parties.audit.entries import Kind
from protocols.arrays import Words
from protocols.shares.reveal import Output

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from parties.agreement.session import Session

JOINED = "joined"
"""The number of records that owners have in common, of which no gate is asked."""


class RunLedger:
    """What the reveal gate of one run is given. Its entries are durable when its methods return."""

    def __init__(self, session: Session, job: Job) -> None:
        self._session, self._job = session, job
        self.openings: list[Opening] = []
        """What has left so far, for the statement that all nodes sign."""

    def opening(self, output: Output, values: int) -> None:
        """Raises AuditError where it cannot be written: nothing has left then."""
        to, key = audience(self._job, output.name), clause(self._job, output.name)
        self._note(Opening(output.name, output.step, to, key, values), values=values)

    def resumed(self, step: int) -> None:
        """What an earlier session has disclosed up to this step, after which this one goes on: it
        does not leave again, and is in the log of that session."""
        for output in sorted(disclosures(self._job), key=lambda one: (one.step, one.name)):
            if output.step <= step:
                to, key = audience(self._job, output.name), clause(self._job, output.name)
                self.openings.append(Opening(output.name, output.step, to, key, 1))

    def joined_before(self) -> None:
        """What was disclosed while an earlier session joined the rows with which this one goes on:
        the linkage does not happen again, nor what follows from it before training."""
        for names, what in linkage_disclosures(self._job):
            self.openings.append(Opening(what, 0, names, "data.join"))
        for output in gap_outputs(self._job):
            to, key = audience(self._job, output.name), clause(self._job, output.name)
            values = len(self._job.pipeline.filled)
            self.openings.append(Opening(output.name, output.step, to, key, values))

    def opened(self, output: Output, words: Words) -> None:
        data = words.astype("<i8").tobytes()
        self._session.record(
            Kind.OPENED, output=output.name, step=output.step, digest=self._session.mac(data)
        )

    def refused(self, output: Output) -> None:
        self._session.record(Kind.OPENING_REFUSED, output=output.name, step=output.step)

    def linking(self) -> None:
        """What the linkage of records discloses by itself, before it does."""
        for names, what in linkage_disclosures(self._job):
            joins = self._job.data.join is not None
            self._note(Opening(what, 0, names, "data.join" if joins else "data.check_duplicates"))

    def _note(self, one: Opening, **fields: int) -> None:
        self._session.record(
            Kind.OPENING, output=one.output, step=one.step, to=one.to, clause=one.clause, **fields
        )
        self.openings.append(one)

    def linked(self, rows: int) -> None:
        digest = self._session.mac(rows.to_bytes(8, "little"))
        self._session.record(Kind.OPENED, output=JOINED, step=0, digest=digest)
