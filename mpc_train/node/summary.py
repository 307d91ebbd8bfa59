"""A node's own summary of a run, as far as the coordinator accepts it: typed, bounded, for this
job.

Every node of a job sends one, with progress, sizes and times. The coordinator must not learn
results: a summary that contains them is refused, as is a malformed one or one with an impossible
number; nothing of it is shown.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mpc_train.base.reading import MOST
from mpc_train.checks.check_train import MAX_STEPS
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps

Amount = Annotated[float, Meta(ge=0, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=int(MOST))]


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node reports about its part. Nodes that compute nothing have few of these fields."""

    steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0
    resumed_after: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0
    """Steps of earlier sessions; seconds and rounds are those of the last one."""

    train_seconds: Amount = 0.0
    step_seconds_median: Amount = 0.0
    rounds: Count = 0
    bytes_sent: Count = 0
    peak_rss_mb: Amount | None = None


def read_summary(job: Job, name: str, sent: Mapping[str, Any]) -> Summary:
    """The summary that node `name` sent; ArtifactError, which names the node, for anything else."""
    try:
        found = msgspec.convert(sent, Summary)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the summary of {name} cannot be read: {error}") from error
    if found.steps > total_steps(job):
        raise ArtifactError(
            f"the summary of {name} is not about this job: {found.steps} steps of "
            f"{total_steps(job)}"
        )
    return found
