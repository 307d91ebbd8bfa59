"""Makes optimizer, clip and loss over shares from a job's `[train]`, and their checks.

The plaintext twin uses the same numbers (`twin.setup`), so that both agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from mpc_train.jobs.training import is_frozen, loss_name
from mpc_train.privacy.clip_plan import clip_plan, clipped_by_owners, deviation, unit_of
from mpc_train.training.optimizers.moments import Moments

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.losses import Loss
    from mpc_train.training.optimizers.gradients import Seen, Take
    from mpc_train.training.optimizers.sgd import Clip, Optimizer
    from protocols.crypten_tensor.tensor import MaskedTensor


def moments(job: Job) -> Moments:
    """The exact numbers of an adaptive rule."""
    settings = job.train.optimizer
    rmsprop = settings.name == "rmsprop"
    return Moments(
        first=Fraction(0) if rmsprop else Fraction(settings.betas[0]),
        second=Fraction(settings.alpha if rmsprop else settings.betas[1]),
        epsilon=Fraction(settings.epsilon),
        corrected=not rmsprop,
        momentum=Fraction(settings.momentum),
        weight_decay=Fraction(settings.weight_decay),
        decoupled=settings.name == "adamw",
    )


def make_optimizer(job: Job, trained: Mapping[str, MaskedTensor], seen: Seen) -> Optimizer:
    """The job's rule over the trained parameters. seen: called with what it rounds."""
    from mpc_train.training.optimizers.adaptive import Adaptive
    from mpc_train.training.optimizers.sgd import SGD

    settings = job.train.optimizer
    if settings.name == "sgd":
        return SGD(
            trained,
            momentum=Fraction(settings.momentum),
            weight_decay=Fraction(settings.weight_decay),
            nesterov=settings.nesterov,
            seen=seen,
        )
    return Adaptive(
        trained,
        moments(job),
        fraction_bits=job.fraction_bits,
        gradient_limit=gradient_limit(job),
        seen=seen,
    )


def make_clip(job: Job, seen: Seen) -> Clip | None:
    """The function that changes gradients before the rule gets them. seen: called with what it
    rounds."""
    from mpc_train.training.optimizers.clipping import ClipNorm, ClipValue

    settings = job.train.clip
    if settings is None:
        return None
    bits, limit = job.fraction_bits, job.most_gradient
    if settings.value is not None:
        most = Fraction(settings.value)
        return ClipValue(most, fraction_bits=bits, gradient_limit=limit, seen=seen)
    assert settings.norm is not None
    return ClipNorm(Fraction(settings.norm), fraction_bits=bits, gradient_limit=limit, seen=seen)


def make_take(job: Job, trained: Mapping[str, MaskedTensor]) -> Take:
    """How the gradients of a batch become what the rule gets: with `[privacy]`, sums over clipped
    rows with noise. trained: told to keep gradients by rows, if rows are clipped over shares."""
    from mpc_train.training.optimizers.gradients import take_gradients

    if not job.privacy:
        return take_gradients
    from mpc_train.training.optimizers.row_clipping import ClippedSums, Noise, NoisySums

    noise = Noise(deviation(job), job.privacy.bands)
    if clipped_by_owners(job):
        return NoisySums(noise)
    for tensor in trained.values():
        tensor.keeps_rows = True
    factor = unit_of(job) / job.train.batch_size
    return ClippedSums(clip_plan(job), noise, factor)


def make_loss(job: Job) -> Loss:
    """The job's loss: its gradient, and its value if it is revealed or used for a decision."""
    from mpc_train.training import losses

    settings, name = job.train.loss, loss_name(job)
    if name == "cross_entropy":
        weights = losses.class_weights([Fraction(w) for w in settings.class_weights])
        return losses.CrossEntropy(weights, Fraction(settings.label_smoothing))
    if name == "bce":
        return losses.BinaryCrossEntropy(Fraction(settings.positive_weight))
    if name == "huber":
        return losses.Huber(Fraction(settings.delta))
    if name == "poisson":
        return losses.Poisson(Fraction(settings.most_log_rate))
    if name == "l1":
        return losses.AbsoluteError()
    factors = {"half_mse": Fraction(1, 2), "mse": Fraction(1)}
    return losses.SquaredError(factors[name])


def gradient_limit(job: Job) -> Fraction:
    """The bound of a gradient after clipping, including a decay that is added to it."""
    clip, settings = job.train.clip, job.train.optimizer
    limit = job.most_gradient
    if clip is not None:
        limit = min(limit, Fraction(clip.value or clip.norm or 0))
    if settings.weight_decay and settings.name in ("adam", "rmsprop"):
        limit += Fraction(settings.weight_decay) * job.fixed_point.activation_limit
    return limit


def trained_elements(job: Job) -> int:
    """The number of trained weights."""
    return sum(prod(shape) for name, shape in job.shapes.items() if not is_frozen(job, name))
