"""Losses over shares: gradients in closed form, values only where a job reveals them.

Outputs and labels: [rows, outputs], labels one column or one-hot classes. Every loss is torch.nn's
mean, over rows and outputs (cross-entropy: over rows). Weighted cross-entropy is divided by the
number of rows, as in PyTorch for labels that are probabilities: division by the weights of the
batch's classes, as for class numbers, would divide by a secret.

A gradient is the start of the backward pass: `outputs.backward(loss.gradient(outputs, labels))`.
Its public factor is kept separate from the words and is combined with the learning rate in one
mantissa. Rounds:

    squared error 0, absolute error and Huber 4, sigmoid 6, softmax about 20, exp 6

A value is the secret sum over a batch; its divisor is public.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from mpc_train.base.bounds import CLASS_WEIGHT_BITS as WEIGHT_BITS
from protocols.comparison.compare import below, clamped, maximum, negative
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.splines import evaluate, exp, sigmoid, softmax
from protocols.ring.rational import exponential, mantissa
from protocols.shares.arithmetic import multiply, remask, select, truncate
from protocols.shares.masked import Additive, Masked


@dataclass(frozen=True, slots=True)
class LossValue:
    """The secret sum of a loss over a batch at scale 2^f, and the divisor that gives the mean."""

    total: Masked
    count: int


class Loss(Protocol):
    """What the training loop needs of a loss."""

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        """The gradient at the outputs."""

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        """The loss of a batch, still secret."""


@dataclass(frozen=True, slots=True)
class SquaredError:
    """torch.nn.MSELoss times `weight`."""

    weight: Fraction = Fraction(1)

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        return outputs.sub(labels).mul(2 * self.weight / labels.nelement())

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        d, f = outputs.masked() - labels.masked(), outputs.fraction_bits
        total = truncate(multiply(d, d), f).sum()
        if self.weight != 1:
            whole, shift = mantissa(self.weight, WEIGHT_BITS)
            total = _shifted(total.shares().scale(whole), shift)
        return LossValue(total, labels.nelement())


@dataclass(frozen=True, slots=True)
class AbsoluteError:
    """torch.nn.L1Loss; the gradient is 0 where output and label are equal."""

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        d, f = outputs.masked() - labels.masked(), outputs.fraction_bits
        bits = below(d, (0, 1))
        signs = -(bits.select(0).shares() + bits.select(1).shares()).shift(-1)
        return _gradient(outputs, signs.scale(1 << f), f, Fraction(1, labels.nelement()))

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        d = outputs.masked() - labels.masked()
        return LossValue(remask(_magnitude(d).sum()), labels.nelement())


@dataclass(frozen=True, slots=True)
class Huber:
    """torch.nn.HuberLoss: squares up to `delta`, straight lines beyond."""

    delta: Fraction = Fraction(1)

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        d = outputs.masked() - labels.masked()
        clipped = self._clipped(d, outputs.fraction_bits)
        return _gradient(outputs, clipped, outputs.fraction_bits, Fraction(1, labels.nelement()))

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        # c·(d − c/2) for d clipped to c: d²/2 inside, delta·|d| − delta²/2 outside.
        d, f = outputs.masked() - labels.masked(), outputs.fraction_bits
        c = remask(self._clipped(d, f))
        twice = multiply(c, d.scale(2) - c)
        return LossValue(truncate(twice, f + 1).sum(), labels.nelement())

    def _clipped(self, d: Masked, fraction_bits: int) -> Additive:
        most = round(self.delta * (1 << fraction_bits))
        clipped, _, _ = clamped(d, -most, most)
        return clipped


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy:
    """torch.nn.BCEWithLogitsLoss with `positive_weight` for the rows of class 1."""

    positive_weight: Fraction = Fraction(1)

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        f = outputs.fraction_bits
        guess, y = sigmoid(outputs.masked(), f), labels.masked()
        mean = Fraction(1, labels.nelement())
        extra = self.positive_weight - 1
        if not extra:
            return _gradient(outputs, guess - y, f, mean)
        # σ − y + (w − 1)·y·(σ − 1), at scale 2f.
        whole = round(extra * (1 << WEIGHT_BITS))
        weighted = multiply(y, guess.shift(-(1 << f))).scale(whole)
        plain = (guess - y).shares().scale(1 << (f + WEIGHT_BITS))
        return _gradient(outputs, plain + weighted, 2 * f + WEIGHT_BITS, mean)

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        # (1 − y)·z + (1 + (w − 1)·y)·s with s = log(1 + exp(−z)) = max(−z, 0) + log(1 + exp(−|z|))
        f = outputs.fraction_bits
        z, y = outputs.masked(), labels.masked()
        below_zero = negative(z)
        minus = select(below_zero, z)
        size = remask(z.shares() - minus.scale(2))
        s = evaluate("SOFTPLUS", size, f).shares() - minus
        total = (z.shares() + s).scale(1 << f) - multiply(y, z)
        extra = self.positive_weight - 1
        if extra:
            whole = round(extra * (1 << WEIGHT_BITS))
            total = total.scale(1 << WEIGHT_BITS) + multiply(y, remask(s)).scale(whole)
            return LossValue(truncate(total, f + WEIGHT_BITS).sum(), labels.nelement())
        return LossValue(truncate(total, f).sum(), labels.nelement())


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """torch.nn.CrossEntropyLoss over one-hot or probability labels; mean over the rows.

    weights: of the classes; all 1 if empty. smoothing: the part of a label that is spread evenly.
    """

    weights: tuple[Fraction, ...] = ()
    smoothing: Fraction = Fraction(0)

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        f, mean = outputs.fraction_bits, Fraction(1, labels.shape[0])
        p = softmax(outputs.masked(), f)
        if not self.weights and not self.smoothing:
            return _gradient(outputs, p - labels.masked(), f, mean)
        target, bits = self._targets(labels)
        if not self.weights:
            return _gradient(outputs, p.shares().scale(1 << bits) - target, f + bits, mean)
        # w·t for each class, and p times their sum.
        total = _shifted(target.sum(axis=-1, keepdims=True), bits)
        product = multiply(p, total).scale(1 << bits) - target.scale(1 << f)
        return _gradient(outputs, product, 2 * f + bits, mean)

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        # (sum of w·t)·log(sum of exp z) − sum of w·t·z
        f, z = outputs.fraction_bits, outputs.masked()
        top, _ = maximum(z)
        sums = exp(z - top, f).sum(axis=-1, keepdims=True)
        log = top + evaluate("LOG", sums, f, upper=z.shape[-1])
        target, bits = self._targets(labels)
        t = _shifted(target, bits)
        whole = t.sum(axis=-1, keepdims=True)
        each = multiply(whole, log).sum(axis=-1) - multiply(t, z).sum(axis=-1)
        return LossValue(truncate(each, f).sum(), labels.shape[0])

    def _targets(self, labels: MaskedTensor) -> tuple[Additive, int]:
        """w·((1 − smoothing)·y + smoothing / classes) with more bits than y, and how many more."""
        y, f, classes = labels.masked(), labels.fraction_bits, labels.shape[-1]
        weights = self.weights or (Fraction(1),) * classes
        one = 1 << WEIGHT_BITS
        kept = np.array([round(w * (1 - self.smoothing) * one) for w in weights], np.int64)
        spread = [round(w * self.smoothing / classes * (one << f)) for w in weights]
        scaled = y.shares().linear(y.shape, lambda words: words * kept)
        return scaled.shift(np.broadcast_to(np.array(spread, np.int64), y.shape)), WEIGHT_BITS


@dataclass(frozen=True, slots=True)
class Poisson:
    """torch.nn.PoissonNLLLoss of the logarithm of a rate, for outputs up to `most`.

    exp is exact within 2^-14 · exp(most), and constant above `most`.
    """

    most: Fraction = Fraction(3)

    def gradient(self, outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
        f = outputs.fraction_bits
        rate, bits = self._rate(outputs)
        gradient = rate - labels.masked().shares().scale(1 << bits)
        return _gradient(outputs, gradient, f + bits, Fraction(1, labels.nelement()))

    def value(self, outputs: MaskedTensor, labels: MaskedTensor) -> LossValue:
        f = outputs.fraction_bits
        rate, bits = self._rate(outputs)
        product = multiply(labels.masked(), outputs.masked())
        each = _aligned_difference(rate, bits, product, f)
        return LossValue(truncate(each, max(bits, f)).sum(), labels.nelement())

    def _rate(self, outputs: MaskedTensor) -> tuple[Additive, int]:
        """exp(z) with more bits than a tensor, and how many more."""
        f = outputs.fraction_bits
        lowered = outputs.masked().shift(-round(self.most * (1 << f)))
        whole, shift = mantissa(exponential(self.most), WEIGHT_BITS + 4)
        return exp(lowered, f).shares().scale(whole), shift


def _aligned_difference(left: Additive, bits: int, right: Additive, others: int) -> Additive:
    most = max(bits, others)
    return left.scale(1 << (most - bits)) - right.scale(1 << (most - others))


def _gradient(
    outputs: MaskedTensor, words: Additive | Masked, bits: int, factor: Fraction
) -> MaskedTensor:
    return outputs.with_value(words, bits, factor)


def _magnitude(d: Masked) -> Additive:
    return d.shares() - select(negative(d), d).scale(2)


def _shifted(words: Additive, bits: int) -> Masked:
    return truncate(words, bits) if bits else remask(words)


def class_weights(values: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The weights; none if all are 1."""
    return () if all(value == 1 for value in values) else tuple(values)
