"""A node's own summary of a run, as the coordinator may believe it: typed, bounded, of this job.

Every node of a job sends one, whatever it is and whatever it runs. What does not read as a summary,
holds a number that cannot be or speaks of outputs that the job does not have is refused by the
node's name; nothing of it is shown.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mpc_train.errors import ArtifactError
from mpc_train.jobs.audience import fold_outputs, listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.job_train_checks import MAX_LOOKS, MAX_STEPS
from mpc_train.jobs.reading import MOST, is_reading
from mpc_train.jobs.rules import disclosed_on_the_way
from mpc_train.jobs.schedule import total_steps

Amount = Annotated[float, Meta(ge=0, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=int(MOST))]
Name = Annotated[str, Meta(max_length=1_000)]


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says of its part. Nodes that compute nothing have few of these fields."""

    steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0
    train_seconds: Amount = 0.0
    step_seconds_median: Amount = 0.0
    rounds: Count = 0
    bytes_sent: Count = 0
    peak_rss_mb: Amount | None = None
    metrics: Annotated[dict[Name, Any], Meta(max_length=1_000)] = {}
    unavailable: Annotated[dict[Name, Name], Meta(max_length=1_000)] = {}
    losses: Annotated[dict[Name, float], Meta(max_length=MAX_LOOKS)] = {}
    revealed: Annotated[tuple[Name, ...], Meta(max_length=10 * MAX_LOOKS)] = ()
    joined_rows: Annotated[int, Meta(ge=1, le=int(MOST))] | None = None


def read_summary(job: Job, name: str, sent: Mapping[str, Any]) -> Summary:
    """The summary that node `name` sent; ArtifactError, which names it, for anything else."""
    try:
        found = msgspec.convert(sent, Summary)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the summary of {name} cannot be read: {error}") from error
    wrong = _wrong(job, found)
    if wrong:
        raise ArtifactError(f"the summary of {name} is none of this job: {wrong}")
    return found


def _wrong(job: Job, summary: Summary) -> str:
    """What does not go with the job, in words; empty if all does."""
    if summary.steps > total_steps(job):
        return f"{summary.steps} steps of {total_steps(job)}"
    metrics = {*job.reveal.metrics, *fold_outputs(job)}
    if not set(summary.metrics) | set(summary.unavailable) <= metrics:
        return "metrics that are not revealed"
    if not all(is_reading(value) for value in summary.metrics.values()):
        return "a metric that is no number"
    if not all(_is_step(job, step) and isfinite(loss) for step, loss in summary.losses.items()):
        return "losses that are none, or of steps that there are not"
    if not set(summary.revealed) <= outputs(job):
        return "outputs that are not revealed"
    join = job.data.join
    rows = summary.joined_rows
    if rows is not None and (join is None or not join.least_rows <= rows <= job.rows):
        return f"{rows} joined rows"
    return ""


def outputs(job: Job) -> set[str]:
    """Names of all that may pass the reveal gate in a run of the job."""
    return {*listed(job), *disclosed_on_the_way(job)}


def _is_step(job: Job, text: str) -> bool:
    """Whether a text is the number of one of the job's steps."""
    plain = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_STEPS))
    return plain and 1 <= int(text) <= total_steps(job)
