"""Whether the clipped gradients of a job with `[privacy]` and their noise fit the ring, so that a
row is never larger than its norm, whatever it contains (`mpc_train.privacy.clip_plan`)."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt, prod
from typing import TYPE_CHECKING

from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import is_newton, learning_rate, steps_per_epoch, total_steps
from mpc_train.privacy import newton
from mpc_train.privacy.accounting import LEAST_DEVIATION, ROUNDED_PART, sensitivity
from mpc_train.privacy.clip_plan import (
    WILD_BITS,
    clip_plan,
    clipped_by_owners,
    deviation,
    grid_bits,
    input_norm,
    sum_limit,
    unit_of,
)
from mpc_train.privacy.newton import LEAST_BITS
from mpc_train.privacy.statistics import SUM_BITS, statistics_plan
from mpc_train.regression.noise import Noise, noise_of
from mpc_train.regression.scales import (
    COARSE_SCALE_BITS,
    COEFFICIENT_BITS,
    PREDICTOR_BITS,
    Scales,
    followed_bits,
)
from mpc_train.regression.settings import sizes_of
from mpc_train.training.rates import MIN_RATE_BITS, rate_bits
from mpc_train.training.setup import moments
from protocols.errors import RangeError
from protocols.noise.banded import square
from protocols.noise.limits import TAIL

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def check_noise(job: Job) -> None:
    """Raise JobError that says what does not fit and what to change."""
    if not job.privacy or not job.trains:
        return
    if is_newton(job):
        _check_newton(job)
        return
    try:
        if clipped_by_owners(job):
            input_norm(job)
        else:
            clip_plan(job)
    except RangeError as error:
        wide = ", or privacy.statistics.least_deviation, which bounds scaled inputs"
        raise JobError(f"privacy: {error}{wide if job.has_noisy_statistics else ''}") from error
    _check_deviation(job)
    if job.has_noisy_statistics:
        _check_statistics(job)
    _check_rounding(job)
    if rate_bits(job) < MIN_RATE_BITS:
        raise JobError(
            "privacy.clip: sums over a batch with their noise leave no room for the learning rate; "
            "lower it, train.batch_size or fixed_point.fraction_bits, or allow a larger ε"
        )
    mean = sum_limit(job) * unit_of(job) / job.train.batch_size
    if job.train.optimizer.name != "sgd" and mean > job.most_gradient:
        raise JobError(
            f"fixed_point.gradient_limit: with its noise a mean gradient is up to {float(mean):.4g}"
        )
    if clipped_by_owners(job):
        _check_steps(job, mean)


def _check_newton(job: Job) -> None:
    """Raise JobError unless the sums of Newton steps are as `mpc_train.privacy.newton` has them."""
    noise = noise_of(job)
    assert noise is not None
    try:
        input_norm(job)
        sizes = sizes_of(job)
        if job.model.kind == "linear":
            followed_bits(sizes)
    except RangeError as error:
        raise JobError(
            f"privacy: {error}; lower privacy.clip, privacy.clip_label or "
            "fixed_point.activation_limit if numbers do not fit"
        ) from error
    _check_ridge(job, noise)
    bounds, varying = sizes.bounds, job.model.kind != "linear"
    if min(sizes.input_bits, sizes.weight_bits if varying else LEAST_BITS) < LEAST_BITS:
        raise JobError(
            "privacy.clip: inputs and weights of rows would have less than "
            f"{LEAST_BITS} fractional bits beside so much noise; lower it, or raise epsilon"
        )
    # The least deviations of one evaluator, each on its grid.
    whole = 2 * sizes.input_bits + sizes.weight_bits
    parts = [
        noise.gradient**2 * (1 << 2 * (sizes.input_bits + PREDICTOR_BITS)),
        noise.information**2 / 2 * (1 << 2 * whole),
    ]
    if noise.labels:
        parts.append(noise.labels**2 * (1 << 2 * PREDICTOR_BITS))
    if min(parts) / len(job.evaluators) < LEAST_DEVIATION**2:
        raise JobError(
            "privacy.clip: the noise of one evaluator would have a standard deviation of less than "
            f"{LEAST_DEVIATION} steps of the fixed point; raise it, or lower epsilon"
        )
    # Blocks after the first are rounded by themselves, in each element of g and H.
    norm, columns = newton.row_norm(job), bounds.columns
    fine = Fraction(2) ** (sizes.count + sizes.gradient - sizes.gradient_bits)
    coarse = Fraction(2) ** (sizes.count + sizes.diagonal - sizes.moment_bits)
    gradient = newton.ROUNDING * fine * (isqrt(columns) + 1)
    information = newton.ROUNDING * coarse * columns
    least = min(
        norm * newton.most_residual(job) / gradient,
        norm**2 * newton.most_weight(job) / information,
    )
    if bounds.rows > sizes.block and least * newton.ROUNDED_PART < 1:
        raise JobError(
            "privacy.clip: sums over so many rows and columns are rounded too coarsely beside what "
            "one row changes; raise it, or lower data.limit"
        )
    if varying:
        _check_predictor(job, sizes)


def _check_ridge(job: Job, noise: Noise) -> None:
    least = newton.least_ridge(job, noise.information)
    if Fraction(job.train.optimizer.l2) < least:
        raise JobError(
            f"train.optimizer.l2: at least {float(least):g}, so that a matrix with this much noise "
            "has an inverse; or use fewer inputs or more rows, lower privacy.clip, or raise "
            "epsilon"
        )


def _check_predictor(job: Job, sizes: Scales) -> None:
    """Raise JobError unless no coefficients lead a linear predictor, or a step, out of the ring:
    residuals and weights would then not have their bounds."""
    bounds = sizes.bounds
    longest = newton.row_norm(job) * bounds.coefficient * (isqrt(bounds.columns) + 1)
    room = bit_length(longest) + sizes.input_bits + COEFFICIENT_BITS <= WORD_BITS
    # A word after a truncation by 6 bits or more is below 2^60 and can be compared, whatever went
    # in.
    shift = COARSE_SCALE_BITS + sizes.direction_bits + sizes.unit - COEFFICIENT_BITS
    if not room or shift < WILD_BITS - 60:
        raise JobError(
            "fixed_point.activation_limit: coefficients up to it could lead a linear predictor out "
            "of the ring; lower it, or privacy.clip"
        )


def _check_deviation(job: Job) -> None:
    """Raise JobError unless an evaluator's noise, the least, spreads over enough steps of the
    coarsest grid, that of biases, to be accounted for."""
    part = deviation(job) * Fraction(2) ** (grid_bits(job) - job.fraction_bits)
    square = part**2 / len(job.evaluators)
    if square < LEAST_DEVIATION**2:
        raise JobError(
            "privacy.clip: the noise of one evaluator would have a standard deviation of "
            f"{float(square) ** 0.5:.3g} steps of the fixed point, at least {LEAST_DEVIATION} are "
            "needed; raise clip, lower epsilon, or use more fixed_point.fraction_bits"
        )


def _check_statistics(job: Job) -> None:
    """Raise JobError unless sums of the preparation fit the ring with their noise, and that is wide
    enough on their grid."""
    plan, evaluators = statistics_plan(job), len(job.evaluators)
    coarsest, finest = plan.bits, 2 * plan.bits
    if job.data.partition == "columns":
        reaches = [job.pipeline.terms[place].reach for place in job.pipeline.secret]
        # Cells that nothing scales are summed over shares on the grid of the rows.
        coarsest = min(coarsest, job.fraction_bits + min(reaches))
        finest = max(finest, job.fraction_bits + max(reaches))
    if plan.variance(coarsest) < evaluators * LEAST_DEVIATION**2:
        raise JobError(
            "privacy.statistics.share: the noise of one evaluator would be too narrow for the "
            "fixed point; lower it, or privacy.epsilon"
        )
    # 2^59 each: a sum of both, and what is compared with it, stays below 2^61.
    noise = (TAIL + 1) ** 2 * plan.variance(finest) * (isqrt(evaluators - 1) + 2) ** 2
    if noise >= 1 << 2 * (SUM_BITS + 1):
        raise JobError(
            "privacy.statistics.share: so much noise leaves no room for sums of squares in words "
            "of 64 bits; raise it, privacy.epsilon or privacy.delta, or scale fewer columns"
        )


def _check_rounding(job: Job) -> None:
    """Raise JobError unless what rounding of noise with bands adds to the sensitivity is within
    what is accounted for: 1 step of the grid in each element of all steps of an epoch."""
    assert job.privacy
    if job.privacy.bands == 1:
        return
    fine = Fraction(1, 1 << 2 * grid_bits(job))
    coarse = fine * (1 << 2 * job.fraction_bits)
    # The sums for weights of linear layers are on the fine grid, all others on that of biases.
    shapes = job.shapes.values()
    found = sum(prod(shape) * (fine if len(shape) == 2 else coarse) for shape in shapes)
    most = (ROUNDED_PART * sensitivity(job) / unit_of(job)) ** 2 * square(job.privacy.bands)
    if found * steps_per_epoch(job) > most:
        raise JobError(
            "privacy.bands: noise that depends on steps before is rounded to a grid that is too "
            "coarse for so many weights; remove it, raise clip, or use more "
            "fixed_point.fraction_bits"
        )


def _check_steps(job: Job, mean: Fraction) -> None:
    """Raise JobError unless no training, whatever the noise, reaches weights with which an output
    leaves the ring: a residual would then not be one."""
    settings = job.train.optimizer
    each = learning_rate(job, 0)
    if each * Fraction(settings.weight_decay) > 1:
        raise JobError(
            "train.optimizer.weight_decay: times the learning rate it is above 1, so that weights "
            "grow with every step; lower one of them"
        )
    if settings.name == "sgd":
        momentum = Fraction(settings.momentum)
        each *= mean * (1 + momentum) / (1 - momentum)
    else:
        each *= moments(job).largest_step
    weights = sum(prod(shape) for shape in job.shapes.values())
    root = isqrt(weights) + 1
    begun = 2 if job.train.warm_start is None else job.fixed_point.activation_limit * root
    most = begun + total_steps(job) * each * root
    if bit_length(most * (input_norm(job) + 1)) + 2 * job.fraction_bits > WORD_BITS:
        raise JobError(
            f"privacy: within {total_steps(job)} steps the weights of a logistic regression could "
            "grow so far that an output leaves the ring, and a row's gradient its norm; lower "
            "fixed_point.fraction_bits or train.optimizer.learning_rate, or use larger batches"
        )
