"""Whether a job's numbers fit the ring.

A truncation is exact for words below 2^62 in magnitude. Which magnitudes occur follows from bounds
that the job states: `data.limit` for features, the range of `data.weight` for row weights,
`fixed_point.activation_limit` for layer outputs (and for the residual of a linear model),
`fixed_point.gradient_limit` for the mean gradient of a batch, and 1 for the change of a weight in
one step. They determine, for every truncation of a step, how many bits are left for the mantissa of
learning rate over batch size. A job with too few bits is refused before anything starts.

Everything here is integer and rational arithmetic on public numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.admission.network import check_graph_ranges
from mpc_train.admission.noise import check_noise
from mpc_train.admission.representable import check_penalties, check_sgd
from mpc_train.admission.training import check_training
from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.checks.check_regression import check_newton_ranges
from mpc_train.checks.check_reveal import check_own_rows
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import distinct_rates, is_newton, split_sizes
from mpc_train.jobs.training import SOFTMAX_CLASSES, loss_name
from mpc_train.training.rates import rate, weight_bits
from protocols.ring.rational import exponential

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MIN_WEIGHT_BITS = 12
"""A class with half the rows has a weight of 1, and the weights of others are above 1 / classes."""


def check_ranges(job: Job) -> None:
    """Raise JobError that names the bound that does not fit and says what to change.

    The time depends on the rows, rates and operations of the job, so this comes after a node's
    rules.
    """
    f = job.fraction_bits
    limit = job.fixed_point.activation_limit
    check_own_rows(job)
    if bit_length(Fraction(limit)) + 2 * f > WORD_BITS:
        raise JobError(
            f"fixed_point: a product of values up to activation_limit = {limit} needs "
            f"{bit_length(Fraction(limit)) + 2 * f} bits at fraction_bits = {f}, but only "
            f"{WORD_BITS} are available; lower one of them"
        )
    if job.model.kind in ("softmax", "mlp") and job.outputs > SOFTMAX_CLASSES:
        raise JobError(
            f"model.classes: at most {SOFTMAX_CLASSES} classes, the job has {job.outputs}"
        )
    check_noise(job)
    if is_newton(job):
        check_newton_ranges(job)
        check_penalties(job)
        return
    if job.weight:
        _check_weighted(job)
    if job.train.loss.balanced and weight_bits(job) < MIN_WEIGHT_BITS:
        raise JobError(
            f"train.loss.balanced: weights of classes among {split_sizes(job)[0]} training rows "
            f"would have {weight_bits(job)} fractional bits, but at least {MIN_WEIGHT_BITS} are "
            "needed; lower fixed_point.fraction_bits"
        )
    check_graph_ranges(job)
    if not job.trains:
        return
    check_training(job)
    rates = [rate(job, epoch, step) for epoch, step in distinct_rates(job)]
    if job.train.optimizer.name == "sgd":
        check_sgd(job, rates)


def _check_weighted(job: Job) -> None:
    """Check the product before a truncation of the gradient at the outputs and a row's weight."""
    loss = job.train.loss
    most = max(Fraction(job.fixed_point.activation_limit), Fraction(loss.positive_weight))
    most = max(most, *(Fraction(weight) for weight in loss.class_weights), Fraction(loss.delta))
    if loss_name(job) == "poisson":
        most += exponential(Fraction(loss.most_log_rate))
    bits = bit_length(most * job.most_weight) + 2 * job.fraction_bits
    if bits > WORD_BITS:
        raise JobError(
            f"data.weight: weights up to {float(job.most_weight):g} times gradients of a row up to "
            f"{float(most):g} need {bits} bits at fraction_bits = {job.fraction_bits}, but only "
            f"{WORD_BITS} are available; lower the weights' range or fixed_point.activation_limit"
        )
