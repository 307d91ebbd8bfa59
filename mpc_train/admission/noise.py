"""Whether the clipped gradients of a job with `[privacy]` and their noise fit the ring, so that a
row is never larger than its norm, whatever it contains (`mpc_train.privacy.clip_plan`)."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt, prod
from typing import TYPE_CHECKING

from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import learning_rate, steps_per_epoch, total_steps
from mpc_train.privacy.accounting import LEAST_DEVIATION, ROUNDED_PART, sensitivity
from mpc_train.privacy.clip_plan import (
    clip_plan,
    clipped_by_owners,
    deviation,
    grid_bits,
    input_norm,
    sum_limit,
    unit_of,
)
from mpc_train.training.rates import MIN_RATE_BITS, rate_bits
from mpc_train.training.setup import moments
from protocols.errors import RangeError
from protocols.noise.banded import square

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def check_noise(job: Job) -> None:
    """Raise JobError that says what does not fit and what to change."""
    if not job.privacy or not job.trains:
        return
    try:
        if clipped_by_owners(job):
            input_norm(job)
        else:
            clip_plan(job)
    except RangeError as error:
        raise JobError(f"privacy: {error}") from error
    _check_deviation(job)
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
