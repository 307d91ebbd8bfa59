"""Whether every public number of a job survives its rounding to an integer in the ring.

A rate, a decay or a class weight that rounds to 0 would be left out silently; one that rounds to
half its size would train another model; one that is too large ends the run at the dealer. All of
this follows from the job alone and is reported before anybody signs, by the functions that the run
itself uses (`folding`). The allowed error is a sixteenth of the number; for numbers that a schedule
lowers, a sixteenth of the largest.

A job's own network may have further public factors in the backward pass (a mean over positions),
none of which stands alone: its weights' factors are treated as those of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from mpc_train.base.bounds import CLASS_WEIGHT_BITS, WORD_BITS, gradient_bits
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import learning_rate
from mpc_train.jobs.training import loss_name
from mpc_train.privacy.clip_plan import grid_bits
from mpc_train.regression.scales import COEFFICIENT_BITS, PENALTY_BITS
from mpc_train.regression.settings import sizes_of
from mpc_train.training.optimizers.folding import NORM_FACTOR_BITS, brought_together, coefficients
from mpc_train.training.optimizers.moments import SQUARE_SHIFT, extra_bits, square_scale_bits
from protocols.errors import RangeError
from protocols.ring.rational import HEADROOM_BITS, ROOT_BITS, root

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.optimizers.moments import Moments

MAX_ERROR = Fraction(1, 16)
MIN_MANTISSA = 1 << 7
"""The least bits of the factors that bring gradients to one scale."""


def _held(key: str, value: Fraction, rounded: Fraction, most: Fraction | None = None) -> None:
    """Raise JobError unless `rounded` is near `value`; most: the number whose sixteenth is
    allowed."""
    if abs(rounded - value) > MAX_ERROR * abs(value if most is None else most):
        raise JobError(
            f"{key}: {float(value):g} is too small at this job's precision and would count as "
            f"{float(rounded):g}; write 0 or a larger number, or use more fraction_bits"
        )


def _words(value: Fraction, bits: int) -> Fraction:
    """The value rounded to a multiple of 2^-bits."""
    return Fraction(round(value * (1 << bits)), 1 << bits)


def check_loss(job: Job) -> None:
    """Raise JobError if a number of `[train] loss` does not survive its rounding."""
    loss, name, f = job.train.loss, loss_name(job), job.fraction_bits
    weights = [Fraction(weight) for weight in loss.class_weights] or [Fraction(1)] * job.outputs
    smoothing = Fraction(loss.label_smoothing)
    if name == "cross_entropy":
        for weight in weights:
            kept = weight * (1 - smoothing)
            _held("train.loss.class_weights", kept, _words(kept, CLASS_WEIGHT_BITS))
            spread = weight * smoothing / len(weights)
            _held("train.loss.label_smoothing", spread, _words(spread, CLASS_WEIGHT_BITS + f))
    elif name == "bce":
        weight = Fraction(loss.positive_weight)
        _held("train.loss.positive_weight", weight, 1 + _words(weight - 1, CLASS_WEIGHT_BITS))
    elif name == "huber":
        delta = Fraction(loss.delta)
        _held("train.loss.delta", delta, _words(delta, f))
        most = job.fixed_point.activation_limit
        if delta > most:
            raise JobError(
                f"train.loss.delta: no error is larger than fixed_point.activation_limit = {most}; "
                'lower it, or write name = "half_mse"'
            )
    stopping = job.train.early_stopping
    if stopping is not None:
        least = Fraction(stopping.least_improvement)
        _held("train.early_stopping.least_improvement", least, _words(least, f))


def check_clip(job: Job, elements: int) -> None:
    """Raise JobError if a clip has no effect, or leaves only 0. elements: number of trained
    weights."""
    clip = job.train.clip
    if clip is None:
        return
    key = "train.clip.value" if clip.norm is None else "train.clip.norm"
    limit, most = Fraction(clip.value or clip.norm or 0), job.most_gradient
    if clip.value is not None:
        _held(key, limit, _words(limit, gradient_bits(job.fraction_bits, most)))
        if limit >= most:
            raise JobError(
                f"{key}: no gradient is larger than {float(most):g} by "
                "fixed_point.gradient_limit; lower it, or remove the clip"
            )
    elif limit**2 >= elements * most**2:
        raise JobError(
            f"{key}: no norm is that large with fixed_point.gradient_limit = {float(most):g}; "
            "lower it, or remove the clip"
        )


def _finenesses(job: Job) -> dict[int, Fraction]:
    """The words for 1 of a gradient, by the bits that it has more than a weight.

    After a clip all are the same; otherwise they are those of a linear layer's weights and bias,
    which include the mean over rows (and for a squared error the mean over outputs).
    """
    f, clip = job.fraction_bits, job.train.clip
    if clip is not None:
        bits = gradient_bits(f, job.most_gradient) + (NORM_FACTOR_BITS if clip.norm else 0)
        return {bits - f: Fraction(1 << bits)}
    rows = Fraction(job.train.batch_size)
    if loss_name(job) == "mse":
        rows /= 2
    more = grid_bits(job) - 2 * f if job.privacy else 0
    return {excess: rows * (1 << (f + excess)) for excess in (more, f + more)}


def check_sgd(job: Job, rates: Sequence[Fraction]) -> None:
    """Raise JobError if momentum or decay rounds to 0 beside one of the `rates`, which are in order
    of time."""
    settings = job.train.optimizer
    momentum, decay = Fraction(settings.momentum), Fraction(settings.weight_decay)
    weights = [(Fraction(1), momentum)]
    if settings.nesterov:
        weights.append((1 + momentum, momentum**2))
    largest = learning_rate(job, 0)
    for excess, fineness in _finenesses(job).items():
        factor = Fraction(1 << (job.fraction_bits + excess)) / fineness
        for before, rate in pairwise((rates[0], *rates)):
            for weight, kept in weights:
                try:
                    _, shift, decayed, carried = coefficients(
                        rate, weight, factor, excess, decay, kept / before
                    )
                except RangeError as error:
                    raise JobError(f"train.optimizer.learning_rate: {error}") from error
                one = Fraction(1, 1 << shift)
                wanted, most = rate * weight * decay, largest * weight * decay
                _held("train.optimizer.weight_decay", wanted, decayed * one, most)
                wanted = rate * kept / before
                _held("train.optimizer.momentum", wanted, carried * one, max(kept, wanted))


def check_adaptive_words(job: Job, rule: Moments, limit: Fraction) -> None:
    """Raise JobError if gradients or public numbers of an adaptive rule lose their bits.

    limit: the bound of a gradient as the rule gets it.
    """
    f = job.fraction_bits
    finenesses = list(_finenesses(job).values())
    scale = root(Fraction(1 << square_scale_bits(limit)) * (1 << SQUARE_SHIFT))
    _check_together("train.optimizer", finenesses, scale, limit)
    first, rate = rule.first, learning_rate(job, 0)
    _held("train.optimizer.betas", first, _words(first, 16))
    bits = ROOT_BITS + extra_bits(rule, rate, f)
    if rule.decoupled:
        pull = rate * rule.weight_decay
        _held("train.optimizer.weight_decay", pull, _words(pull, bits))
    else:
        pull = rule.weight_decay * scale / (1 << f)
        shift = brought_together(finenesses, scale, limit)[1]
        _held("train.optimizer.weight_decay", pull, _words(pull, shift))
    _held("train.optimizer.momentum", rule.momentum, _words(rule.momentum, bits))


def check_joined(job: Job) -> None:
    """Raise JobError if a clip cannot bring gradients to one scale."""
    if job.train.clip is None:
        return
    rows = Fraction(job.train.batch_size, 2 if loss_name(job) == "mse" else 1)
    f, most = job.fraction_bits, job.most_gradient
    scale = Fraction(1 << gradient_bits(f, most))
    _check_together("train.clip", [rows * (1 << f), rows * (1 << (2 * f))], scale, most)


def _check_together(key: str, finenesses: list[Fraction], scale: Fraction, limit: Fraction) -> None:
    """Raise JobError unless every gradient's factor keeps 8 bits when all get one scale."""
    try:
        wholes, _ = brought_together(finenesses, scale, limit)
    except RangeError:
        wholes = [0]
    if min(wholes) < MIN_MANTISSA:
        raise JobError(
            f"{key}: gradients of this many bits do not fit the ring together with fixed_point."
            f"gradient_limit = {float(limit):g}; lower it, or use smaller batches or fewer "
            "fraction_bits"
        )


def check_penalties(job: Job) -> None:
    """Raise JobError if a penalty of a regression rounds to 0."""
    settings, sizes = job.train.optimizer, sizes_of(job)
    share = Fraction(sizes.bounds.rows, 1 << sizes.count)
    diagonal = Fraction(2) ** sizes.diagonal
    ridge = Fraction(settings.l2) * share / diagonal
    pull = Fraction(settings.l2) * share * Fraction(2) ** (sizes.gradient_bits - sizes.gradient)
    longest = HEADROOM_BITS - 2 - PENALTY_BITS - COEFFICIENT_BITS
    for value, bits in ((ridge, sizes.moment_bits), (pull, longest)):
        _held("train.optimizer.l2", value, _words(value, bits))
    sparse = Fraction(settings.l1) * share / diagonal
    _held("train.optimizer.l1", sparse, _words(sparse, WORD_BITS // 2))
