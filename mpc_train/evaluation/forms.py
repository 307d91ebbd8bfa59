"""The metrics of a job as outputs of the reveal gate: the form of each, and how it leaves.

Without readers of its own (`reveal.metrics_to`) a metric is opened to all evaluators. With readers
it is opened to nobody in the run: it leaves as halves under a fresh mask, which evaluators seal to
the readers, as they do with the model. Whether a metric is refused or undefined is decided over
shares in both cases, and is a word of what leaves, so that no other bit is needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mpc_train.evaluation.figures import Form, form_of
from mpc_train.evaluation.findings import Findings
from mpc_train.jobs.audience import OWN, PREFIX, fold_outputs
from mpc_train.jobs.schedule import fold_jobs, held_out_of, split
from protocols.shares.masked import Masked
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def fold_form(job: Job, metric: str) -> Form:
    """The form of a mean over folds, whose rows are at most those of the largest fold."""
    largest = max(len(split(fold)[1]) for fold in fold_jobs(job))
    return replace(form_of(job, metric, largest), divisor=job.reveal.folds)


def metric_forms(job: Job) -> dict[str, Form]:
    """The form of every metric of the job, by the name of its output."""
    _, rows = split(job)
    found = dict[str, Form]()
    for metric in job.reveal.metrics:
        found[metric] = form_of(job, metric, len(rows))
    found |= {name: fold_form(job, name.removeprefix(PREFIX)) for name in fold_outputs(job)}
    for owner in job.owners if job.reveal.per_party else ():
        own = len(held_out_of(job, owner))
        for metric in job.reveal.per_party:
            found[f"{metric}{OWN}{owner}"] = form_of(job, metric, own)
    return found


def leave(
    job: Job,
    gate: RevealGate,
    step: int,
    name: str,
    form: Form,
    value: Masked,
    found: Findings,
    halves: dict[str, SealedHalf],
) -> None:
    """Let a metric leave: into `found` if all evaluators learn it, into `halves` if readers do.

    Neither changes at the dealer.
    """
    if job.reveal.metrics_to:
        half = gate.for_recipients(name, step, value)
        if half is not None:
            halves[name] = half
        return
    words = gate.to_everybody(name, step, value)
    if words is not None:
        found.take(job, name, form, words)
