"""What this organisation allows, whatever job is proposed to it.

The rules stand in the node's own file and are checked before the node signs, reads its data into
a run or sends anything. Nothing is allowed by being left out: recipients and metrics have to be
listed.
"""

from typing import Literal

import msgspec

from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job, ModelKind
from mpc_train.jobs.job_link import link_of
from mpc_train.jobs.job_reveal import Metric

Disclosure = Literal[
    "early_stopping",
    "guard",
    "training_loss",
    "overlap",
    "membership",
    "statistics",
    "empty_columns",
]

ALL_MODELS: tuple[ModelKind, ...] = (
    "linear",
    "logistic",
    "softmax",
    "mlp",
    "poisson",
    "gamma",
)


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rules]` of a party's or dealer's file."""

    recipients: tuple[str, ...]
    """Who may get a model that our data went into."""
    metrics: tuple[Metric, ...] = ()
    """Which metrics may become known."""
    disclosures: tuple[Disclosure, ...] = ()
    """What may become known while a job trains: overlap, how many records owners have in common;
    membership, to each owner, which of its records others have; statistics, to the recipients,
    standard errors of the coefficients; the rest to every node: empty_columns, before training,
    whether a column with missing = "mean" has no value at any owner."""
    models: tuple[ModelKind, ...] = ALL_MODELS
    modules: tuple[str, ...] = ()
    """Which installed factories (`package.module:factory`) a job may call here for its network."""
    least_parties: int = 2
    """Fewest owners of data: with two, each can subtract its own part from a total."""
    least_test_rows: int = 20
    """Fewest rows that a metric is taken over."""
    least_group: int = 1
    """Fewest rows of a group that a metric is revealed of (`reveal.least_group` of the job)."""
    jobs: tuple[str, ...] = ()
    """Digests (hexadecimal, as `mpc-train job check` prints them) of the jobs that are allowed;
    none listed: any job that keeps the other rules."""


def disclosed_on_the_way(job: Job) -> list[Disclosure]:
    """What a job discloses besides the model and metrics."""
    found: list[Disclosure] = []
    if job.train.early_stopping is not None:
        found.append("early_stopping")
    if job.train.guard_every:
        found.append("guard")
    if job.reveal.training_loss_every:
        found.append("training_loss")
    if link_of(job) is not None:
        found.append("overlap")
    if job.data.join is not None and job.data.join.membership == "holders":
        found.append("membership")
    if job.reveal.statistics:
        found.append("statistics")
    if job.pipeline.filled:
        found.append("empty_columns")
    return found


def check_rules(rules: Rules, job: Job) -> None:
    """Raise RefusedError naming everything in `job` that breaks the rules."""
    broken: list[str] = []
    if rules.jobs and job.digest().hex() not in rules.jobs:
        broken.append(f"the job's digest {job.digest().hex()} is not under jobs")
    foreign = [name for name in job.recipients if name not in rules.recipients]
    if foreign:
        broken.append(f"{', '.join(foreign)} would receive the model and is not under recipients")
    if job.model.kind not in rules.models:
        broken.append(f"a {job.model.kind} model is not under models")
    if job.model.module and job.model.module not in rules.modules:
        broken.append(f"{job.model.module} would be called and is not under modules")
    listed = dict.fromkeys((*job.reveal.metrics, *job.reveal.per_party))
    metrics = [metric for metric in listed if metric not in rules.metrics]
    if metrics:
        broken.append(f"{', '.join(metrics)} would be revealed and is not under metrics")
    disclosed = [what for what in disclosed_on_the_way(job) if what not in rules.disclosures]
    if disclosed:
        broken.append(f"{', '.join(disclosed)} would be disclosed and is not under disclosures")
    if len(job.owners) < rules.least_parties:
        broken.append(f"{len(job.owners)} owners bring data, least_parties = {rules.least_parties}")
    if (listed or disclosed_on_the_way(job)) and job.reveal.least_test_rows < rules.least_test_rows:
        broken.append(
            f"metrics are allowed over {job.reveal.least_test_rows} rows, "
            f"least_test_rows = {rules.least_test_rows}"
        )
    if listed and job.reveal.least_group < rules.least_group:
        broken.append(
            f"metrics are allowed of groups of {job.reveal.least_group} rows, "
            f"least_group = {rules.least_group}"
        )
    if broken:
        raise RefusedError(
            f"the job {job.name!r} breaks this node's rules: {'; '.join(broken)}. Nothing was "
            "shared. Change [rules] in this node's file only if your organisation agrees."
        )
