"""Whether a job's numbers fit the ring, and how its learning rates are rounded.

A truncation is exact for words below 2^62 in magnitude. Which magnitudes occur follows from bounds
that the job states: `data.limit` for features, the range of `data.weight` for how many times a
row counts, `fixed_point.activation_limit` for what a layer puts out (and for the residual of a
linear model), `fixed_point.gradient_limit` for the mean gradient of a batch, and 1 for the change
of a weight in one step. From them follow, for every truncation of a step, the room that is left
for the mantissa of learning rate over batch size. A job with too little room is refused before
anything starts.

Everything here is integer and rational arithmetic on public numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.admission.network import check_graph_ranges
from mpc_train.admission.representable import check_penalties, check_sgd
from mpc_train.checks.check_reveal import check_own_rows
from mpc_train.checks.check_train import loss_name
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import distinct_rates, is_newton, learning_rate
from mpc_train.regression.settings import check_newton_ranges
from mpc_train.training.moments import least_rate
from mpc_train.training.training_setup import (
    check_training,
    gradient_limit,
    moments,
    weights_too,
)
from protocols.ring.rational import exponential

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

WORD_BITS = 61
"""Sums stay below 2^61, so that rounding never reaches the bound of 2^62."""
MOST_RATE_BITS = 12
LEAST_RATE_BITS = 8
"""Rates are rounded by at most the largest one times 2^-8."""
MAX_CLASSES = 16


def check_ranges(job: Job) -> None:
    """Raise JobError that says which bound does not fit and what to change.

    Takes time by the rows, rates and operations of the job: it comes after a node's rules.
    """
    f = job.fraction_bits
    limit = job.fixed_point.activation_limit
    check_own_rows(job)
    if _bits(Fraction(limit)) + 2 * f > WORD_BITS:
        raise JobError(
            f"fixed_point: a product of values up to activation_limit = {limit} needs "
            f"{_bits(Fraction(limit)) + 2 * f} bits at fraction_bits = {f}, {WORD_BITS} are there; "
            "lower one of them"
        )
    if job.model.kind in ("softmax", "mlp") and job.outputs > MAX_CLASSES:
        raise JobError(f"model.classes: at most {MAX_CLASSES} classes, the job has {job.outputs}")
    if is_newton(job):
        check_newton_ranges(job)
        check_penalties(job)
        return
    if job.weight:
        _check_weighted(job)
    check_graph_ranges(job)
    check_training(job)
    rates = [rate(job, epoch, step) for epoch, step in distinct_rates(job)]
    if job.train.optimizer.name == "sgd":
        check_sgd(job, rates)


def _check_weighted(job: Job) -> None:
    """The gradient at the outputs times a row's weight is one product before a truncation."""
    loss = job.train.loss
    most = max(Fraction(job.fixed_point.activation_limit), Fraction(loss.positive_weight))
    most = max(most, *(Fraction(weight) for weight in loss.class_weights), Fraction(loss.delta))
    if loss_name(job) == "poisson":
        most += exponential(Fraction(loss.most_log_rate))
    bits = _bits(most * job.most_weight) + 2 * job.fraction_bits
    if bits > WORD_BITS:
        raise JobError(
            f"data.weight: weights up to {float(job.most_weight):g} times gradients of a row up to "
            f"{float(most):g} need {bits} bits at fraction_bits = {job.fraction_bits}, {WORD_BITS} "
            "are there; lower the weights' range or fixed_point.activation_limit"
        )


def rate_bits(job: Job) -> int:
    """How many bits the mantissa of learning rate over batch size may have."""
    mean = job.most_gradient
    if job.model.network is None:  # elsewhere a weight's gradient may sum over many positions
        inputs = Fraction(job.data.limit)
        if len(job.widths) > 2:
            inputs = max(inputs, Fraction(job.fixed_point.activation_limit))
        residual = job.fixed_point.activation_limit if job.model.kind == "linear" else 1
        mean = min(mean, inputs * residual * job.most_weight)
    room = WORD_BITS - 2 * job.fraction_bits - _bits(mean * job.train.batch_size)
    return min(room, MOST_RATE_BITS)


def folded_rate(job: Job, epoch: int, step: int | None = None) -> tuple[int, int]:
    """(m, k): m / 2^k stands for learning rate over batch size in this epoch.

    m has at most `rate_bits` bits, and k + f leaves room for a change of 1 of a weight.
    """
    factor = learning_rate(job, epoch, step) / job.train.batch_size
    shift = min(
        max(rate_bits(job) - _bits(factor), 0),
        WORD_BITS - 2 * job.fraction_bits - 1,
    )
    return round(factor * (1 << shift)), shift


def rate(job: Job, epoch: int, step: int | None = None) -> Fraction:
    """The learning rate that is really used: for SGD, rounded to what the ring holds.

    For other rules at least `least_rate`, which check_training compares with the largest rate.
    step: from 1, during warm-up; None for the rate of the whole epoch after it. Raises JobError
    where rounding would change it by more than the largest rate times 2^-8.
    """
    if job.train.optimizer.name != "sgd":
        least = least_rate(moments(job), job.fraction_bits, gradient_limit(job))
        return max(learning_rate(job, epoch, step), least)
    whole, shift = folded_rate(job, epoch, step)
    rounded = Fraction(whole * job.train.batch_size, 1 << shift)
    largest = learning_rate(job, 0)
    if whole == 0 or abs(rounded - learning_rate(job, epoch, step)) > largest / (
        1 << LEAST_RATE_BITS
    ):
        raise JobError(
            f"train.optimizer.learning_rate: in epoch {epoch}, over batches of "
            f"{job.train.batch_size}, only {whole.bit_length()} bits of it fit "
            f"fraction_bits = {job.fraction_bits}; use a larger rate, smaller batches, fewer "
            f"fraction_bits, or a lower fixed_point.gradient_limit{weights_too(job)}"
        )
    return rounded


def _bits(value: Fraction) -> int:
    """The least b with value <= 2^b (b may be negative)."""
    bits = value.numerator.bit_length() - value.denominator.bit_length()
    return bits + 1 if value > Fraction(2) ** bits else bits
