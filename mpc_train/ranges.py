"""Whether a job's numbers fit the ring, and how its learning rates are rounded.

A truncation is exact for words below 2^62 in magnitude. Which magnitudes can occur follows from
three bounds that the job states: `data.limit` for features, `fixed_point.activation_limit` for
everything that a layer puts out (and for the residual of a linear model), and one for the change
of a weight in one step, which is at most 1 here. From them follow, for every truncation of a
step, the room that is left for the mantissa of learning rate over batch size. A job with too
little room is refused before anything starts.

Everything here is integer and rational arithmetic on public numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.errors import JobError
from mpc_train.schedule import learning_rate, split_sizes

if TYPE_CHECKING:
    from mpc_train.job import Job

WORD_BITS = 61
"""Sums stay below 2^61, so that rounding never reaches the bound of 2^62."""
MOST_RATE_BITS = 12
LEAST_RATE_BITS = 7
MAX_CLASSES = 16
MAX_AUC_ROWS = 2048
"""AUC compares all pairs of held-out rows."""


def check_ranges(job: Job) -> None:
    """Raise JobError that says which bound does not fit and what to change."""
    f = job.fraction_bits
    limit = job.fixed_point.activation_limit
    if _bits(Fraction(limit)) + 2 * f > WORD_BITS:
        raise JobError(
            f"fixed_point: a product of values up to activation_limit = {limit} needs "
            f"{_bits(Fraction(limit)) + 2 * f} bits at fraction_bits = {f}, {WORD_BITS} are there; "
            "lower one of them"
        )
    if job.model.kind in ("softmax", "mlp") and job.outputs > MAX_CLASSES:
        raise JobError(f"model.classes: at most {MAX_CLASSES} classes, the job has {job.outputs}")
    held_out = split_sizes(job)[1]
    if "auc" in job.reveal.metrics and held_out > MAX_AUC_ROWS:
        raise JobError(
            f"reveal.metrics: auc compares all pairs of held-out rows, at most {MAX_AUC_ROWS} of "
            f"them, here {held_out}; lower data.test_fraction or reveal accuracy instead"
        )
    for epoch in range(job.train.epochs):
        rate(job, epoch)


def rate_bits(job: Job) -> int:
    """How many bits the mantissa of learning rate over batch size may have."""
    inputs = Fraction(job.data.limit)
    if len(job.widths) > 2:
        inputs = max(inputs, Fraction(job.fixed_point.activation_limit))
    residual = Fraction(job.fixed_point.activation_limit if job.model.kind == "linear" else 1)
    gradient = inputs * residual * job.train.batch_size
    return min(WORD_BITS - 2 * job.fraction_bits - _bits(gradient), MOST_RATE_BITS)


def folded_rate(job: Job, epoch: int) -> tuple[int, int]:
    """(m, k): m / 2^k stands for learning rate over batch size in this epoch.

    m has at most `rate_bits` bits, and k + f leaves room for a change of 1 of a weight.
    """
    factor = learning_rate(job, epoch) / job.train.batch_size
    shift = min(
        max(rate_bits(job) - _bits(factor), 0),
        WORD_BITS - 2 * job.fraction_bits - 1,
    )
    return round(factor * (1 << shift)), shift


def rate(job: Job, epoch: int) -> Fraction:
    """The learning rate that is really used: rounded to what the ring holds.

    Raises JobError where less than 7 significant bits of it would be left.
    """
    whole, shift = folded_rate(job, epoch)
    if whole.bit_length() < LEAST_RATE_BITS:
        raise JobError(
            f"train.optimizer.learning_rate: in epoch {epoch}, over batches of "
            f"{job.train.batch_size}, only {whole.bit_length()} bits of it fit "
            f"fraction_bits = {job.fraction_bits}; use a larger rate, smaller batches, fewer "
            "fraction_bits, or lower data.limit or fixed_point.activation_limit"
        )
    return Fraction(whole * job.train.batch_size, 1 << shift)


def _bits(value: Fraction) -> int:
    """The least b with value <= 2^b (b may be negative)."""
    bits = value.numerator.bit_length() - value.denominator.bit_length()
    return bits + 1 if value > Fraction(2) ** bits else bits
