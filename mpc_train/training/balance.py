"""Class weights from secret frequencies: rows of a rare class count more, and nobody learns how
rare it is.

weight of class k = rows / (classes · rows of class k), over the training rows, as in scikit-learn's
class_weight="balanced", for any frequencies: a single row of a class counts as much as all rows of
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import split
from mpc_train.preparation.fitted import Count
from mpc_train.training.rates import weight_bits
from protocols.comparison.compare import relu
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.magnitude import exactly
from protocols.ring.rational import MANTISSA_BITS, mantissa
from protocols.shares.arithmetic import multiply
from protocols.shares.masked import Masked, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.losses import Loss, LossValue


@dataclass(frozen=True, slots=True)
class Balanced:
    """A loss whose gradient has a weight for each row. weights: secret, [classes] at scale
    2^bits."""

    loss: Loss
    weights: Masked
    bits: int

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        gradient = self.loss.gradient(outputs, labels)
        return gradient.mul(self._of_rows(labels))

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        """The loss without weights; jobs that reveal or use the value have no secret weights."""
        return self.loss.value(outputs, labels)

    def _of_rows(self, labels: MaskedTensor) -> MaskedTensor:
        """Each row's weight, [rows, 1]."""
        y, f = labels.masked(), labels.fraction_bits
        if y.shape[1] == 1:
            first, second = self.weights.select(slice(0, 1)), self.weights.select(slice(1, 2))
            product = exactly(multiply(y, (second - first).reshape(1, 1)), f)
            return labels.with_value(product + first.reshape(1, 1), self.bits)
        products = multiply(y, self.weights.reshape(1, -1)).sum(axis=1, keepdims=True)
        return labels.with_value(exactly(products, f), self.bits)


def balanced(job: Job, loss: Loss, labels: MaskedTensor) -> Balanced:
    """The job's loss, weighted by the class frequencies among the training rows of `labels`.

    Weights have a relative error within 2^-24, plus 2^-bits. About 30 rounds, once.
    """
    training, _ = split(job)
    rows, f = len(training), job.fraction_bits
    counts = exactly(labels[training].masked().sum(axis=0).shares(), f)
    if job.outputs == 1:
        counts = concatenate([(-counts).shift(rows), counts])
    # A class without rows has no weight, and no row needs one: any bounded number will do.
    count = Count.secret(relu(counts.shift(-1).narrowed(64))[0].shift(1), rows)
    # rows / (classes · n) = inverse · scale · rows / (classes · 2^(L − 1)), L the bits of rows.
    share = Fraction(rows, job.classes << rows.bit_length() - 1)
    whole, shift = mantissa(share, MANTISSA_BITS)
    relative = exactly(count.inverse.shares().scale(whole), shift)
    bits = weight_bits(job)
    weights = exactly(multiply(relative, count.scale), MANTISSA_BITS - bits)
    return Balanced(loss, weights, bits)
