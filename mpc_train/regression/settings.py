"""A regression by Newton steps: the job's settings, and their consequences for the arithmetic.

    [model]
    kind = "poisson"                                   # linear, logistic, poisson, gamma
    [train]
    optimizer = { name = "newton", l2 = 0.01 }         # steps, l1, l2, log_range
    [reveal]
    statistics = true

A step uses all training rows: there are no epochs, batches or rates. Penalties are on the mean
loss: l1 · Σ|w| + l2 / 2 · Σw², without the intercept. With `statistics` only the recipients get the
numbers that give standard errors and p-values.

Everything here is public and rational arithmetic.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.jobs.schedule import is_newton, split_sizes, total_steps
from mpc_train.jobs.sealed import (
    CHANGE,
    DEPENDENCE,
    DISPERSION,
    INFLATION,
    SCALE,
    regression_shapes,
)
from mpc_train.privacy import newton
from mpc_train.regression.family import Family, FamilyName
from mpc_train.regression.noise import noise_of
from mpc_train.regression.scales import (
    COEFFICIENT_BITS,
    SCALE_BITS,
    Bounds,
    Scales,
    scales,
    square_bits,
)
from protocols.functions.matrix_inverse_plan import UNRESOLVED_BITS

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

LASSO_GROWTH = 3
"""With an L1 penalty, weights of a Poisson regression may grow eightfold after the first step."""


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
    inputs, noise = Fraction(job.data.limit), noise_of(job)
    gradient_noise = information_noise = Fraction(0)
    if noise is not None:
        inputs = min(inputs, newton.row_norm(job))
        label = newton.label_bound(job)
        gradient_noise = newton.largest(job, noise.gradient)
        information_noise = newton.largest(job, noise.information)
    return Bounds(
        columns=job.widths[0] + 1,
        rows=split_sizes(job)[0],
        inputs=inputs,
        residual=family.most_residual(label, predictor) * job.most_weight,
        weight=family.most_weight() * job.most_weight,
        coefficient=predictor,
        ridge=Fraction(settings.l2),
        varying=family.weights_vary or bool(job.weight),
        sparse=sparse,
        growth=LASSO_GROWTH if sparse and family.name == "poisson" else 0,
        gradient_noise=gradient_noise,
        information_noise=information_noise,
        followed=noise is not None and not family.weights_vary,
    )


def sizes_of(job: Job) -> Scales:
    """The number of bits of every word; RangeError if they do not fit the ring."""
    return scales(bounds_of(job))


def regression_bits(job: Job) -> dict[str, int]:
    """Fractional bits of `regression_shapes`: of the inflation, of numbers times 2^-C."""
    if not is_newton(job):
        return {}
    found = {CHANGE: COEFFICIENT_BITS, SCALE: SCALE_BITS, DEPENDENCE: UNRESOLVED_BITS}
    if job.reveal.statistics:
        sizes = sizes_of(job)
        found[INFLATION] = sizes.plan.inverse_bits + sizes.columns
        found[DISPERSION] = square_bits(sizes)
    return {name: found[name] for name in regression_shapes(job)}


def described(job: Job) -> list[str]:
    """Lines for people about what a regression computes, and what its recipients learn."""
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
