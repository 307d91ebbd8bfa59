"""The public form of each metric of a job: shape, divisor, and the words that are revealed.

Each metric is revealed as one vector: a word that says whether its numbers are available, and the
numbers, which are 0 if they are not. The word is all that is revealed of the size of a group:

    REFUSED     a group (the rows of a class, those called it, a bin) has at least one row, and
                fewer than the job's `reveal.least_group`
    UNDEFINED   no group is too small, and the metric's divisor is 0
    AVAILABLE   otherwise: each of its groups has no rows, or enough of them

Nobody learns which group is too small, except for bins, which are judged one by one, or more digits
than the job states.

The groups of a confusion matrix are those of precision and recall, its rows and its columns. A cell
is a part of both: that one row of a class of 26 was predicted as another says no more about a row
than accuracy, precision and recall, which reveal the same counts. A rule that refuses every matrix
with a cell of one to nine would refuse nearly all good models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from mpc_train.jobs.audience import OWN, PREFIX, fold_outputs
from mpc_train.jobs.schedule import fold_jobs, held_out_of, split

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

REFUSED, AVAILABLE, UNDEFINED = range(3)
QUOTIENT_BITS = 17
"""A quotient over n rows is accurate for groups of at least n / 2^17 of them."""


@dataclass(frozen=True, slots=True)
class Form:
    """The public form of a metric over `rows` rows.

    shape: of the printed metric, () for one number. divisor: the public number by which values are
    divided. each: the first axis is groups, judged one by one. counts: whole numbers, which are not
    rounded.
    """

    metric: str
    rows: int
    shape: tuple[int, ...] = ()
    divisor: int = 1
    each: bool = False
    counts: bool = False

    @property
    def words(self) -> tuple[int, ...]:
        """The shape of the revealed vector: a word before the numbers, for all groups or for
        each."""
        lead = self.shape[:1] if self.each else ()
        return (*lead, 1 + prod(self.shape[len(lead) :]))


def form_of(job: Job, metric: str, rows: int) -> Form:
    """The form of a metric over `rows` rows."""
    if metric == "confusion":
        return Form(metric, rows, (job.classes, job.classes), counts=True)
    if metric == "calibration":
        return Form(metric, rows, (job.reveal.bins, 2), each=True)
    if metric in ("precision", "recall", "f1"):
        return Form(metric, rows, divisor=1 if job.outputs == 1 else job.outputs)
    return Form(metric, rows, divisor=1 if metric in ("auc", "r2") else rows)


def least_group(job: Job, rows: int) -> int:
    """The minimum rows of a group that has any: the job's, or the minimum for accurate
    quotients."""
    return max(job.reveal.least_group, -(-rows >> QUOTIENT_BITS))


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
