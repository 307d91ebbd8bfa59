"""The secret sums over rows from which the metrics follow, chunk by chunk.

Every metric except the AUC of few rows follows from sums over rows, so rows may come in any number
of chunks: only the sums, at scale 2^f, are kept from one to the next. An AUC of at most 2048 rows
compares all pairs; outputs and labels are kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mpc_train.evaluation.histograms import edges_of
from mpc_train.evaluation.ranking import LEVEL_THRESHOLDS, below_each
from mpc_train.training.chunk_sizes import MAX_PAIRED_ROWS
from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy
from protocols.comparison.compare import argmax, negative
from protocols.functions.splines import sigmoid
from protocols.shares.arithmetic import multiply, remask, select, truncate
from protocols.shares.masked import Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.crypten_tensor.tensor import MaskedTensor


def needed(job: Job, metrics: Iterable[str], rows: int) -> list[str]:
    """Names of the sums that these metrics need."""
    found: dict[str, None] = {}
    for metric in metrics:
        for name in _NEEDED[metric]:
            found["pairs" if name == "levels" and rows <= MAX_PAIRED_ROWS else name] = None
    return list(found)


_NEEDED: dict[str, tuple[str, ...]] = {
    "mse": ("squares",),
    "mae": ("distances",),
    "r2": ("squares", "deviations"),
    "log_loss": ("losses",),
    "accuracy": ("agreeing",),
    "confusion": ("table",),
    "precision": ("table",),
    "recall": ("table",),
    "f1": ("table",),
    "auc": ("positives", "levels"),
    "calibration": ("bins", "positives", "probabilities"),
}


class Chunk:
    """Some rows' outputs and labels, [rows, outputs] each. mean: of the labels of all rows, if a
    sum needs it. Common parts of several sums are computed once."""

    def __init__(
        self, job: Job, outputs: MaskedTensor, labels: MaskedTensor, mean: Masked | None
    ) -> None:
        self._job, self._outputs, self._labels = job, outputs, labels
        self._z, self._y, self._f = outputs.masked(), labels.masked(), job.fraction_bits
        self._mean = mean
        self._calls: MaskedBit | None = None
        self._chance: Masked | None = None

    def sum(self, name: str) -> Masked:
        """One of the sums of `needed`; for "pairs" the rows' outputs and labels themselves, [2,
        rows], which are concatenated."""
        return SUMS[name](self)

    def squares(self) -> Masked:
        """Σ (z − y)²"""
        return self._squares(self._z - self._y).sum()

    def deviations(self) -> Masked:
        """Σ (y − mean)²"""
        assert self._mean is not None
        return self._squares(self._y - self._mean).sum()

    def _squares(self, x: Masked) -> Masked:
        """At scale 2^f; each square is truncated first, so that any number of rows fits."""
        return truncate(multiply(x, x), self._f)

    def distances(self) -> Masked:
        """Σ |z − y|"""
        error = self._z - self._y
        return remask((error.shares() - select(negative(error), error).scale(2)).sum())

    def losses(self) -> Masked:
        """Σ of the cross-entropy, binary if there is one output."""
        loss = BinaryCrossEntropy() if self._job.outputs == 1 else CrossEntropy()
        return loss.value(self._outputs, self._labels).total.reshape()

    def _called(self) -> MaskedBit:
        """[z >= 0], or one-hot bits of the largest output."""
        if self._calls is None:
            one = self._job.outputs == 1
            self._calls = negative(self._z).negate() if one else argmax(self._z)
        return self._calls

    def agreeing(self) -> Masked:
        """The number of correctly predicted rows."""
        called, y, one = self._called(), self._y, 1 << self._f
        if self._job.outputs > 1:
            return remask(select(called, y).sum())
        # c·y + (1 − c)(1 − y) = 1 − y − c + 2·c·y
        agree = select(called, y).scale(2) - y.shares() - called.shares().scale(one)
        return remask(agree.shift(one).sum())

    def table(self) -> Masked:
        """The number of rows by true and predicted class: [true, predicted]."""
        if self._job.outputs == 1:
            return _two_by_two(self._called(), self._y, self._f)
        return _by_classes(self._called(), self._y)

    def positives(self) -> Masked:
        """The number of rows of class 1."""
        return self._y.sum()

    def probabilities(self) -> Masked:
        """Σ 1 / (1 + exp(−z))"""
        return self._chances().sum()

    def _chances(self) -> Masked:
        if self._chance is None:
            self._chance = sigmoid(self._z.reshape(-1), self._f)
        return self._chance

    def levels(self) -> Masked:
        """The numbers of rows, and of rows of class 1, below each threshold of the score; [2,
        thresholds]."""
        thresholds = [step << self._f >> 3 for step in LEVEL_THRESHOLDS]
        return below_each(self._z.reshape(-1), [self._y.reshape(-1)], thresholds, self._f)

    def bins(self) -> Masked:
        """Below each edge between two bins: the number of rows, the sum of their probabilities, and
        the number of rows of class 1; [3, bins − 1]."""
        edges = edges_of(self._job.reveal.bins, self._f)
        weights = [self._chances(), self._y.reshape(-1)]
        return below_each(self._z.reshape(-1), weights, edges, self._f)

    def pairs(self) -> Masked:
        return concatenate([self._z.reshape(1, -1), self._y.reshape(1, -1)])


SUMS: dict[str, Callable[[Chunk], Masked]] = {
    "squares": Chunk.squares,
    "deviations": Chunk.deviations,
    "distances": Chunk.distances,
    "losses": Chunk.losses,
    "agreeing": Chunk.agreeing,
    "table": Chunk.table,
    "positives": Chunk.positives,
    "probabilities": Chunk.probabilities,
    "levels": Chunk.levels,
    "bins": Chunk.bins,
    "pairs": Chunk.pairs,
}


def _two_by_two(called: MaskedBit, y: Masked, f: int) -> Masked:
    rows, one = y.shape[0], 1 << f
    positive = remask(called.shares().sum().scale(one))
    hits, true = remask(select(called, y).sum()), y.sum()
    missed, alarms = true - hits, positive - hits
    rest = (-(hits + missed + alarms)).shift(rows * one)
    return concatenate([part.reshape(1) for part in (rest, alarms, missed, hits)]).reshape(2, 2)


def _by_classes(called: MaskedBit, y: Masked) -> Masked:
    classes = y.shape[-1]
    columns = []
    for column in range(classes):
        bit = called.select((slice(None), slice(column, column + 1))).broadcast_to(y.shape)
        columns.append(remask(select(bit, y).sum(axis=0)).reshape(classes, 1))
    return concatenate(columns, 1)
