"""What this organisation allows, for every job that is proposed to it.

The rules are in the node's own file and are checked before the node signs, reads its data into a
run or sends anything. Omission allows nothing: recipients, dealers, evaluators and metrics must be
listed, and the minimum numbers hold by default. A job that satisfies the rules is still shown to a
person, or must be named by its digest or approved by an approver (`node.consent`).
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from mpc_train.admission.effective_rows import effective_rows, held_out_rows
from mpc_train.base.strict_toml import quoted
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job, ModelKind
from mpc_train.jobs.outputs import (
    UNGROUPED,
    Disclosure,
    OverFolds,
    disclosed_on_the_way,
    leaving,
    words_for,
)
from mpc_train.jobs.reveal import Metric
from mpc_train.jobs.schedule import is_newton

ALL_MODELS: tuple[ModelKind, ...] = (
    "linear",
    "logistic",
    "softmax",
    "mlp",
    "poisson",
    "gamma",
)
KeyKind = Literal["x25519-mlkem768", "p384", "rsa-4096-oaep"]
"""As in `protocols.sealing.recipient_keys`."""
MIN_ROWS = 10
"""The fewest rows about which anything may be revealed: the threshold that statistical offices use
for the cells of a table."""
MIN_BATCH_ROWS = 8
"""Batches of 8 are the smallest in common use."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rules]` of a party's or dealer's file."""

    recipients: tuple[str, ...]
    """Who may get a model that is trained on our data, or read its metrics if these are sealed."""
    dealers: tuple[str, ...]
    """Who may deal: the dealer together with any one evaluator could read all data. A dealer's own
    file names itself."""
    evaluators: tuple[str, ...]
    """Who may compute: all evaluators together could read all data."""
    metrics: tuple[Metric | OverFolds, ...] = ()
    """Which metrics may be revealed; `cv_accuracy` and the like are means over folds."""
    disclosures: tuple[Disclosure, ...] = ()
    """What may be revealed besides metrics and the model (`outputs.Disclosure`)."""
    models: tuple[ModelKind, ...] = ALL_MODELS
    """Which kinds of models may be trained (`model.kind` of the job)."""
    recipient_keys: tuple[KeyKind, ...] = ("x25519-mlkem768",)
    """To which kinds of keys results may be sealed (`mpc-train identity new --recipient-key`); the
    others, "rsa-4096-oaep" and "p384", are not post-quantum."""
    modules: tuple[str, ...] = ()
    """The installed factories (`package.module:factory`) that a job may call here for its
    network."""
    least_parties: int = 2
    """The fewest owners of data: with two, each can subtract its own part from a total."""
    least_test_rows: int = 20
    """The fewest rows over which a metric is taken."""
    least_group: int = MIN_ROWS
    """The fewest rows of a group whose metric is revealed, and whose mean fills missing cells
    (`reveal.least_group` of the job), and the fewest of our own rows among those of a metric, if
    any: others can subtract theirs."""
    least_batch_rows: int = MIN_BATCH_ROWS
    """The fewest rows of a step."""
    least_effective_rows: int = MIN_ROWS
    """The fewest effective rows of the result, in all and of ours (`effective_rows`)."""
    least_difference: int = MIN_ROWS
    """The fewest of our rows by which two jobs over one table may differ, if they train or are
    measured on different rows of it: the difference of their results is about those rows."""
    repeats: int = 1
    """How many runs may reveal metrics with noise over one table: each adds its ε, and averages
    away the noise of the others."""
    jobs: tuple[str, ...] = ()
    """Digests (hexadecimal, as `mpc-train job check` prints them) of jobs that may run without
    asking a person."""
    approvers: tuple[str, ...] = ()
    """Who may approve jobs instead of that person, by name in the roster, with `mpc-train job
    approve`."""


LEAST = (
    "least_parties",
    "least_test_rows",
    "least_group",
    "least_batch_rows",
    "least_effective_rows",
    "least_difference",
    "repeats",
)
"""Numbers in `Rules`, at least 1; 0 for rows of a step or effective rows switches that rule off."""


@dataclass
class _Broken:
    """The sentences that say how a job breaks the rules."""

    rules: Rules
    job: Job
    me: str
    found: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    """By key, the list that would allow the unlisted names."""

    def unlisted(self, key: str, names: list[str], what: str) -> None:
        """Require `names` to be listed under `key`; what: the rest of the sentence about them."""
        missing = [name for name in dict.fromkeys(names) if name not in getattr(self.rules, key)]
        if missing:
            self.found.append(f"{', '.join(missing)} {what} but is not listed under {key}")
            self.lists[key] = [*getattr(self.rules, key), *missing]

    def advice(self) -> str:
        """Advice on what to write, for an organisation that agrees."""
        lines = "; ".join(f"{key} = {quoted(names)}" for key, names in self.lists.items())
        if not lines:
            return "Change [rules] in this node's file only if your organisation agrees."
        return (
            "Only if your organisation agrees, change [rules] in this node's file; to allow "
            f"what is not listed, write {lines}"
        )

    def fewer(self, key: str, rows: float, what: str) -> None:
        """Report that there are fewer `rows` of something than the rules require; what: the
        sentence."""
        if rows < getattr(self.rules, key):
            self.found.append(f"{what}, {key} = {getattr(self.rules, key)}")


def check_rules(rules: Rules, job: Job, me: str) -> None:
    """Raise RefusedError that names everything in `job` that breaks the rules of the node `me`."""
    # Checks whose time depends on the job's numbers come last, for a job that satisfies the others.
    for checks in ((_check_roles, _check_outputs, _check_least), (_check_ours, _check_sum)):
        broken = _Broken(rules, job, me)
        for check in checks:
            check(broken)
        if broken.found:
            raise RefusedError(
                f"the job {job.name!r} breaks this node's rules: {'; '.join(broken.found)}. "
                f"Nothing was shared. {broken.advice()}"
            )


def _check_roles(broken: _Broken) -> None:
    rules, job = broken.rules, broken.job
    broken.unlisted("dealers", [job.dealer], "would deal")
    broken.unlisted("evaluators", list(job.evaluators), "would compute")
    if job.model.kind not in rules.models:
        broken.found.append(f"a {job.model.kind} model is not listed under models")
    if job.model.module:
        broken.unlisted("modules", [job.model.module], "would be called")
    if len(job.owners) < rules.least_parties:
        broken.found.append(
            f"{len(job.owners)} owners provide data, least_parties = {rules.least_parties}"
        )


def _check_outputs(broken: _Broken) -> None:
    """Check that the rules allow every output."""
    job = broken.job
    words: dict[str, list[str]] = {"recipients": [], "metrics": [], "disclosures": [], "always": []}
    unknown = []
    for output in leaving(job):
        for needed in (found := words_for(job, output)):
            words[needed.key].append(needed.word)
        if not found:
            unknown.append(output)
    broken.unlisted("recipients", words["recipients"], "would receive results")
    broken.unlisted("metrics", words["metrics"], "would be revealed")
    broken.unlisted("disclosures", words["disclosures"], "would be disclosed")
    if unknown:
        broken.found.append(f"{', '.join(unknown)} would leave the run, but no rule covers it")


def _check_least(broken: _Broken) -> None:
    """Check that no metric and no step is taken over too few rows."""
    job, reveal = broken.job, broken.job.reveal
    metrics = {*reveal.metrics, *reveal.per_party}
    if metrics or disclosed_on_the_way(job):
        least = reveal.least_test_rows
        broken.fewer("least_test_rows", least, f"metrics are allowed over {least} rows")
    least = reveal.least_group
    if not metrics <= UNGROUPED:
        broken.fewer("least_group", least, f"metrics of groups of {least} rows are allowed")
    if job.pipeline.filled:
        what = f"means of {least} rows may fill missing cells"
        broken.fewer("least_group", least, what)
    if not is_newton(job):
        batch = job.train.batch_size
        broken.fewer("least_batch_rows", batch, f"a step takes {count(batch)}")


def _check_ours(broken: _Broken) -> None:
    """Check that no metric is taken over too few of our rows."""
    job = broken.job
    if job.reveal.metrics and broken.me in job.owners and job.data.partition == "rows":
        ours = held_out_rows(job)[broken.me]
        if ours:
            what = f"only {ours} of the rows that metrics are taken over are {broken.me}'s, and "
            broken.fewer("least_group", ours, what + "the owner of the others can subtract them")


def _check_sum(broken: _Broken) -> None:
    """Check that the result is effectively a sum over enough rows, and over enough of ours."""
    job, me = broken.job, broken.me
    if not broken.rules.least_effective_rows:
        return
    found = effective_rows(job)
    how = "by the job's rates, decay, schedule and weights"
    broken.fewer(
        "least_effective_rows", found.pooled, f"{how} the result is {count(found.pooled)} in effect"
    )
    if me in found.owners:
        rows = found.owners[me]
        what = f"{how} the result is {count(rows)} of {me}'s in effect"
        broken.fewer("least_effective_rows", rows, what)


def count(rows: float) -> str:
    """An effective number of rows as text: never rounded up."""
    whole = int(rows * 10 + 1e-9) / 10
    return f"{whole:g} row{'' if whole == 1 else 's'}"
