"""Class weights from secret frequencies: rows of a rare class count more, nobody learns how rare.

weight of class k = rows / (classes · rows of class k), over the training rows, as scikit-learn's
class_weight="balanced". Classes with less than one row in 128 count as if they had that many.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.jobs.schedule import split
from protocols.comparison.compare import relu
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.means import mean_of
from protocols.functions.splines import divide
from protocols.shares.arithmetic import multiply, truncate
from protocols.shares.masked import Masked, concatenate, public

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.losses import Loss, LossValue

LEAST_SHARE = Fraction(1, 128)


@dataclass(frozen=True, slots=True)
class Balanced:
    """A loss whose gradient is weighted row by row. weights: secret, [classes] at scale 2^f."""

    loss: Loss
    weights: Masked

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        gradient = self.loss.gradient(outputs, labels)
        return gradient.mul(self._of_rows(labels))

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        """The loss without weights; jobs that look at it have none."""
        return self.loss.value(outputs, labels)

    def _of_rows(self, labels: MaskedTensor) -> MaskedTensor:
        """Each row's weight, [rows, 1]."""
        y, f = labels.masked(), labels.fraction_bits
        if y.shape[1] == 1:
            first, second = self.weights.select(slice(0, 1)), self.weights.select(slice(1, 2))
            product = truncate(multiply(y, (second - first).reshape(1, 1)), f)
            return labels.with_value(product + first.reshape(1, 1))
        products = multiply(y, self.weights.reshape(1, -1)).sum(axis=1, keepdims=True)
        return labels.with_value(truncate(products, f))


def balanced(job: Job, loss: Loss, labels: MaskedTensor) -> Balanced:
    """The job's loss, weighted by the class frequencies among the training rows of `labels`."""
    f = job.fraction_bits
    training, _ = split(job)
    counts = labels[training].masked().sum(axis=0)
    shares = mean_of(counts, len(training))
    if job.outputs == 1:
        shares = concatenate([(-shares).shift(1 << f), shares])
    least = round(LEAST_SHARE * (1 << f))
    floored = relu(shares.shift(-least))[0].shift(least)
    one = public(shares.role, np.full(job.classes, round(Fraction(1 << f, job.classes)), np.int64))
    return Balanced(loss, divide(one, floored, f))
