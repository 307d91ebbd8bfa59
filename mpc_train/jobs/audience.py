"""Who learns the outputs of the reveal gate: before a run by the job, after it by what was
revealed."""

from collections.abc import Iterable

from mpc_train.jobs.job import Job
from mpc_train.jobs.sealed import sealed_tensors

OWN = "@"
"""Separates a metric from the owner of its rows, who alone learns it: "auc@clinic"."""
PREFIX = "cv_"
"""Precedes a metric: its mean over folds."""
NOT_AVERAGED = ("confusion", "calibration")
RANGE = "range"
"""One bit at the end of a run: whether a value left the ring's range (`training.range_guard`)."""


TRAINING_COUNTS = "training_counts"
"""How many training rows fall into which bin, with noise (`evaluation.training_counts`)."""
GLOBAL, WITHIN = "global_update", "within_clip"
"""Of a round of a federated job: the sum of the updates, to the owners; of each owner that takes
part, whether its update counts, to everybody."""


def audience(job: Job, output: str) -> tuple[str, ...]:
    """The nodes and recipients that learn an output of the reveal gate."""
    if output == GLOBAL:
        return job.owners
    if output in sealed_tensors(job):
        return job.recipients
    if output == TRAINING_COUNTS:
        return job.evaluators
    if job.reveal.metrics_to and output in metric_outputs(job):
        return job.reveal.metrics_to
    _, _, owner = output.partition(OWN)
    return (owner,) if owner else job.names


def recipient_groups(job: Job) -> list[tuple[str, ...]]:
    """To whom the model is sealed: to each recipient, or to all together with a threshold."""
    return _groups(job.recipients, job.reveal.threshold)


def _groups(names: tuple[str, ...], threshold: int) -> list[tuple[str, ...]]:
    return [names] if threshold > 1 else [(name,) for name in names]


def opening_words(job: Job) -> str:
    """Who can open the model, in words: "A, B" or "2 of A, B, C together"; "nobody" unless it is
    sealed."""
    if not job.seals_model:
        return "nobody"
    names, threshold = ", ".join(job.recipients), job.reveal.threshold
    return f"{threshold} of {names} together" if threshold > 1 else names


def fold_outputs(job: Job) -> list[str]:
    """The outputs of the reveal gate that are means over folds: one per metric that is a number."""
    if not job.reveal.folds:
        return []
    return [f"{PREFIX}{name}" for name in job.reveal.metrics if name not in NOT_AVERAGED]


def metric_outputs(job: Job) -> list[str]:
    """The outputs of the reveal gate that are metrics."""
    own = [f"{metric}{OWN}{owner}" for owner in job.owners for metric in job.reveal.per_party]
    return [*job.reveal.metrics, *fold_outputs(job), *own]


def listed(job: Job) -> list[str]:
    """The outputs of the end of a run, as the job lists them."""
    if job.federates:
        return [WITHIN, GLOBAL]
    guard = [RANGE] if job.train.guards_end else []
    counts = [TRAINING_COUNTS] if job.counts_training else []
    return [*guard, *metric_outputs(job), *sealed_tensors(job), *counts]


def learnt(job: Job, outputs: Iterable[str]) -> dict[str, list[str]]:
    """For each node and recipient: what it learns when these outputs pass the gate, without
    repetition.

    Linkage's disclosures, which do not pass the gate, are listed by the job.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in job.names}
    for output in outputs:
        for name in audience(job, output):
            found[name][output] = None
    for names, what in linkage_disclosures(job):
        for name in names:
            found[name][what] = None
    return {name: list(outputs) for name, outputs in found.items()}


def grouped(by_name: dict[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """The same, with the names grouped that learn the same: (names, what)."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, what in by_name.items():
        groups.setdefault(tuple(what), []).append(name)
    return [(names, list(what)) for what, names in groups.items()]


def linkage_disclosures(job: Job) -> list[tuple[tuple[str, ...], str]]:
    """Who learns what from linkage; the coordinator is told nothing, but can count steps."""
    join, several = job.data.join, len(job.owners) > 2
    found: list[tuple[tuple[str, ...], str]] = []
    choices = (job.evaluators, "how many records each choice of owners has in common")
    if job.data.check_duplicates is not None:
        found.append((job.evaluators, "how many records are in more than one table"))
        return [*found, choices] if several else found
    if join is None:
        return found
    found.append((job.names, "how many records all owners have in common"))
    found.append((job.owners, "how many of its own records found no partner"))
    if join.membership == "nobody":
        return [*found, choices] if several else found
    found.append((job.owners, "which of its own records all owners have"))
    if several:
        found.append(
            (
                job.owners,
                "which of its own records each other owner has, and how many records others have "
                "in common",
            )
        )
    return found


def linkage_in_words(job: Job) -> list[str]:
    """Sentences that say what linkage tells whom; empty if the job does not link records."""
    if job.data.link is None:
        return []
    found = []
    for names, what in linkage_disclosures(job):
        whom = "everybody, including the coordinator" if names == job.names else ", ".join(names)
        found.append(f"to {whom}: {what}")
    if job.data.join is None:
        found.append("to everybody: whether these are too many")
    else:
        found.append("which everybody can compute: an owner's rows minus those in common")
    if job.data.join is None or job.data.join.membership == "nobody":
        found.append("to nobody: which records they are")
    return found
