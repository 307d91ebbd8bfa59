"""What each output of a job costs of its budget, and which outputs cannot have a cost.

Every name of `outputs.leaving` has exactly one entry here, a `Cost` or a `Refusal` (`entries`): an
output that this module does not know ends with an error, and does not pass at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf, nextafter
from typing import TYPE_CHECKING, Literal

from mpc_train.jobs.audience import GLOBAL, OWN, RANGE, TRAINING_COUNTS, WITHIN, fold_outputs
from mpc_train.jobs.outputs import disclosed_on_the_way, leaving
from mpc_train.jobs.schedule import is_newton
from mpc_train.jobs.sealed import (
    of_solution,
    preparation_shapes,
    regression_shapes,
    sealed_tensors,
)
from mpc_train.privacy.accounting import budget, counts_cost, privacy_of, training_epsilon
from mpc_train.privacy.clip_plan import clipped_by_owners
from mpc_train.privacy.library import epsilon_of

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Side = Literal["training", "held-out", "own"]
"""Whose budget a cost is of: units that train, units that are held out, or nobody's."""
MODEL = "model"
"""The entry of all tensors of the model together, also if it stays in shares."""
STATISTICS = "statistics"
"""The entry of noisy means and deviations of `[prepare]`."""


@dataclass(frozen=True)
class Cost:
    """What revealing one output costs a unit at most. epsilon: at the job's δ, or at δ = 0 for
    `pure`. pure: exactly that ε, for metrics. outputs: the names that it covers."""

    name: str
    side: Side
    epsilon: float
    how: str
    outputs: tuple[str, ...]
    pure: Fraction = Fraction(0)
    within: str = ""
    """The entry whose ε includes this one's, which is then 0."""


@dataclass(frozen=True)
class Refusal:
    """An output that cannot be revealed within a budget. key: which key of the job to change."""

    name: str
    key: str
    why: str


@dataclass(frozen=True)
class Total:
    """What a job costs: the most that any unit pays, at the job's δ."""

    training: float
    held_out: float

    @property
    def epsilon(self) -> float:
        return max(self.training, self.held_out)


REFUSED: dict[str, tuple[str, str]] = {
    RANGE: (
        "train.guard",
        "it tells everybody whether a value of some row was too large, without noise; write guard "
        "= false: a training that diverges then ends like any other",
    ),
    "early_stopping": (
        "train.early_stopping",
        "it tells everybody after each check how the loss has changed, without noise; remove it, "
        "and choose the number of epochs",
    ),
    "guard": (
        "train.guard",
        "it tells everybody every few steps whether a value was too large, without noise; write "
        "guard = false",
    ),
    "training_loss": (
        "reveal.training_loss_every",
        "it tells everybody losses of batches, without noise; remove it",
    ),
    "overlap": (
        "data.join",
        "it tells how many records owners have in common, without noise; write identifiers = "
        '"unprotected" under [privacy] if the promise need not cover who is in which table, join '
        "the tables before the job, or remove check_duplicates",
    ),
    "membership": (
        "data.join.membership",
        "it tells owners which of their records others have; write identifiers = "
        '"unprotected" under [privacy] if the promise need not cover that, or join the tables '
        "before the job",
    ),
    "statistics": (
        "reveal.statistics",
        "it tells standard errors, which are computed from the rows without noise; remove it",
    ),
    "empty_columns": (
        "prepare.missing",
        "a mean that fills missing cells, and whether there is one, are computed from the rows "
        'without noise; write fill = a number for these columns, or missing = "error"',
    ),
    "extremes": (
        "prepare.scale",
        'the smallest and the largest value are cells of rows; write scale = "standard", whose '
        'sums have noise, or "declared", with center and scale or a range for each column',
    ),
}
"""By disclosure, the job's key that lists it, and why it has no cost. A new disclosure needs an
entry here, or a `Cost`."""

LINKAGE = ("overlap", "membership")
"""Disclosures of record linkage."""
METRICS: dict[str, str] = {
    "accuracy": "",
    "confusion": "",
    "mse": "one row changes it by as much as its error, for which there is no noise",
    "mae": "one row changes it by as much as its error, for which there is no noise",
    "r2": "it is a quotient of two sums, for which there is no noise",
    "log_loss": "one row changes it by as much as its loss, for which there is no noise",
    "auc": "one row changes the ranks of all others, and there is no noise for it",
    "precision": "it is a quotient of two counts; recipients compute it from confusion",
    "recall": "it is a quotient of two counts; recipients compute it from confusion",
    "f1": "it is a quotient of counts; recipients compute it from confusion",
    "calibration": "there is no noise for its bins",
}
"""By metric, why it cannot be revealed within a budget; empty: with reveal.noise it can.

A held-out row is one correct prediction or none, and is in one cell of a confusion matrix at most:
bits of comparisons are 0 or 1, and at most one class wins against all others, also where outputs
have wrapped around."""


def entries(job: Job) -> list[Cost | Refusal]:
    """One entry for each thing that the job reveals; the model first.

    Raises RuntimeError if something leaves that has no entry.
    """
    found: list[Cost | Refusal]
    if job.federates:
        found = _rounds(job)
    else:
        found = [*_model(job), *_statistics(job), *_counts(job), *_metrics(job), *_own(job)]
        found += _regression(job)
        found += [_disclosed_as(job, name) for name in _disclosed(job)]
        found += [
            Refusal(name, "reveal.folds", "further models are trained for it; remove folds")
            for name in fold_outputs(job)
        ]
    known: set[str] = set()
    for entry in found:
        known |= set(entry.outputs) if isinstance(entry, Cost) else {entry.name}
    missing = [name for name in leaving(job) if name not in known]
    if missing:
        raise RuntimeError(f"no cost is known for what leaves as {', '.join(missing)}")
    return found


def costs(job: Job) -> list[Cost]:
    """What each output costs."""
    return [entry for entry in entries(job) if isinstance(entry, Cost)]


def total(job: Job) -> Total:
    """What the job costs a unit that trains, and one that is held out.

    Asks the library only if metrics cost more than the budget by simple composition.
    """
    found = costs(job)
    training = sum((cost.epsilon for cost in found if cost.side == "training"), 0.0)
    return Total(training, _composed(job, [cost.pure for cost in found if cost.pure]))


def _composed(job: Job, pure: list[Fraction]) -> float:
    """ε at the job's δ of mechanisms that are purely ε-differentially private, together."""
    most = sum(pure, Fraction(0))
    if len(pure) < 2 or most <= Fraction(privacy_of(job).epsilon):
        return float(most)
    concentrated = epsilon_of([epsilon**2 / 2 for epsilon in pure], budget(privacy_of(job))[1])
    return min(float(most), concentrated)


def _model(job: Job) -> list[Cost]:
    """All that follows from the steps of training."""
    sealed = sealed_tensors(job)
    names = [name for name in sealed if name in job.shapes or of_solution(job, name)]
    if not job.trains:
        return []
    which = "on the sums of Newton steps" if is_newton(job) else "in every step"
    how = f"Gaussian noise {which}; all that follows from the weights costs nothing more"
    # The noise is computed so that it costs this at most, and nearly this (`accounting`).
    return [Cost(MODEL, "training", _left_for_training(job), how, tuple(names))]


def _left_for_training(job: Job) -> float:
    left = training_epsilon(job)
    return _downwards(left) if counts_cost(job) else float(left)


def _counts(job: Job) -> list[Cost | Refusal]:
    """Counts of the training rows, with which drift is compared."""
    if not job.counts_training or job.drift is None:
        return []
    if clipped_by_owners(job):
        why = (
            "they would be of rows that their owners have clipped, and questions are not; write "
            'baseline = "first-window"'
        )
        return [Refusal(TRAINING_COUNTS, "serve.drift.baseline", why)]
    epsilon = _downwards(counts_cost(job))
    how = f"discrete Laplace noise of ε = {job.drift.epsilon} for a row that counts or does not"
    return [Cost(TRAINING_COUNTS, "training", epsilon, how, (TRAINING_COUNTS,))]


def _downwards(epsilon: Fraction) -> float:
    """The largest double of at most this, so that what adds up to a budget is not more than it."""
    found = float(epsilon)
    return found if Fraction(found) <= epsilon else nextafter(found, -inf)


def _rounds(job: Job) -> list[Cost | Refusal]:
    """All that leaves a federated job."""
    how = "Gaussian noise in the sum of every round; what owners compute from it costs nothing more"
    bits = (
        "an owner keeps its own update within the norm, so that the bit does not tell of its rows"
    )
    found: list[Cost | Refusal] = [
        Cost(MODEL, "training", _left_for_training(job), how, (GLOBAL, "federated")),
        Cost(WITHIN, "own", 0.0, bits, (WITHIN,)),
    ]
    if job.sums_sizes:
        why = (
            "owners see how many rows a round has in all, without noise; write sizes = "
            '"public", or weighting = "equal", with which no number of rows is used'
        )
        found.append(Refusal("sizes", "train.federated.sizes", why))
    return found


def _metrics(job: Job) -> list[Cost | Refusal]:
    """Metrics over held-out rows."""
    found: list[Cost | Refusal] = []
    noise, privacy = job.reveal.noise, privacy_of(job)
    for metric in job.reveal.metrics:
        if METRICS[metric]:
            found.append(Refusal(metric, "reveal.metrics", f"{METRICS[metric]}; remove it"))
        elif noise is None:
            why = "it would have no noise; under [reveal] write noise = { epsilon = … }, its cost"
            found.append(Refusal(metric, "reveal.noise", why))
        else:
            pure = Fraction(noise.epsilon) * privacy.rows_of_unit
            how = f"discrete Laplace noise of ε = {noise.epsilon} for a row"
            if privacy.rows_of_unit > 1:
                how += f", {privacy.rows_of_unit} rows of one {privacy.unit}"
            found.append(Cost(metric, "held-out", float(pure), how, (metric,), pure))
    return found


def _own(job: Job) -> list[Cost | Refusal]:
    """Metrics over an owner's own rows."""
    found: list[Cost | Refusal] = []
    for metric in job.reveal.per_party:
        names = tuple(f"{metric}{OWN}{owner}" for owner in job.owners)
        if job.reveal.metrics_to:
            why = "it would be read by others than the owner of the rows, without noise; remove it"
            found += [Refusal(name, "reveal.per_party", why) for name in names]
        else:
            how = "each owner learns it of its own rows, which it has, and nobody else does"
            found.append(Cost(f"{metric} of each owner", "own", 0.0, how, names))
    return found


def _statistics(job: Job) -> list[Cost]:
    """Secret statistics of `[prepare]`, sealed with the model or not: sums with noise, on which the
    input of every row depends. Gaussian mechanisms do not add up in ε: they are in the model's."""
    if not job.has_noisy_statistics:
        return []
    settings = privacy_of(job).of_statistics
    sums = "sums and sums of squares" if job.pipeline.scaled else "sums and counts"
    how = (
        f"in the model's ε: Gaussian noise in {sums} of columns, {settings.share} of what noise "
        f"may cost; no deviation below {settings.least_deviation} of half the range"
    )
    names = preparation_shapes(job.pipeline)
    sealed = tuple(name for name in sealed_tensors(job) if name in names)
    return [Cost(STATISTICS, "training", 0.0, how, sealed, within=MODEL)]


def _regression(job: Job) -> list[Refusal]:
    """What a regression by Newton steps seals besides the model: how its noisy equations were
    solved follows from them, errors do not."""
    sealed = sealed_tensors(job)
    return [
        Refusal(name, *REFUSED["statistics"])
        for name in regression_shapes(job)
        if name in sealed and not of_solution(job, name)
    ]


def _disclosed(job: Job) -> list[str]:
    guard = [RANGE] if job.train.guards_end else []
    return [*guard, *disclosed_on_the_way(job)]


def _disclosed_as(job: Job, name: str) -> Cost | Refusal:
    """What linkage says follows from identifiers alone."""
    if name in LINKAGE and privacy_of(job).identifiers == "unprotected":
        how = "follows from identifiers, which are the same in both cases and are not protected"
        return Cost(name, "own", 0.0, how, (name,))
    key, why = REFUSED[name]
    if name == "overlap" and job.data.join is None:
        key = "data.check_duplicates"
    return Refusal(name, key, why)
