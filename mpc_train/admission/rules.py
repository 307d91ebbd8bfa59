"""What this organisation allows, for every job that is proposed to it.

The rules are in the node's own file or in a signed policy (`admission.policy`), and are checked
before the node signs, reads its data into a run or sends anything. Omission allows nothing:
recipients, dealers, evaluators and metrics must be listed, and the minimum numbers hold by default.
A job that satisfies the rules is still shown to a person, or must be named by its digest or
approved by approvers (`node.consent`).
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from math import inf
from typing import Annotated, Literal

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
from mpc_train.jobs.privacy import Neighbours
from mpc_train.jobs.reveal import Metric
from mpc_train.jobs.schedule import is_newton, secret_training_size, training_sizes
from mpc_train.jobs.serve import Answer, decimals_words
from protocols.names import NAME

_Accepted = Annotated[
    tuple[str, ...],
    msgspec.Meta(description="the names that your organisation accepts in any job"),
]
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


class PrivacyRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rules.privacy]`: what a job must promise by differential privacy (`[privacy]` of the job),
    and how much all jobs over one table may cost together."""

    required: bool = True
    """Whether a job without `[privacy]` is refused."""
    max_epsilon: Decimal | None = None
    """The largest ε of a job; if omitted, any."""
    max_delta: Decimal | None = None
    """The largest δ of a job; if omitted, any."""
    units: tuple[str, ...] | None = None
    """For whom a job may make the promise (`privacy.unit` of the job): "row", or columns; if
    omitted, any. With a column that identifies a patient, a promise for one row is refused."""
    neighbours: tuple[Neighbours, ...] | None = None
    """With which data sets a job may compare (`privacy.neighbours` of the job); if omitted, any."""
    budget_epsilon: Decimal | None = None
    """The ε of all runs over one of our tables together, which add up; if omitted, any. A run
    counts from when all have signed, and once if it goes on after a break."""
    budget_delta: Decimal | None = None
    """The δ of all runs over one of our tables together."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rules]` of a party's or dealer's file, or of its policy."""

    recipients: _Accepted
    """Who may get a model that is trained on our data, or read its metrics if these are sealed."""
    dealers: _Accepted
    """Who may deal: the dealer together with any one evaluator could read all data. A dealer's own
    file names itself."""
    evaluators: _Accepted
    """Who may compute: all evaluators together could read all data."""
    metrics: tuple[Metric | OverFolds, ...] = ()
    """Which metrics may be revealed; `cv_accuracy` and the like are means over folds."""
    disclosures: tuple[Disclosure, ...] = ()
    """What may be revealed besides metrics and the model (`outputs.Disclosure`)."""
    clients: tuple[str, ...] = ()
    """Who may ask a model that stays in shares (`serve.clients` of the job)."""
    validators: tuple[str, ...] = ()
    """Who may measure such a model on rows of its own (`serve.validators` of the job)."""
    answers: tuple[Answer, ...] = ()
    """What clients may get: "class" says least, "number" most (`serve.answer` of the job)."""
    max_rows_a_day: int = 1000
    """The most rows that each client may ask on one day."""
    max_decimals: int | None = None
    """The most decimals of numbers and probabilities that clients get; if omitted, any, and
    unrounded ones."""
    max_drift_epsilon: float = 0.0
    """The most ε with which each window of the rows that are asked, and once the training rows, may
    be counted to watch drift (`serve.drift` of the job); 0: none is. For the training rows
    `disclosures` must list "training_counts", too."""
    models: tuple[ModelKind, ...] = ALL_MODELS
    """Which kinds of models may be trained (`model.kind` of the job)."""
    recipient_keys: tuple[KeyKind, ...] = ("x25519-mlkem768",)
    """To which kinds of keys results may be sealed (`mpc-train identity new --recipient-key`); the
    others, "rsa-4096-oaep" and "p384", are not post-quantum."""
    modules: tuple[str, ...] = ()
    """The installed factories (`package.module:factory`) that a job may call here for its
    network."""
    purposes: tuple[str, ...] | None = None
    """Which purposes a job may have, and it must state at least one (`purpose.purposes` of the
    job); if omitted, any, or none."""
    categories: tuple[str, ...] | None = None
    """Which kinds of data a job may use, and it must state at least one (`purpose.categories` and
    `purpose.columns` of the job); if omitted, any, or none."""
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
    """How many runs may reveal numbers with noise over one table: each adds its ε, and averages
    away the noise of the others. Runs with `[privacy]` count against `privacy.budget_epsilon`
    instead, if there is one."""
    privacy: PrivacyRules | None = None
    """A table of rules about differential privacy; if omitted, a job need not promise any."""
    jobs: tuple[str, ...] = ()
    """Digests (hexadecimal, as `mpc-train job check` prints them) of jobs that may run without
    asking a person."""
    approvers: tuple[str, ...] = ()
    """Who may approve jobs instead of that person, by name in the roster, with `mpc-train job
    approve`."""
    approvals: int = 0
    """How many different approvers must have approved a job: nothing else is then enough, neither
    `jobs` nor a person at the terminal. 0: one of these or one approver is."""
    approvals_valid_days: int = 90
    """How many days an approval counts, from the day that it bears."""
    separate: bool = True
    """Whether, with two approvals or more, the node's own identity and the operators cannot give
    one of them."""
    operators: tuple[str, ...] = ()
    """Whose identities may run this node, by name in the roster; if omitted, its own."""
    auditors: tuple[str, ...] = ()
    """Who may read the node's audit log with `mpc-train audit show`, by name in the roster; if
    omitted, who has the node's identity."""


LEAST = (
    "least_parties",
    "least_test_rows",
    "least_group",
    "least_batch_rows",
    "least_effective_rows",
    "least_difference",
    "repeats",
    "max_rows_a_day",
    "approvals",
    "approvals_valid_days",
)
"""Numbers in `Rules`, at least 1 except for those of `MAY_BE_0`."""
MAY_BE_0 = ("least_batch_rows", "least_effective_rows", "approvals")
"""0 switches these off."""
NAMED = (
    *("recipients", "dealers", "evaluators", "clients", "validators", "purposes", "categories"),
    *("approvers", "operators", "auditors"),
)
"""Lists of names."""


def rule_faults(rules: Rules) -> list[tuple[str, str]]:
    """Key and message of each value in `[rules]` that is out of its bounds or contradicts
    another."""
    found = []
    for key in NAMED:
        for name in getattr(rules, key) or ():
            if not NAME.match(name):
                found.append((f"rules.{key}", f"{name!r} is not a name: use a-z, 0-9 and -"))
    for key in LEAST:
        fewest = 0 if key in MAY_BE_0 else 1
        if getattr(rules, key) < fewest:
            found.append((f"rules.{key}", f"at least {fewest}"))
    if rules.max_decimals is not None and rules.max_decimals < 0:
        found.append(("rules.max_decimals", "at least 0"))
    if not 0 <= rules.max_drift_epsilon < inf:
        found.append(("rules.max_drift_epsilon", "at least 0"))
    if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in rules.jobs):
        found.append(("rules.jobs", "a digest has 64 hexadecimal digits"))
    found += _privacy_faults(rules.privacy)
    if rules.approvals and rules.jobs:
        what = f"approvals = {rules.approvals} makes a listed digest insufficient; remove one"
        found.append(("rules.jobs", what))
    able = set(rules.approvers) - (set(rules.operators) if separates(rules) else set())
    if rules.approvals > len(able):
        what = f"{rules.approvals} are needed, and only {len(able)} of the approvers can give one"
        found.append(("rules.approvals", what))
    return found


def _privacy_faults(rules: PrivacyRules | None) -> list[tuple[str, str]]:
    found = []
    for key in ("max_epsilon", "max_delta", "budget_epsilon", "budget_delta"):
        value = None if rules is None else getattr(rules, key)
        if value is not None and not (value.is_finite() and value > 0):
            found.append((f"rules.privacy.{key}", "a finite number above 0"))
    if rules is not None and (rules.budget_epsilon is None) != (rules.budget_delta is None):
        found.append(("rules.privacy", "write both budget_epsilon and budget_delta, or neither"))
    return found


def separates(rules: Rules) -> bool:
    """Whether the operator's identities cannot approve."""
    return rules.separate and rules.approvals >= 2


@dataclass
class _Broken:
    """The sentences that say how a job breaks the rules."""

    rules: Rules
    job: Job
    me: str
    today: date
    found: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    """By key, the list that would allow the unlisted names."""

    def unlisted(self, key: str, names: list[str], what: str) -> None:
        """Require `names` to be listed under `key`; what: the rest of the sentence about them."""
        allowed: tuple[str, ...] = getattr(self.rules, key)
        missing = [name for name in dict.fromkeys(names) if name not in allowed]
        if missing:
            self.found.append(f"{', '.join(missing)} {what} but is not listed under {key}")
            self.lists[key] = [*allowed, *missing]

    def advice(self) -> str:
        """Advice on what to write, for an organisation that agrees."""
        lines = "; ".join(f"{key} = {quoted(names)}" for key, names in self.lists.items())
        if not lines:
            return "Change these [rules] only if your organisation agrees."
        return (
            "Only if your organisation agrees, change these [rules]; to allow what is not listed, "
            f"write {lines}"
        )

    def fewer(self, key: str, rows: float, what: str) -> None:
        """Report that there are fewer `rows` of something than the rules require; what: the
        sentence."""
        if rows < getattr(self.rules, key):
            self.found.append(f"{what}, {key} = {getattr(self.rules, key)}")


def today() -> date:
    """The present day, UTC."""
    return datetime.now(UTC).date()


def check_rules(rules: Rules, job: Job, me: str, day: date | None = None) -> None:
    """Raise RefusedError that names everything in `job` that breaks the rules of the node `me`.

    day: on which the job is to be signed, UTC; by default, the present one.
    """
    day = day or today()
    # Checks whose time depends on the job's numbers come last, for a job that satisfies the others.
    first = (
        *(_check_roles, _check_purpose, _check_outputs, _check_serve, _check_least),
        _check_privacy,
    )
    for checks in (first, (_check_ours, _check_sum)):
        broken = _Broken(rules, job, me, day)
        for check in checks:
            check(broken)
        if broken.found:
            raise RefusedError(
                f"the job {job.name!r} breaks this node's rules: {'; '.join(broken.found)}. "
                f"Nothing was shared. {broken.advice()}"
            )


def check_serving(rules: Rules, job: Job, me: str) -> None:
    """Raise RefusedError unless the rules, which may be others than when the job was signed, allow
    that its model is served."""
    broken = _Broken(rules, job, me, today())
    _check_serve(broken)
    if broken.found:
        raise RefusedError(
            f"the model {job.name!r} is not served by this node's rules: "
            f"{'; '.join(broken.found)}. {broken.advice()}"
        )


def check_table_rows(rules: Rules, job: Job, me: str, rows: int) -> None:
    """Raise RefusedError if the owner `me`, whose table has so many rows, would train on too few of
    them: where their number is secret, the job does not say it."""
    if not job.federates or job.federated.sizes == "public":
        return
    ours = secret_training_size(job, rows)
    if ours < rules.least_effective_rows:
        raise RefusedError(
            f"{me} would train on {count(ours)} of its own for the job {job.name!r}, "
            f"least_effective_rows = {rules.least_effective_rows}. Nothing was shared. Change "
            "these [rules] only if your organisation agrees."
        )


def _check_roles(broken: _Broken) -> None:
    rules, job = broken.rules, broken.job
    broken.unlisted("dealers", [job.dealer], "would deal")
    broken.unlisted("evaluators", list(job.evaluators), "would compute")
    if job.federates:
        broken.fewer(
            "least_parties",
            job.federated.least_owners,
            f"a round is opened with {job.federated.least_owners} owners",
        )
    if job.model.kind not in rules.models:
        broken.found.append(f"a {job.model.kind} model is not listed under models")
    if job.model.module:
        broken.unlisted("modules", [job.model.module], "would be called")
    if job.trains and len(job.owners) < rules.least_parties:
        broken.found.append(
            f"{len(job.owners)} owners provide data, least_parties = {rules.least_parties}"
        )


def _check_purpose(broken: _Broken) -> None:
    """Check that the job is for a purpose that the rules list, of data that they list, in time."""
    rules, job = broken.rules, broken.job
    stated = {"purposes": job.purpose.purposes, "categories": job.categories}
    whats = {"purposes": "is a purpose of the job", "categories": "is a kind of data that it uses,"}
    for key, names in stated.items():
        if getattr(rules, key) is None:
            continue
        if not names:
            broken.found.append(f"the job states no {key} in [purpose], and {key} are limited here")
        broken.unlisted(key, list(names), whats[key])
    broken.found += expired(job, broken.today)


def expired(job: Job, day: date) -> list[str]:
    """A sentence that says so if nodes may not sign the job on this day any more."""
    until = job.purpose.valid_until
    if until is None or day <= until:
        return []
    return [
        f"it may be signed until {until} (valid_until in its [purpose]), and today is {day} (UTC)"
    ]


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


def _check_privacy(broken: _Broken) -> None:
    """Check that the job promises as much as the rules require, if it reveals anything of rows."""
    rules, job = broken.rules.privacy, broken.job
    if rules is None:
        return
    privacy = job.privacy
    if not privacy:
        if rules.required and any(job.data.rows.values()):
            broken.found.append(
                "it has no [privacy], so that nothing bounds what its results say about one row "
                "(privacy.required)"
            )
        return
    for key, value in (("max_epsilon", privacy.epsilon), ("max_delta", privacy.small_delta)):
        most = getattr(rules, key)
        if most is not None and value > most:
            what = "ε" if key == "max_epsilon" else "δ"
            broken.found.append(f"its {what} is {value}, privacy.{key} = {most}")
    if rules.units is not None and privacy.unit not in rules.units:
        broken.found.append(
            f"it promises privacy for one {privacy.unit}, privacy.units = {quoted(rules.units)}"
        )
    if rules.neighbours is not None and privacy.neighbours not in rules.neighbours:
        broken.found.append(
            f"its neighbours are {privacy.neighbours}, privacy.neighbours = "
            f"{quoted(rules.neighbours)}"
        )


def _check_serve(broken: _Broken) -> None:
    """Check that the rules allow who asks the model, how much, and what comes out."""
    rules, serve = broken.rules, broken.job.serve
    if serve is None:
        return
    broken.unlisted("validators", list(serve.validators), "could measure the model")
    if not serve.clients:
        return
    broken.unlisted("clients", list(serve.clients), "could ask the model")
    broken.unlisted("answers", [serve.answer], "would leave to clients")
    if serve.rows_a_day > rules.max_rows_a_day:
        broken.found.append(
            f"each client could ask {serve.rows_a_day} rows a day, max_rows_a_day = "
            f"{rules.max_rows_a_day}"
        )
    drift = serve.watched
    if drift is not None:
        if float(drift.epsilon) > rules.max_drift_epsilon:
            whose = "training rows and " if broken.job.counts_training else ""
            broken.found.append(
                f"{whose}rows that are asked would be counted with ε = {drift.epsilon} to watch "
                f"drift, max_drift_epsilon = {rules.max_drift_epsilon:g}"
            )
        least = broken.job.reveal.least_group
        broken.fewer("least_group", least, f"drift is watched over windows of {least} real rows")
    most, decimals = rules.max_decimals, serve.decimals
    if most is not None and serve.answer != "class" and (decimals is None or decimals > most):
        how = "unrounded" if decimals is None else f"with {decimals_words(decimals)}"
        broken.found.append(f"clients would get answers {how}, max_decimals = {most}")


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
    if job.trains and not job.federates and not is_newton(job):
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
    if not broken.rules.least_effective_rows or not job.trains:
        return
    if job.federates:
        if me in job.owners and job.federated.sizes == "public":
            ours = training_sizes(job)[me]
            broken.fewer(
                "least_effective_rows", ours, f"{me} would train on {count(ours)} of its own"
            )
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
