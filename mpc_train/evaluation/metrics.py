"""The job's metrics over shares, from a model's outputs and the labels.

Rows come in chunks (`passes`), of which only secret sums are kept (`sums`); each metric becomes a
`Figure` that passes the reveal gate. Accuracy and errors are divided by a public number of rows;
AUC, R², precision, recall and F1 are quotients of secrets and are divided over shares, so that
neither the number of positives nor the spread of the labels is revealed.

A count of 0 is a count: an empty cell of the confusion matrix is 0, and the F1 of a class that was
predicted for no row is 0. Only a division by 0 is undefined, as in scikit-learn's warnings:
precision if no row was predicted as the class, recall if no row is of it, F1 if both, AUC of rows
of one class, R² of labels that do not vary, a bin without rows. A mean over several classes is
defined only if each class is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.figures import Figure, leave, margins, present, quotient, released, sums
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import Form, form_of
from mpc_train.evaluation.noise import noisy
from mpc_train.evaluation.ranking import area_by_levels, area_by_pairs, binned
from mpc_train.evaluation.sums import Chunk, needed
from mpc_train.training.passes import Model, chunks
from protocols.comparison.compare import below, weighted
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.means import mean_of
from protocols.functions.splines import divide
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.computed import computed
from protocols.shares.masked import Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpc_train.jobs.job import Job
    from protocols.shares.reveal import RevealGate, SealedHalf

MIN_SPREAD_BITS, KEPT_SPREAD_BITS = 13, 7
"""R² divides by a variance of at least 2^-13, and of 2^7 units of the ring's scale, because each
square has an error of up to one unit."""
WIDE_BITS = 8
"""A variance of up to 2^17 is brought into the range in which `protocols.functions.splines.divide`
is accurate."""


class Evaluation:
    """The metrics of one set of rows: the sums over all its chunks, at scale 2^f, by name.

    rows: their number.
    """

    def __init__(self, job: Job, rows: int, totals: dict[str, Masked]) -> None:
        self._job, self.rows, self._totals, self._f = job, rows, totals, job.fraction_bits

    def figure(self, name: str) -> Figure:
        """The metric of this name."""
        return FIGURES[name](self)

    def _total(self, name: str) -> Figure:
        return Figure(self._totals[name])

    def mse(self) -> Figure:
        return self._total("squares")

    def mae(self) -> Figure:
        return self._total("distances")

    def log_loss(self) -> Figure:
        return self._total("losses")

    def accuracy(self) -> Figure:
        return self._total("agreeing")

    def r2(self) -> Figure:
        """1 minus the squared error over the squared deviation from the mean label.

        Undefined if labels do not vary, or too little to distinguish rounded squares from 0.
        """
        error, spread = self._totals["squares"], self._totals["deviations"]
        share, varies = _relative(error, spread, self.rows, self._f)
        return Figure((-share).shift(1 << self._f), defined=varies)

    def confusion(self) -> Figure:
        cells = self._totals["table"].reshape(-1)
        return Figure(cells, margins(cells, self._job.classes))

    def precision(self) -> Figure:
        hits, called, _ = self._by_class()
        return self._macro(hits, called, called)

    def recall(self) -> Figure:
        hits, _, true = self._by_class()
        return self._macro(hits, true, true)

    def f1(self) -> Figure:
        hits, called, true = self._by_class()
        return self._macro(hits.scale(2), called + true, concatenate([called, true]))

    def _macro(self, a: Masked, b: Masked, groups: Masked) -> Figure:
        """A quotient of counts for class 1, or its mean over several classes."""
        each = quotient(a, b, 2 * self.rows, self._f)
        return Figure(each.sum(), groups, present(b, self._f))

    def _by_class(self) -> tuple[Masked, Masked, Masked]:
        """Rows correctly predicted as a class, rows predicted as it, rows of it: of class 1, or of
        all classes."""
        table = self._totals["table"]
        classes = np.arange(table.shape[0])[1 if self._job.outputs == 1 else 0 :]
        called, true = table.sum(axis=0), table.sum(axis=1)
        return table.select((classes, classes)), called.select(classes), true.select(classes)

    def auc(self) -> Figure:
        positives = self._totals["positives"]
        groups = sums([positives, (-positives).shift(self.rows << self._f)])
        if "pairs" in self._totals:
            z, y = (self._totals["pairs"].select(place) for place in range(2))
            area = area_by_pairs(z, y, self._f)
        else:
            area = area_by_levels(self._totals["levels"], positives, self.rows, self._f)
        return Figure(area, groups, present(groups, self._f))

    def calibration(self) -> Figure:
        """For each bin of the predicted probability: its mean, and the share of positives."""
        probabilities, positives = self._totals["probabilities"], self._totals["positives"]
        rows = positives.scale(0).shift(self.rows << self._f)
        parts = binned(self._totals["bins"], [rows, probabilities, positives])
        counts = parts.select(0)
        each = quotient(
            parts.select(slice(1, None)),
            counts.reshape(1, -1).broadcast_to((2, counts.shape[0])),
            self.rows,
            self._f,
        )
        return Figure(each.transpose(), counts, present(counts, self._f))


FIGURES: dict[str, Callable[[Evaluation], Figure]] = {
    "mse": Evaluation.mse,
    "mae": Evaluation.mae,
    "r2": Evaluation.r2,
    "accuracy": Evaluation.accuracy,
    "log_loss": Evaluation.log_loss,
    "precision": Evaluation.precision,
    "recall": Evaluation.recall,
    "f1": Evaluation.f1,
    "confusion": Evaluation.confusion,
    "calibration": Evaluation.calibration,
    "auc": Evaluation.auc,
}


def evaluation_of(
    job: Job,
    metrics: Sequence[str],
    model: Model,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    rows: NDArray[np.int64],
) -> Evaluation:
    """The sums for the metrics of these rows. Takes the memory of one chunk, for any number of
    rows.

    model: outputs of inputs, as after training; inputs, labels: of all rows.
    """
    names, totals = needed(job, metrics, len(rows)), dict[str, Masked]()
    mean = mean_of(_label_sum(job, labels, rows), len(rows)) if "deviations" in names else None
    for outputs, some in chunks(job, model, inputs, labels, rows, metrics):
        chunk = Chunk(job, outputs, some, mean)
        for name in names:
            part = chunk.sum(name)
            if name not in totals:
                totals[name] = part
            elif name == "pairs":
                totals[name] = concatenate([totals[name], part], 1)
            else:
                totals[name] = totals[name] + part
        computed(*totals.values())
    return Evaluation(job, len(rows), totals)


def _relative(error: Masked, spread: Masked, rows: int, f: int) -> tuple[Masked, MaskedBit]:
    """error / spread for sums of squares over `rows` rows, and whether the spread is above 0.

    Accurate for a mean square of labels up to 2^17, in any unit: both sums are multiplied by one
    power of 2^8, which stays secret, before the division.
    """
    scale = (rows - 1).bit_length() - WIDE_BITS
    both = concatenate([error.reshape(1), spread.reshape(1)])
    both = truncate(both.shares(), scale) if scale > 0 else both.scale(1 << -scale)
    one, least = f + WIDE_BITS, min(MIN_SPREAD_BITS, f - KEPT_SPREAD_BITS)
    bits = below(both.select(1), (1 << one, 1 << (one + WIDE_BITS + 1), 1 << (one - least)))
    low, middle = 1 << 2 * WIDE_BITS, 1 << WIDE_BITS
    power = weighted(bits.select(slice(0, 2)), np.array([low - middle, middle - 1])).shift(1)
    both = truncate(multiply(both, remask(power).reshape(1)), 2 * WIDE_BITS)
    return divide(both.select(0), both.select(1), f), bits.select(2).negate()


def _label_sum(job: Job, labels: MaskedTensor, rows: NDArray[np.int64]) -> Masked:
    total: Masked | None = None
    for some in np.array_split(rows, -(-len(rows) // (1 << 20))):
        part = labels[some].masked().sum()
        total = part if total is None else total + part
        computed(total)
    assert total is not None
    return total


def words_of(
    job: Job, metrics: Sequence[str], evaluation: Evaluation, noise: bool = False
) -> dict[str, tuple[Form, Masked]]:
    """For each metric its form and the words to be revealed. noise: the job's, if any."""
    found = {}
    for name in metrics:
        form, figure = form_of(job, name, evaluation.rows), evaluation.figure(name)
        found[name] = form, released(job, form, noisy(job, name, figure) if noise else figure)
    return found


def revealed(
    job: Job,
    gate: RevealGate,
    step: int,
    metrics: Sequence[str],
    evaluation: Evaluation,
    halves: dict[str, SealedHalf] | None = None,
) -> Findings:
    """The metrics, which all evaluators learn; empty at the dealer, and if they are sealed to
    readers: then this evaluator's halves are put into `halves`."""
    found = Findings()
    for name, (form, value) in words_of(job, metrics, evaluation, True).items():
        leave(job, gate, step, name, form, value, found, {} if halves is None else halves)
    return found
