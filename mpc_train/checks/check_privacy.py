"""What `[privacy]` must satisfy, and what cannot be combined with it.

A job with `[privacy]` states that its ε and δ hold for everything that it reveals. So what reveals
something of rows without noise is refused, and so is what lets one row change how others count: the
norm of a clipped gradient then says nothing about how much one unit changes the sum.
"""

from decimal import Decimal
from fractions import Fraction
from math import log, log1p

from msgspec import UNSET

from mpc_train.base.problem import JobProblem, Problems, number
from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.jobs.privacy import ROW, SITE, Privacy
from mpc_train.jobs.schedule import is_newton, steps_per_epoch
from mpc_train.privacy.accounting import (
    counts_cost,
    multiplier_bound,
    sampler_fits,
    training_epsilon,
)
from mpc_train.privacy.costs import Refusal, entries, total
from mpc_train.privacy.newton import NOISY
from mpc_train.privacy.words import table
from protocols.noise.banded import MOST_BANDS

MIN_EPSILON, MAX_EPSILON = Decimal("0.01"), 20
"""Above, a promise allows conclusions that are half a billion times as likely."""
MIN_DELTA, MAX_DELTA = Decimal("1e-12"), Decimal("0.01")
MIN_CLIP, MAX_CLIP = Decimal("0.001"), 1024
MAX_COUNT = 1 << 12
"""The mean of counts, with which a Poisson regression begins, is found up to this."""
MAX_ROWS_OF_UNIT = 1_000_000
LEAST_SHARE = Decimal("0.01")
"""Below, statistics or training would have more than ten times the noise of the whole budget."""
LEAST_DEVIATIONS = Decimal("0.01"), Decimal("0.5")
"""Scaled inputs are at most 2 divided by it: far below the bound of inputs that fit the ring."""
MAX_NOISE_BITS = 54
"""The noise of a round's sum has a standard deviation of less than 2^54 words, so that all nodes'
parts together stay below 2^62 (`protocols.noise`)."""
NORM_WORDS = (1 << 22) + (1 << 13)
"""No update is longer, in words (`federated.limits`)."""


def check_privacy(job: Job) -> None:
    """Raise JobProblem with the contradictions in `[privacy]` and in what it is combined with, and
    then, with a table, if all that is revealed costs more than the budget."""
    privacy, found = job.privacy, Problems()
    if not privacy:
        return
    sites = (_check_epsilon, _check_delta, _check_reach, _check_site, _check_site_clip)
    units = (
        _check_epsilon,
        _check_delta,
        _check_reach,
        _check_unit,
        _check_clip,
        _check_sum_clip,
        _check_newton,
        _check_bands,
        _check_statistics,
        _check_identifiers,
    )
    for check in sites if job.federates else units:
        with found.noting():
            check(job, privacy)
    for key, there, why in () if job.federates else _mixing(job):
        if there:
            with found.noting():
                raise JobProblem(key, why)
    with found.noting():
        for refusal in entries(job):
            if isinstance(refusal, Refusal):
                with found.noting():
                    why = f"with [privacy]: {refusal.name}: {refusal.why}"
                    raise JobProblem(refusal.key, why)
    found.check()
    _check_left(job, privacy)
    _check_numbers(job)
    if job.federates:
        _check_fits(job, privacy)
    _check_spent(job, privacy)


def _check_epsilon(job: Job, privacy: Privacy) -> None:
    if not MIN_EPSILON <= number("privacy.epsilon", privacy.epsilon) <= MAX_EPSILON:
        raise JobProblem("privacy.epsilon", f"between {MIN_EPSILON} and {MAX_EPSILON}")


def _check_delta(job: Job, privacy: Privacy) -> None:
    if not MIN_DELTA <= number("privacy.delta", privacy.small_delta) <= MAX_DELTA:
        raise JobProblem("privacy.delta", "between 1e-12 and 0.01")
    rows = job.rows
    if rows * privacy.small_delta > 1:
        raise JobProblem(
            "privacy.delta",
            f"above 1 divided by the {rows} rows: a mechanism that publishes one row as it is "
            "would satisfy it; write at most "
            f"{_below(rows)}",
        )


def _check_reach(job: Job, privacy: Privacy) -> None:
    """Raise JobProblem for each column that has neither center nor scale and whose declared range
    goes beyond `data.limit`: its owner refuses the cells there (`owners.local.check_cells`), and
    that a run ends over a cell is outside of the budget.

    Where they are declared the range may be wider than what occurs, as a guard against mistakes.
    """
    limit, found = float(job.data.limit), Problems()
    array = job.data.array
    for name, (least, most) in _as_they_are(job).items():
        if max(abs(least), abs(most)) <= limit:
            continue
        center, scale = (least + most) / 2, (most - least) / 2
        key, other = "data.features", ', or scale = "standard" or a narrower clip under [prepare]'
        if array is not UNSET:
            name, key = array.name, "data.array"
        elif name == job.label.name:
            key, other = "data.label", ""
        with found.noting():
            raise JobProblem(
                key,
                f"{name!r} may be {least:g} to {most:g} and has no center and scale, but its owner "
                f"refuses numbers beyond ±{limit:g} (data.limit), and so ends the run; write "
                f'{{ name = "{name}", center = {center:g}, scale = {scale:g} }}{other}, or raise '
                "data.limit",
            )
        if array is not UNSET:
            break
    found.check()


def _as_they_are(job: Job) -> dict[str, tuple[float, float]]:
    """By name, the declared range of columns of numbers that nothing scales, after clip and
    logarithm."""
    found = {}
    for term in job.pipeline.terms:
        bounds = term.clip or job.schema[term.column].bounds
        plain = term.part == "number" and not term.scaled and (term.center, term.scale) == (0, 1)
        if bounds is None or not plain or term.power > 1:
            continue
        if term.log is not None:
            least, most = map(log if term.log == "log" else log1p, bounds)
            bounds = least, most
        found[term.column] = bounds
    label, bounds = job.label, job.schema[job.label.name].bounds
    counts = bool(job.classes) or job.model.kind in LOGARITHMIC
    if bounds is not None and not counts and label.center == 0 and label.scale == 1:
        found[label.name] = bounds
    return found


def _below(rows: int) -> str:
    """The largest power of ten of at most 1 / rows."""
    return f"1e-{len(str(rows - 1)) if rows > 1 else 1}"


def _check_unit(job: Job, privacy: Privacy) -> None:
    if job.refreshes:
        raise JobProblem("privacy", "nothing is computed from rows; remove it")
    if privacy.unit == ROW:
        if privacy.most_rows is not None:
            raise JobProblem("privacy.most_rows", "a row is one row; remove it")
        return
    if privacy.unit != job.data.split_by:
        raise JobProblem(
            "privacy.unit",
            f'write "{ROW}", or the identifier of data.split_by, whose rows stay in one part of '
            "the split"
            + (f": {job.data.split_by!r}" if job.data.split_by else "; the job has none"),
        )
    most = privacy.most_rows
    if most is None:
        raise JobProblem(
            "privacy.most_rows",
            f"write the most rows that one {privacy.unit} has in a table, like most_rows = 4: "
            "without a bound there is none on what one of them changes",
        )
    if not 1 <= most <= min(MAX_ROWS_OF_UNIT, job.rows):
        raise JobProblem("privacy.most_rows", "between 1 and the number of rows")


def _check_site(job: Job, privacy: Privacy) -> None:
    """Of a federated job, whose units are owners."""
    if privacy.unit != SITE:
        raise JobProblem(
            "privacy.unit",
            f'write "{SITE}": after local steps nothing bounds what one row changes in an update, '
            "only the norm of a whole update is, so that the promise is for an owner with all its "
            "rows, and holds for each of them too",
        )
    if privacy.most_rows is not None:
        raise JobProblem("privacy.most_rows", "an owner has all its rows; remove it")
    if privacy.identifiers is not UNSET:
        raise JobProblem("privacy.identifiers", "the job links no records; remove it")
    if privacy.statistics is not UNSET:
        raise JobProblem("privacy.statistics", "an owner prepares its own rows; remove it")
    if privacy.bands != 1:
        raise JobProblem("privacy.bands", "the noise of each round is independent; remove it")


def _check_site_clip(job: Job, privacy: Privacy) -> None:
    if privacy.clip is not None:
        raise JobProblem(
            "privacy.clip", "train.federated.clip is the largest norm of an update; remove this"
        )


def _check_fits(job: Job, privacy: Privacy) -> None:
    """Raise JobProblem if the noise of a federated job may leave the ring."""
    times = 2 if privacy.neighbours == "replaced" else 1
    weight = 1 if job.federated.weighting == "equal" else max(job.data.rows.values())
    if multiplier_bound(job) * times * weight * NORM_WORDS >= 1 << MAX_NOISE_BITS:
        raise JobProblem(
            "privacy.epsilon",
            "so much noise for the sum of a round leaves no room for it in words of 64 bits; raise "
            'epsilon, or write weighting = "equal" under [train.federated]',
        )


def _check_clip(job: Job, privacy: Privacy) -> None:
    key = "privacy.clip"
    if not job.trains:
        if privacy.clip is not None:
            raise JobProblem(key, "nothing is trained; remove it")
        return
    if privacy.clip is None:
        raise JobProblem(
            key,
            "declare the largest norm of what one unit adds to the sum of gradients, like clip = "
            "1: without it there is no bound on what one of them changes",
        )
    if not MIN_CLIP <= number(key, privacy.clip) <= MAX_CLIP:
        raise JobProblem(key, f"between {MIN_CLIP} and {MAX_CLIP}")


def _check_sum_clip(job: Job, privacy: Privacy) -> None:
    if job.trains and job.train.clip is not None:
        raise JobProblem(
            "train.clip",
            "clips the sum over a batch, to which the contributions of others belong; remove it: "
            "privacy.clip clips what each unit adds",
        )


def _check_newton(job: Job, privacy: Privacy) -> None:
    """What Newton steps with noise take."""
    key, kind, settings = "privacy.clip_label", job.model.kind, job.train.optimizer
    labels = is_newton(job) and kind in ("linear", "poisson")
    if not labels and privacy.clip_label is not None:
        raise JobProblem(
            key,
            "bounds labels in Newton steps of a linear or Poisson regression; remove it: "
            "privacy.clip alone bounds what each unit adds",
        )
    if not is_newton(job):
        return
    if kind not in NOISY:
        raise JobProblem(
            "train.optimizer.name",
            f"there is no noise for Newton steps of a {kind} regression, whose residuals have no "
            f"useful bound; with [privacy] take one of {', '.join(NOISY)}",
        )
    if settings.l1:
        raise JobProblem(
            "train.optimizer.l1",
            "with [privacy] Newton steps have an L2 penalty alone, which keeps a matrix with noise "
            "invertible; write l2 instead",
        )
    for where, there, what in (
        ("prepare", bool(job.pipeline.secret), "secret statistics of [prepare]"),
        ("prepare.interactions", bool(job.pipeline.interactions), "products of inputs"),
        ("data.partition", job.data.partition != "rows", "columns of several owners"),
        ("data.weight", bool(job.weight), "weights of rows"),
    ):
        if there:
            raise JobProblem(
                where,
                f"with [privacy] and Newton steps no owner can bound a row with {what}, and norms "
                "are not computed over shares for these steps; train by steps of gradients "
                "(optimizer = sgd or adam), or do without",
            )
    if labels and privacy.clip_label is None:
        raise JobProblem(
            key,
            "declare how large a label counts at most, centred and scaled, like clip_label = 1: "
            "without it there is no bound on what one unit changes",
        )
    if privacy.clip_label is not None:
        most = MAX_COUNT if kind == "poisson" else MAX_CLIP
        if not MIN_CLIP <= number(key, privacy.clip_label) <= most:
            raise JobProblem(key, f"between {MIN_CLIP} and {most}")


def _check_bands(job: Job, privacy: Privacy) -> None:
    key, bands = "privacy.bands", privacy.bands
    if not job.trains and bands != 1:
        raise JobProblem(key, "nothing is trained; remove it")
    if not 1 <= bands <= MOST_BANDS:
        raise JobProblem(key, f"between 1 and {MOST_BANDS}")
    if bands > 1 and is_newton(job):
        raise JobProblem(key, "the noise of each Newton step is independent; remove it")
    if bands > 1 and bands > steps_per_epoch(job):
        raise JobProblem(
            key,
            f"an epoch has {steps_per_epoch(job)} steps, so that a row would be in two of {bands} "
            "whose noise depends on one another; write at most that many, or a smaller "
            "train.batch_size",
        )


def _check_statistics(job: Job, privacy: Privacy) -> None:
    key, settings = "privacy.statistics", privacy.of_statistics
    if not job.has_noisy_statistics:
        if privacy.statistics is not UNSET:
            raise JobProblem(key, "[prepare] finds no statistics over shares; remove it")
        return
    share = number(f"{key}.share", settings.share)
    if not LEAST_SHARE <= share <= 1 - LEAST_SHARE:
        raise JobProblem(f"{key}.share", f"between {LEAST_SHARE} and {1 - LEAST_SHARE}")
    low, high = LEAST_DEVIATIONS
    if not low <= number(f"{key}.least_deviation", settings.least_deviation) <= high:
        raise JobProblem(
            f"{key}.least_deviation", f"between {low} and {high}, in halves of a column's range"
        )


def _check_identifiers(job: Job, privacy: Privacy) -> None:
    if privacy.identifiers is not UNSET and job.data.link is None:
        raise JobProblem("privacy.identifiers", "the job links no records; remove it")


def _check_numbers(job: Job) -> None:
    if job.trains and not sampler_fits(job):
        raise JobProblem(
            "privacy.delta",
            "too small for this ε and so many weights and steps: the sampler of the noise is not "
            "exact enough; raise delta, or lower epsilon or " + _repeated(job),
        )


def _repeated(job: Job) -> str:
    """The key that says how often a training adds noise."""
    if is_newton(job):
        return "train.optimizer.steps"
    return "train.federated.rounds" if job.federates else "train.epochs"


def _mixing(job: Job) -> list[tuple[str, bool, str]]:
    """Key, whether the job has it, and why one row then changes how others count, or something of
    rows is used that the budget does not cover."""
    start = job.train.warm_start
    unknown = start is not None and start.source != "public"
    batch_norm = job.trains and any(node.op == "batch_norm" for node in job.graph.nodes)
    return [
        (
            "train.loss.balanced",
            job.train.loss.balanced,
            "weighs each row by how many others have its class, so that one row changes the "
            "gradients of all; write class_weights or positive_weight",
        ),
        (
            "model",
            batch_norm,
            "a batch norm lets one row change the gradients of all others of its batch, and its "
            "running statistics have no noise; use a layer norm or a group norm",
        ),
        (
            "train.warm_start.source",
            unknown,
            "the budget does not cover what was trained before on rows that are not public; write "
            'source = "public"',
        ),
        (
            "train.warm_start.prepare",
            job.trains and bool(job.pipeline.secret) and not job.has_own_statistics,
            "the statistics of another model bound no input of a row, so that its norm has no "
            'bound; write prepare = "own"',
        ),
    ]


def _check_left(job: Job, privacy: Privacy) -> None:
    if job.trains and training_epsilon(job) < Fraction(MIN_EPSILON):
        raise JobProblem(
            "serve.drift.epsilon",
            f"counts of the training rows cost ε = {float(counts_cost(job)):g} for one "
            f"{privacy.unit}, and nothing is left of the budget of {privacy.epsilon} for training: "
            'lower it, raise privacy.epsilon, or write baseline = "first-window"',
        )


def _check_spent(job: Job, privacy: Privacy) -> None:
    spent = total(job)
    if spent.epsilon <= float(privacy.epsilon):
        return
    raise JobProblem(
        "privacy.epsilon",
        f"all that is revealed costs ε = {spent.epsilon:.4g}, more than the budget of "
        f"{privacy.epsilon}; raise it, lower reveal.noise.epsilon, or reveal less:\n  "
        + "\n  ".join(table(job)),
    )
