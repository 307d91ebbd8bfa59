"""Phase 2 if owners have identifiers: which records belong together, and the job for these."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpc_train.admission.load import resolved
from mpc_train.linkage.link import Linked, Place, check_duplicates, link, patience_s
from mpc_train.run.phases.ledger import RunLedger
from mpc_train.run.phases.prepare import public_constants

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.table import Table
    from parties.agreement.session import Session
    from protocols.roles.role import Role

MAX_PROCESSES = 4
"""At most this many processes multiply curve points."""


def link_records(
    session: Session, job: Job, role: Role, table: Table | None, ledger: RunLedger
) -> Linked | None:
    """Return which records of all owners are joined; None if the job does not join columns.

    table: this node's own, with the tokens of its records. If owners have separate rows, this
    checks for duplicates among them. Raises LinkageError.
    """
    if job.data.link is None:
        return None
    processes = min(os.cpu_count() or 1, MAX_PROCESSES)
    place = Place(session.me, session.channel, session.sid, processes)
    tokens = None if table is None else table.tokens
    session.progress(phase="linking", records=sum(job.data.rows.values()))
    ledger.linking()
    with session.channel.patience(patience_s(job)):
        if job.data.join is None:
            found = check_duplicates(job, role, place, tokens)
            if found is not None:
                ledger.linked(found)
            return None
        linked = link(job, role, place, tokens)
    ledger.linked(linked.rows)
    return linked


def joined_job(job: Job, role: Role, linked: Linked | None) -> Job:
    """Return the job for the joined rows. Raises JobError if it does not allow this number."""
    if linked is None:
        return job
    job = resolved(job, linked.rows)
    # A node that derives a different schedule gets an error at the next frame.
    role.issue("joined", linked.rows, *public_constants(job))
    return job
