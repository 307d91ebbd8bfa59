"""What follows from a federated job alone, without PyTorch: the limits of its updates, how often
each counts, and how much noise their sum gets."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from mpc_train.federated.limits import Limits
from mpc_train.jobs.schedule import training_sizes
from mpc_train.privacy.accounting import changes, noise_multiplier

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def limits_of(job: Job) -> Limits:
    """The norm and the size of a federated job's updates."""
    size = sum(prod(shape) for _, shape in job.plain.tensors)
    return Limits(Fraction(job.federated.clip), size)


def weights_of(job: Job) -> dict[str, int]:
    """By owner, how often its update counts, if that is public."""
    if job.federated.weighting == "equal":
        return dict.fromkeys(job.owners, 1)
    return training_sizes(job)


def variance_of(job: Job) -> Fraction | None:
    """The variance of the noise in each element of a round's sum that the weakest coalition does
    not know, in squared words; None without `[privacy]`. Raises ConfigError without the library of
    the accounting."""
    if not job.privacy:
        return None
    return (noise_multiplier(job) * changes(job) * limits_of(job).most_norm) ** 2
