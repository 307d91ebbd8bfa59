"""Everything that leaves a run, in one list, and the word in a node's `[rules]` that allows each.

The outputs of a reveal gate are checked against this list when a run begins
(`run.phases.prepare.agreed_outputs`), and a node refuses an output for which no rule has a word. So
nothing can leave without the consent of each organisation.
"""

from typing import Literal, NamedTuple, get_args

from mpc_train.jobs.audience import GLOBAL, OWN, RANGE, TRAINING_COUNTS, WITHIN, listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.reveal import Metric
from mpc_train.jobs.sealed import (
    of_solution,
    preparation_shapes,
    regression_shapes,
    sealed_tensors,
)

Disclosure = Literal[
    "early_stopping",
    "guard",
    "training_loss",
    "overlap",
    "membership",
    "statistics",
    "empty_columns",
    "extremes",
    "federated",
    "sizes",
    "training_counts",
]
"""What may leave besides the model and the metrics: overlap, how many records owners have in
common; membership, to each owner, which of its records others have; statistics, to the recipients,
standard errors of the coefficients; extremes, to the recipients, the smallest and the largest
training value of columns with scale = "minmax", each a cell of some row; training_counts, to the
evaluators, how many training rows fall into which bin of a column and of the outputs, with noise,
for drift of a model in shares; the rest to every node:
early_stopping, whether training goes on; guard, every few steps, whether a value left its range;
training_loss, the mean loss of a batch; empty_columns, before training, whether a column with
missing = "mean" has no value, or values in fewer rows than a group has, at all owners together;
federated, to the owners, the global model of every round, and to every node, who took part in a
round and whose update was left out because it was too large; sizes, to the owners, how many rows
those of a federated round have together, although a job with sizes = "secret" keeps the number of
each from the nodes."""
OverFolds = Literal[
    "cv_mse",
    "cv_mae",
    "cv_r2",
    "cv_accuracy",
    "cv_auc",
    "cv_log_loss",
    "cv_precision",
    "cv_recall",
    "cv_f1",
]
"""Means of metrics over folds, from models that are trained only for this and discarded."""

UNGROUPED = frozenset({"accuracy", "log_loss", "mse", "mae", "r2"})
"""Metrics over all held-out rows, whose number is public; the others are over groups of rows."""


class Word(NamedTuple):
    """An entry of `[rules]`: its key, and the value that the key must contain; "always": none,
    because every run discloses this unless told otherwise, as SECURITY.md says."""

    key: Literal["recipients", "metrics", "disclosures", "always"]
    word: str


def leaving(job: Job) -> list[str]:
    """The names of everything that leaves, to any receiver: outputs of the reveal gate, and
    disclosures of record linkage."""
    return [*listed(job), *disclosed_on_the_way(job)]


def disclosed_on_the_way(job: Job) -> list[Disclosure]:
    """What a job discloses besides the model and metrics."""
    found: list[Disclosure] = []
    if job.federates:
        return ["federated", "sizes"] if job.sums_sizes else ["federated"]
    if job.train.early_stopping is not None:
        found.append("early_stopping")
    if job.train.guard_every:
        found.append("guard")
    if job.reveal.training_loss_every:
        found.append("training_loss")
    if job.data.link is not None:
        found.append("overlap")
    if job.data.join is not None and job.data.join.membership == "holders":
        found.append("membership")
    if job.reveal.statistics:
        found.append("statistics")
    if not job.has_own_statistics:
        return found
    if job.pipeline.filled and not job.has_noisy_statistics:
        found.append("empty_columns")
    if any(term.shared == "minmax" for term in job.pipeline.terms):
        found.append("extremes")
    return found


def through_the_gate(job: Job) -> list[str]:
    """The names of all outputs of the reveal gate, in the order in which they may pass it."""
    on_the_way = disclosed_on_the_way(job)
    return [*(name for name in _ON_THE_WAY if name in on_the_way), *listed(job)]


_ON_THE_WAY: tuple[Disclosure, ...] = (
    "empty_columns",
    "training_loss",
    "early_stopping",
    "guard",
)


def words_for(job: Job, output: str) -> tuple[Word, ...]:
    """The entries that a node's rules must have for `output` to leave; empty: no rule covers it.

    Every meaning of the name counts: a tensor with the name of a metric needs both words.
    """
    words: list[Word] = []
    if output in regression_shapes(job) and not of_solution(job, output):
        words.append(Word("disclosures", "statistics"))
    elif output in sealed_tensors(job):
        words += [Word("recipients", name) for name in job.recipients]
    if output in (GLOBAL, WITHIN):
        words.append(Word("disclosures", "federated"))
    if output == GLOBAL and job.sums_sizes:
        words.append(Word("disclosures", "sizes"))
    if output == RANGE:
        words.append(Word("always", output))
    if output in get_args(Disclosure):
        words.append(Word("disclosures", output))
    metric, _, _ = output.partition(OWN)
    if metric in get_args(Metric) or metric in get_args(OverFolds):
        words.append(Word("metrics", metric))
        words += [Word("recipients", name) for name in job.reveal.metrics_to]
    return tuple(words)


def clause(job: Job, output: str) -> str:
    """The job's key that lists `output`, for the ledger of openings.

    Raises RuntimeError for an output that no key lists.
    """
    if output == TRAINING_COUNTS and job.counts_training:
        return "serve.drift"
    if output in job.shapes:
        return "job.recipients"
    if output in preparation_shapes(job.pipeline):
        return "prepare"
    if output in regression_shapes(job):
        return "job.recipients" if of_solution(job, output) else "reveal.statistics"
    metric, own, _ = output.partition(OWN)
    if metric in get_args(Metric):
        return "reveal.per_party" if own else "reveal.metrics"
    if metric in get_args(OverFolds):
        return "reveal.folds"
    try:
        return _CLAUSES[output]
    except KeyError:
        raise RuntimeError(f"no key of the job lists what leaves as {output}") from None


_CLAUSES = {
    RANGE: "train.guard",
    "early_stopping": "train.early_stopping",
    "guard": "train.guard",
    "training_loss": "reveal.training_loss_every",
    "empty_columns": "prepare",
    GLOBAL: "train.mode",
    WITHIN: "train.federated.clip",
    "sizes": "train.federated.sizes",
    "overlap": "data",
    "membership": "data.join.membership",
}


def words_of(job: Job, key: str) -> list[str]:
    """All words that the job needs under this key of `[rules]`, in the order of `leaving`."""
    words = (word for output in leaving(job) for word in words_for(job, output))
    return list(dict.fromkeys(word.word for word in words if word.key == key))
