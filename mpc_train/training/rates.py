"""The learning rates actually used: those of a job, rounded to what the ring can hold.

A truncation is exact for words below 2^62 in magnitude. For every truncation of a step, the job's
bounds determine how many bits are left for the mantissa of learning rate over batch size.
Everything here is integer and rational arithmetic on public numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import learning_rate, split_sizes
from mpc_train.privacy.clip_plan import grid_bits, sum_limit
from mpc_train.training.optimizers.moments import least_rate
from mpc_train.training.setup import gradient_limit, moments

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MAX_RATE_BITS = 12
MIN_RATE_BITS = 8
"""Rounding changes rates by at most 2^-8 times the largest one."""


def rate_bits(job: Job) -> int:
    """How many bits the mantissa of learning rate over batch size may have."""
    if job.privacy:
        room = WORD_BITS - grid_bits(job) - bit_length(sum_limit(job))
        return min(room, MAX_RATE_BITS)
    mean = job.most_gradient
    loss = job.train.loss
    # In other networks a weight's gradient may sum over many positions, and balanced rows have
    # weights.
    if job.model.network is None and not loss.balanced:
        inputs = Fraction(job.data.limit)
        if len(job.widths) > 2:
            inputs = max(inputs, Fraction(job.fixed_point.activation_limit))
        residual = job.fixed_point.activation_limit if job.model.kind == "linear" else 1
        classes = max(Fraction(loss.positive_weight), *map(Fraction, loss.class_weights or (1,)))
        mean = min(mean, inputs * residual * job.most_weight * max(classes, Fraction(1)))
    room = WORD_BITS - 2 * job.fraction_bits - bit_length(mean * job.train.batch_size)
    return min(room, MAX_RATE_BITS)


def weight_bits(job: Job) -> int:
    """Fractional bits of the weights of a balanced loss: as many as fit in the product with a row's
    gradient, whose entries are up to 1."""
    most = bit_length(max(Fraction(1), Fraction(split_sizes(job)[0], job.classes)))
    return min(job.fraction_bits, WORD_BITS - job.fraction_bits - most - 1)


def folded_rate(job: Job, epoch: int, step: int | None = None) -> tuple[int, int]:
    """(m, k): m / 2^k is learning rate over batch size in this epoch.

    m has at most `rate_bits` bits, and k allows a weight to change by 1.
    """
    factor = learning_rate(job, epoch, step) / job.train.batch_size
    grid = grid_bits(job) if job.privacy else 2 * job.fraction_bits
    shift = min(
        max(rate_bits(job) - bit_length(factor), 0),
        WORD_BITS - grid - 1,
    )
    return round(factor * (1 << shift)), shift


def rate(job: Job, epoch: int, step: int | None = None) -> Fraction:
    """The learning rate actually used: for SGD, rounded to what the ring can hold.

    For other rules at least `least_rate`, which the checks compare with the largest rate. step:
    from 1, during warm-up; None for the rate of the whole epoch after it. Raises JobError if
    rounding would change it by more than 2^-8 times the largest rate.
    """
    if job.train.optimizer.name != "sgd":
        least = least_rate(moments(job), job.fraction_bits, gradient_limit(job))
        return max(learning_rate(job, epoch, step), least)
    whole, shift = folded_rate(job, epoch, step)
    rounded = Fraction(whole * job.train.batch_size, 1 << shift)
    largest = learning_rate(job, 0)
    if whole == 0 or abs(rounded - learning_rate(job, epoch, step)) > largest / (
        1 << MIN_RATE_BITS
    ):
        raise JobError(
            f"train.optimizer.learning_rate: in epoch {epoch}, over batches of "
            f"{job.train.batch_size}, only {whole.bit_length()} bits of it fit "
            f"fraction_bits = {job.fraction_bits}; use a larger rate, smaller batches, fewer "
            f"fraction_bits, or a lower fixed_point.gradient_limit{weights_too(job)}"
        )
    return rounded


def weights_too(job: Job) -> str:
    """Advice on what else may be lowered if gradients do not fit."""
    return " (data.weight multiplies it; a smaller range helps as well)" if job.weight else ""
