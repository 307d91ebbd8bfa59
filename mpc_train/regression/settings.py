"""A regression by Newton steps: what a job may say of it, and what follows for the arithmetic.

    [model]
    kind = "poisson"                                   # linear, logistic, poisson, gamma
    [train]
    optimizer = { name = "newton", l2 = 0.01 }         # steps, l1, l2, log_range
    [reveal]
    statistics = true

A step uses all training rows: there are no epochs, batches or rates. Penalties are on the mean
loss: l1 · Σ|w| + l2 / 2 · Σw², the intercept left out. With `statistics` the recipients, and nobody
else, get what standard errors and p-values follow from.

Everything here is public and rational arithmetic.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from mpc_train.base.problem import JobProblem, number
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import is_newton, split_sizes, total_steps
from mpc_train.jobs.train import Optimizer, Train
from mpc_train.regression.family import Family, FamilyName
from mpc_train.regression.scales import (
    COEFFICIENT_BITS,
    SCALE_BITS,
    Bounds,
    Scales,
    check_weighted,
    scales,
    square_bits,
)
from protocols.errors import RangeError
from protocols.functions.matrix_inverse_plan import UNRESOLVED_BITS

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

KINDS = ("linear", "logistic", "poisson", "gamma")
LOGARITHMIC = ("poisson", "gamma")
NUMBERS = ("linear", *LOGARITHMIC)
"""Kinds of model that predict a number."""
MOST_STEPS = 100
MOST_INPUTS = 300
LASSO_GROWTH = 3
"""With an L1 penalty, weights of a Poisson regression may grow eightfold after the first step."""
CHANGE, SCALE, INFLATION, DEPENDENCE, DISPERSION = (
    "regression.change",
    "regression.scale",
    "regression.inflation",
    "regression.dependence",
    "regression.dispersion",
)
"""What is sealed beside the model: the last step; of each coefficient, the intercept last, about
the inverse root of its information, by how much the others inflate its variance, and how far they
determine it; the sum of squared residuals."""


def check_kind(job: Job) -> None:
    """Raise JobProblem where the kind of model, the optimizer and `[reveal]` contradict."""
    if job.model.kind in LOGARITHMIC and not is_newton(job):
        raise JobProblem(
            "train.optimizer.name", f'a {job.model.kind} model is trained by name = "newton"'
        )
    if job.reveal.statistics and not is_newton(job):
        raise JobProblem("reveal.statistics", 'standard errors come from name = "newton"')


def check_newton(job: Job) -> None:
    """Raise JobProblem at the first contradiction in `[train]`, `[model]` and the label."""
    train, settings = job.train, job.train.optimizer
    if job.model.kind not in KINDS or job.model.network is not None:
        raise JobProblem(
            "train.optimizer.name", f"newton is for models of kind {', '.join(KINDS)}, as they are"
        )
    defaults = Train(Optimizer(), seed=train.seed)
    for key in train.__struct_fields__:
        bit = key == "guard" and isinstance(train.guard, bool)
        if key != "optimizer" and not bit and getattr(train, key) != getattr(defaults, key):
            raise JobProblem(f"train.{key}", "newton has no such key; remove it")
    for key in ("learning_rate", "weight_decay"):
        if getattr(settings, key) != 0:
            raise JobProblem(
                f"train.optimizer.{key}", "newton has no such key; remove it, or write l2"
            )
    if not 0 <= settings.steps <= MOST_STEPS:
        raise JobProblem("train.optimizer.steps", f"between 1 and {MOST_STEPS}")
    for key in ("l1", "l2"):
        if not 0 <= number(f"train.optimizer.{key}", getattr(settings, key)) <= 100:
            raise JobProblem(f"train.optimizer.{key}", "between 0 and 100")
    _check_logarithmic(job)
    if job.reveal.training_loss_every:
        raise JobProblem("reveal.training_loss_every", "newton has no batches; remove it")
    if job.widths[0] > MOST_INPUTS:
        raise JobProblem(
            "train.optimizer.name", f"at most {MOST_INPUTS} inputs, the job has {job.widths[0]}"
        )
    if job.reveal.statistics:
        if settings.l1 or settings.l2:
            raise JobProblem(
                "reveal.statistics", "penalised coefficients have no standard errors; remove it"
            )
        if split_sizes(job)[0] <= job.widths[0] + 1:
            raise JobProblem("reveal.statistics", "needs more training rows than coefficients")


def _check_logarithmic(job: Job) -> None:
    settings, label, kind = job.train.optimizer, job.label, job.model.kind
    key = "train.optimizer.log_range"
    if kind not in LOGARITHMIC:
        if settings.log_range != Optimizer().log_range:
            raise JobProblem(key, f"a {kind} model has no such key; remove it")
        return
    least, most = (number(key, end) for end in settings.log_range)
    if not -8 <= least < most <= 8 or any(2 * end % 1 for end in (least, most)):
        raise JobProblem(key, "write [least, most], multiples of 0.5 between -8 and 8")
    if label.center != 0:
        raise JobProblem("data.label.center", f"a {kind} model takes the label as it is; remove it")
    if kind == "poisson" and label.scale != 1:
        raise JobProblem("data.label.scale", "counts have no scale; remove it")
    limits = job.schema[label.name].range
    if limits is None or limits[0] < 0 or (kind == "gamma" and limits[0] == 0):
        what = "counts from 0 on" if kind == "poisson" else "numbers above 0"
        raise JobProblem("data.label.range", f"declare it: a {kind} model predicts {what}")


def family_of(job: Job) -> Family:
    least, most = (Fraction(end) for end in job.train.optimizer.log_range)
    return Family(cast("FamilyName", job.model.kind), least, most)


def bounds_of(job: Job) -> Bounds:
    """The largest magnitudes that the job states."""
    family, settings = family_of(job), job.train.optimizer
    label = Fraction(job.data.limit)
    limits = job.schema[job.label.name].range
    if family.logarithmic and limits is not None:
        label = Fraction(limits[1]) / Fraction(job.label.scale)
    predictor = Fraction(job.fixed_point.activation_limit)
    sparse = settings.l1 > 0
    return Bounds(
        columns=job.widths[0] + 1,
        rows=split_sizes(job)[0],
        inputs=Fraction(job.data.limit),
        residual=family.most_residual(label, predictor) * job.most_weight,
        weight=family.most_weight() * job.most_weight,
        coefficient=predictor,
        ridge=Fraction(settings.l2),
        varying=family.weights_vary or bool(job.weight),
        sparse=sparse,
        growth=LASSO_GROWTH if sparse and family.name == "poisson" else 0,
    )


def sizes_of(job: Job) -> Scales:
    """How many bits every word has; RangeError where the ring has no room."""
    return scales(bounds_of(job))


def check_newton_ranges(job: Job) -> None:
    """Raise JobError, with the key, where the job's numbers do not fit the ring."""
    try:
        sizes_of(job)
        if job.weight:
            check_weighted(bounds_of(job))
    except RangeError as error:
        if job.weight:
            raise JobError(
                f"data.weight: {error} (weights up to {float(job.most_weight):g} included) do not "
                "fit the ring; lower the weights' range or data.limit"
            ) from error
        hint = "data.label.range or train.optimizer.log_range"
        if job.model.kind not in LOGARITHMIC:
            hint = "fixed_point.activation_limit"
        raise JobError(f"data.limit: {error} do not fit the ring; lower it, or {hint}") from error


def regression_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a regression seals beside the model's tensors."""
    if not is_newton(job):
        return {}
    columns = (job.widths[0] + 1,)
    found: dict[str, tuple[int, ...]] = {CHANGE: columns}
    if job.reveal.statistics:
        found |= {SCALE: columns, INFLATION: columns, DEPENDENCE: columns}
        if family_of(job).has_dispersion:
            found[DISPERSION] = (1,)
    return found


def regression_bits(job: Job) -> dict[str, int]:
    """Fractional bits of `regression_shapes`: of the inflation, of numbers times 2^-C."""
    if not is_newton(job):
        return {}
    sizes = sizes_of(job)
    found = {
        CHANGE: COEFFICIENT_BITS,
        SCALE: SCALE_BITS,
        INFLATION: sizes.plan.inverse_bits + sizes.columns,
        DEPENDENCE: UNRESOLVED_BITS,
        DISPERSION: square_bits(sizes),
    }
    return {name: found[name] for name in regression_shapes(job)}


def described(job: Job) -> list[str]:
    """Lines for people: what a regression computes, and what its recipients learn."""
    settings = job.train.optimizer
    words = f"{total_steps(job)} Newton steps over all training rows"
    for key in ("l1", "l2"):
        penalty: Decimal = getattr(settings, key)
        if penalty:
            words += f", {key.upper()} penalty {penalty}"
    found = [words]
    if job.model.kind in LOGARITHMIC:
        least, most = settings.log_range
        found.append(f"logarithms of means between {least} and {most}")
    return found
