"""Who learns what passes the reveal gate: before a run as the job says, after it as it was."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpc_train.jobs.link import disclosed

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

OWN = "@"
"""Between a metric and the owner whose rows it is of, who alone learns it: "auc@clinic"."""
PREFIX = "cv_"
"""Before a metric: its mean over folds."""
NOT_AVERAGED = ("confusion", "calibration")
RANGE = "range"
"""One bit at the end of a run: whether a value left the ring's range (`training.range_guard`)."""


def audience(job: "Job", output: str) -> tuple[str, ...]:
    """The nodes and recipients that learn an output of the reveal gate."""
    if output in job.sealed:
        return job.recipients
    _, _, owner = output.partition(OWN)
    return (owner,) if owner else job.names


def fold_outputs(job: "Job") -> list[str]:
    """The outputs of the reveal gate that are means over folds: one a metric that is a number."""
    if not job.reveal.folds:
        return []
    return [f"{PREFIX}{name}" for name in job.reveal.metrics if name not in NOT_AVERAGED]


def listed(job: "Job") -> list[str]:
    """The outputs of the end of a run, as the job lists them."""
    own = [f"{metric}{OWN}{owner}" for owner in job.owners for metric in job.reveal.per_party]
    guard = [RANGE] if job.train.guards_end else []
    return [*guard, *job.reveal.metrics, *fold_outputs(job), *own, *job.sealed]


def learnt(job: "Job", outputs: Iterable[str]) -> dict[str, list[str]]:
    """For each node and recipient what it learns when these outputs pass the gate, once each.

    What the linkage of records discloses, which passes no gate, is listed as the job says it.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in job.names}
    for output in outputs:
        for name in audience(job, output):
            found[name][output] = None
    for names, what in disclosed(job):
        for name in names:
            found[name][what] = None
    return {name: list(outputs) for name, outputs in found.items()}


def grouped(by_name: dict[str, list[str]]) -> list[tuple[list[str], list[str]]]:
    """The same with those together who learn the same: (names, what)."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, what in by_name.items():
        groups.setdefault(tuple(what), []).append(name)
    return [(names, list(what)) for what, names in groups.items()]
