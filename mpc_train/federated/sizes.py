"""What follows from a federated job alone, without PyTorch: the limits of its updates."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from mpc_train.federated.limits import Limits

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def limits_of(job: Job) -> Limits:
    """The norm and the size of a federated job's updates."""
    size = sum(prod(shape) for _, shape in job.plain.tensors)
    return Limits(Fraction(job.federated.clip), size)
