"""Phase 1: what each node derives from the job by itself, and all must derive alike."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mpc_train.jobs.audience import listed
from mpc_train.jobs.outputs import leaving
from mpc_train.jobs.schedule import checked_rows, distinct_rates, split, total_steps
from mpc_train.preparation.gaps import gap_outputs
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.rates import rate
from mpc_train.training.watch import disclosures
from protocols.functions.splines import constants_digest
from protocols.shares.reveal import Output

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def public_constants(job: Job) -> bytes:
    """SHA-256 of all constants that nodes derive by themselves: splines, weights, rates, rows."""
    digest = hashlib.sha256(constants_digest(job.fraction_bits))
    for name, words in initial_weights(job).items():
        digest.update(name.encode() + words.astype("<i8").tobytes())
    digest.update(repr([rate(job, epoch, step) for epoch, step in distinct_rates(job)]).encode())
    for rows in (*split(job), checked_rows(job)):
        digest.update(rows.astype("<i8").tobytes())
    return digest.digest()


def agreed_outputs(job: Job) -> frozenset[Output]:
    """All outputs that may leave: the disclosures of `gaps` and of `watch`, and once, at the end,
    metrics and sealed tensors.

    The end counts as the job's last step, even if early stopping ends training before. Raises
    RuntimeError for an output that `leaving` does not list, so that nodes' rules do not cover it.
    """
    found = gap_outputs(job) | disclosures(job)
    found |= {Output(name, total_steps(job)) for name in listed(job)}
    unlisted = {output.name for output in found}.difference(leaving(job))
    if unlisted:
        raise RuntimeError(f"no rule covers the outputs {', '.join(sorted(unlisted))}")
    return found
