"""The job's metrics over shares, of model outputs against labels.

Each ends in a `Figure` that passes the reveal gate. Accuracy and errors are divided by a public
number of rows; AUC, R², precision, recall and F1 are quotients of secrets and are divided over
shares, so that neither the number of positives nor the spread of the labels becomes known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.figures import (
    Figure,
    Form,
    form_of,
    mean_of,
    quotient,
    read,
    released,
    sums,
)
from mpc_train.evaluation.noise import noisy
from mpc_train.evaluation.ranking import area, binned
from mpc_train.jobs.reading import Reading
from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy
from protocols.arithmetic import multiply, remask, select, truncate
from protocols.comparison import argmax, below, negative
from protocols.crypten_backend import MaskedTensor
from protocols.functions import divide, sigmoid
from protocols.masked import Additive, Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpc_train.jobs.job import Job
    from protocols.reveal import RevealGate

LEAST_SPREAD_BITS = 9
"""R² divides by a spread of at least 2^-9, as `protocols.functions.divide` does."""


class Evaluation:
    """Outputs [rows, outputs] and labels of one set of rows; parts of several metrics are computed
    once."""

    def __init__(self, job: Job, outputs: MaskedTensor, labels: MaskedTensor) -> None:
        self._job, self._outputs, self._labels = job, outputs, labels
        self._z, self._y, self._f = outputs.masked(), labels.masked(), job.fraction_bits
        self._rows = self._z.shape[0]
        self._guess: MaskedBit | None = None
        self._table: Masked | None = None

    def figure(self, name: str) -> Figure:
        """The metric of this name."""
        found: Figure = getattr(self, f"_{name}")()
        return found

    def _mean(self, total: Additive | Masked) -> Figure:
        whole = total if isinstance(total, Masked) else remask(total)
        return Figure(whole)

    def _mse(self) -> Figure:
        return self._mean(self._squares(self._z - self._y).sum())

    def _mae(self) -> Figure:
        error = self._z - self._y
        return self._mean((error.shares() - select(negative(error), error).scale(2)).sum())

    def _r2(self) -> Figure:
        """1 less the squared error over the squared deviation from the mean label.

        Refused where labels do not vary: by less than `divide` can tell from nothing.
        """
        mean = mean_of(self._y.sum(), self._rows)
        scale = (self._rows - 1).bit_length()
        error, spread = (
            truncate(self._squares(x).sum().shares(), scale)
            for x in (self._z - self._y, self._y - mean)
        )
        share = divide(error, spread, self._f)
        varies = below(spread, (1 << (self._f - LEAST_SPREAD_BITS),)).negate()
        least = self._job.reveal.least_group << self._f
        return Figure((-share).shift(1 << self._f), remask(varies.shares().scale(least)))

    def _squares(self, x: Masked) -> Masked:
        """At scale 2^f; each square is truncated first, so that any number of rows fits."""
        return truncate(multiply(x, x), self._f)

    def _log_loss(self) -> Figure:
        loss = BinaryCrossEntropy() if self._job.outputs == 1 else CrossEntropy()
        return self._mean(loss.value(self._outputs, self._labels).total.reshape())

    def _accuracy(self) -> Figure:
        guess, y, one = self._guesses(), self._y, 1 << self._f
        if self._job.outputs > 1:
            return self._mean(select(guess, y).sum())
        # g·y + (1 − g)(1 − y) = 1 − y − g + 2·g·y
        agree = select(guess, y).scale(2) - y.shares() - guess.shares().scale(one)
        return self._mean(agree.shift(one).sum())

    def _guesses(self) -> MaskedBit:
        """[z >= 0], or one-hot bits of the largest output."""
        if self._guess is None:
            one = self._job.outputs == 1
            self._guess = negative(self._z).negate() if one else argmax(self._z)
        return self._guess

    def _confusion(self) -> Figure:
        cells = self._counts().reshape(-1)
        return Figure(cells, groups=cells)

    def _precision(self) -> Figure:
        hits, called, _ = self._by_class()
        return self._macro(hits, called, called)

    def _recall(self) -> Figure:
        hits, _, true = self._by_class()
        return self._macro(hits, true, true)

    def _f1(self) -> Figure:
        hits, called, true = self._by_class()
        return self._macro(hits.scale(2), called + true, concatenate([called, true]))

    def _macro(self, a: Masked, b: Masked, groups: Masked) -> Figure:
        """A quotient of counts for class 1, or its mean over several classes."""
        each = quotient(a, b, 2 * self._rows, self._f)
        return Figure(each.sum(), groups)

    def _by_class(self) -> tuple[Masked, Masked, Masked]:
        """Rows called a class rightly, rows called it, rows of it: of class 1, or of all."""
        table = self._counts()
        classes = np.arange(table.shape[0])[1 if self._job.outputs == 1 else 0 :]
        called, true = table.sum(axis=0), table.sum(axis=1)
        return table.select((classes, classes)), called.select(classes), true.select(classes)

    def _counts(self) -> Masked:
        """Numbers of rows at scale 2^f, [true class, called class]."""
        if self._table is None:
            guess, y = self._guesses(), self._y
            one = self._job.outputs == 1
            self._table = _two_by_two(guess, y, self._f) if one else _by_classes(guess, y)
        return self._table

    def _auc(self) -> Figure:
        z, y = self._z.reshape(-1), self._y.reshape(-1)
        positives = y.sum()
        groups = sums([positives, (-positives).shift(self._rows << self._f)])
        return Figure(area(z, y, self._f), groups)

    def _calibration(self) -> Figure:
        """For each bin of the predicted probability: its mean, and the share of positives."""
        z, y = self._z.reshape(-1), self._y.reshape(-1)
        counts, parts = binned(z, [sigmoid(z, self._f), y], self._job.reveal.bins, self._f)
        each = quotient(
            concatenate([part.reshape(1, -1) for part in parts]),
            counts.reshape(1, -1).broadcast_to((2, counts.shape[0])),
            self._rows,
            self._f,
        )
        return Figure(each.transpose(), counts)


def _two_by_two(guess: MaskedBit, y: Masked, f: int) -> Masked:
    rows, one = y.shape[0], 1 << f
    called = remask(guess.shares().sum().scale(one))
    hits, true = remask(select(guess, y).sum()), y.sum()
    missed, alarms = true - hits, called - hits
    rest = (-(hits + missed + alarms)).shift(rows * one)
    return sums([rest, alarms, missed, hits]).reshape(2, 2)


def _by_classes(guess: MaskedBit, y: Masked) -> Masked:
    classes = y.shape[-1]
    columns = []
    for called in range(classes):
        bit = guess.select((slice(None), slice(called, called + 1)))
        spread = MaskedBit(
            bit.role,
            y.shape,
            bit.beta.map(lambda words: np.broadcast_to(words, y.shape)),
            np.broadcast_to(bit.mu, y.shape),
        )
        columns.append(remask(select(spread, y).sum(axis=0)).reshape(classes, 1))
    return concatenate(columns, 1)


def evaluated(
    job: Job,
    metrics: Sequence[str],
    outputs: MaskedTensor,
    labels: MaskedTensor,
    noise: bool = False,
) -> dict[str, tuple[Form, Masked]]:
    """For each metric its form and the words to be revealed. noise: where the job has any."""
    evaluation, found = Evaluation(job, outputs, labels), {}
    for name in metrics:
        form, figure = form_of(job, name, labels.shape[0]), evaluation.figure(name)
        found[name] = form, released(job, form, noisy(job, name, figure) if noise else figure)
    return found


def revealed(
    job: Job,
    gate: RevealGate,
    step: int,
    metrics: Sequence[str],
    outputs: MaskedTensor,
    labels: MaskedTensor,
) -> dict[str, Reading]:
    """The metrics, as all evaluators learn them; empty at the dealer."""
    found = {}
    for name, (form, value) in evaluated(job, metrics, outputs, labels, True).items():
        words = gate.to_everybody(name, step, value)
        if words is not None:
            found[name] = read(job, form, words)
    return found
