"""Noise on revealed counts, drawn so that nobody knows all of it.

Every evaluator draws its own discrete Laplace noise, enough for the whole guarantee, and
secret-shares it. The count is revealed with the sum: it is differentially private even against
somebody who knows the noise of all evaluators except one, with the job's ε for each metric, for one
held-out row more, fewer or different. The guarantee does not cover training rows, which affect the
model.

One row changes the number of correct predictions by 1, and two cells of a confusion matrix by 1
each.
"""

from __future__ import annotations

import secrets
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.figures import Figure, margins
from mpc_train.jobs.reveal import SENSITIVITY
from protocols.arrays import Words
from protocols.crypten_tensor.tensor import crypten
from protocols.roles.role import Role
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def noisy(job: Job, metric: str, figure: Figure) -> Figure:
    """The figure with every evaluator's noise; groups are tested with noise too. Rounds: those of
    an input.

    Standard deviation of a count, for N evaluators: about sqrt(2 N) · sensitivity / ε.
    """
    if job.reveal.noise is None:
        return figure
    scale = SENSITIVITY[metric] / Fraction(job.reveal.noise.epsilon)
    values = with_noise(figure.values, scale, job.fraction_bits)
    return Figure(values, None if figure.groups is None else margins(values, job.classes))


def with_noise(counts: Masked, scale: Fraction, fraction_bits: int) -> Masked:
    """Counts at scale 2^f with every evaluator's own discrete Laplace noise of this scale, the sum
    of their sensitivities over ε. Rounds: those of an input."""
    role = counts.role
    for evaluator in range(role.evaluators):
        mine = _drawn(role, evaluator, counts.shape, scale, fraction_bits)
        drawn = crypten.cryptensor(mine, src=evaluator, shape=counts.shape, bits=0).value
        assert isinstance(drawn, Masked)
        counts = counts + drawn
    return counts


def _drawn(
    role: Role, evaluator: int, shape: tuple[int, ...], scale: Fraction, fraction_bits: int
) -> Words | None:
    if role.index != evaluator:
        return None
    count = int(np.prod(shape))
    drawn = [discrete_laplace(scale) << fraction_bits for _ in range(count)]
    return np.array(drawn, np.int64).reshape(shape)


def discrete_laplace(scale: Fraction) -> int:
    """k with probability proportional to exp(-|k| / scale), exactly, from the system's randomness.

    Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy (NeurIPS 2020).
    """
    top, bottom = scale.numerator, scale.denominator
    while True:
        low = secrets.randbelow(top)
        if not _happens(Fraction(low, top)):
            continue
        high = 0
        while _happens(Fraction(1)):
            high += 1
        size = (low + top * high) // bottom
        negative = secrets.randbelow(2)
        if not (negative and size == 0):
            return -size if negative else size


def _happens(power: Fraction) -> bool:
    """True with probability exp(-power), for 0 <= power <= 1."""
    k = 1
    while secrets.randbelow(k * power.denominator) < power.numerator:
        k += 1
    return k % 2 == 1
