"""How many training rows fall into each bin of the histograms of drift: with these counts later
windows of a service are compared (`drift`).

1. Columns are counted as their owners' cells arrive, before secret statistics make inputs of them,
   block by block; only training rows are, of which everybody knows the places.
2. The outputs of the trained model on these rows are counted after the last step.
3. The counts leave once, to the evaluators, with the noise of every evaluator, as a window's do.

That is ε-differentially private for the bins of one training row, all histograms together. The
outputs are those of a model that all rows have trained: how a row has changed the model, and with
it the outputs of other rows, is not covered, unless the job has `[privacy]`, whose budget pays for
both (`privacy.costs`).

How many rows train is public, so that there is no secret bit whether they are enough
(`checks.check_serve`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.drift import by_histogram, counts
from mpc_train.evaluation.histograms import OUTPUTS, histograms
from mpc_train.evaluation.noise import with_noise
from mpc_train.jobs.audience import TRAINING_COUNTS
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.preparation.rows import BLOCK, Rows
from mpc_train.training.passes import Model, chunks
from protocols.shares.computed import computed
from protocols.shares.masked import Masked, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.crypten_tensor.tensor import MaskedTensor
    from protocols.shares.reveal import RevealGate


class TrainingCounts:
    """The counts of one training, at every computing node.

    job: one that counts its training rows, resolved for joined rows.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._counted = job, histograms(job)
        self._columns = tuple(one for one in self._counted if one.name != OUTPUTS)
        self._outputs = tuple(one for one in self._counted if one.name == OUTPUTS)
        self._training = split(job)[0]
        self._seen = 0
        self._of_columns: Masked | None = None

    def take(self, rows: Rows) -> None:
        """Count the next rows of all owners, in their order, as they were shared. Rounds: those of
        `drift.counts` for each BLOCK of compared numbers."""
        first, last = self._seen, self._seen + rows.values.shape[0]
        self._seen = last
        ends = np.searchsorted(self._training, (first, last))
        places = self._training[slice(*ends)] - first
        if not self._columns or not len(places):
            return
        width = sum(max(1, len(one.edges) + len(one.levels)) for one in self._columns)
        for some in np.array_split(places, -(-len(places) * width // BLOCK)):
            block = rows.select(some)
            self._of_columns = _added(
                self._of_columns,
                counts(self._job, self._columns, block.values, block.present, None),
            )

    def released(
        self, gate: RevealGate, model: Model, inputs: MaskedTensor, labels: MaskedTensor
    ) -> dict[str, tuple[int, ...]] | None:
        """The counts with noise, by histogram, at every evaluator; None at the dealer. Once.

        model: outputs of inputs, after training; inputs, labels: of all rows.
        """
        if self._seen != self._job.rows:
            raise RuntimeError("the counts of columns lack rows")
        job, f = self._job, self._job.fraction_bits
        parts = [] if self._of_columns is None else [self._of_columns]
        if self._outputs:
            parts.append(self._counted_outputs(model, inputs, labels))
        assert job.drift is not None
        scale = len(self._counted) / Fraction(job.drift.epsilon)
        noisy = with_noise(concatenate(parts), scale, f)
        words = gate.to_everybody(TRAINING_COUNTS, total_steps(job), noisy)
        return None if words is None else by_histogram(words, self._counted, f)

    def _counted_outputs(self, model: Model, inputs: MaskedTensor, labels: MaskedTensor) -> Masked:
        total: Masked | None = None
        # Metrics that take as much memory.
        like = ("accuracy",) if self._job.outputs > 1 else ("calibration",)
        for outputs, _ in chunks(self._job, model, inputs, labels, self._training, like):
            found = counts(self._job, self._outputs, None, None, outputs.masked())
            total = _added(total, found)
        assert total is not None
        return total


def _added(total: Masked | None, found: Masked) -> Masked:
    """The sum, computed now, so that what was compared for it can be freed."""
    total = found if total is None else total + found
    computed(total)
    return total
