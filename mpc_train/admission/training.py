"""Whether the words of a job's optimizer, clip and loss fit the ring."""

from fractions import Fraction

from mpc_train.admission.representable import (
    check_adaptive_words,
    check_clip,
    check_joined,
    check_loss,
)
from mpc_train.base.bounds import gradient_bits, norm_bits
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import learning_rate
from mpc_train.training.optimizers.moments import check_adaptive
from mpc_train.training.rates import weights_too
from mpc_train.training.setup import gradient_limit, moments, trained_elements
from protocols.errors import RangeError


def check_training(job: Job) -> None:
    """Raise JobError, with the key, if a rule's words would not fit the ring."""
    limit = job.most_gradient
    check_loss(job)
    check_clip(job, trained_elements(job))
    if job.train.optimizer.name != "sgd":
        try:
            check_adaptive(
                moments(job), learning_rate(job, 0), job.fraction_bits, gradient_limit(job)
            )
        except RangeError as error:
            raise JobError(f"train.optimizer: {error}{weights_too(job)}") from error
        check_adaptive_words(job, moments(job), gradient_limit(job))
    clip = job.train.clip
    if clip is None:
        return
    if gradient_bits(job.fraction_bits, limit) < job.fraction_bits:
        raise JobError(
            "train.clip: lower fixed_point.gradient_limit, or use fewer fraction_bits"
            + weights_too(job)
        )
    if clip.norm is not None:
        try:
            bits = gradient_bits(job.fraction_bits, limit)
            norm_bits(trained_elements(job), limit, Fraction(clip.norm), bits)
        except RangeError as error:
            raise JobError(f"train.clip.norm: {error}{weights_too(job)}") from error
    check_joined(job)
