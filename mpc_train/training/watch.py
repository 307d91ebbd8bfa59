"""Disclosures during training and the decisions from them: the job lists each bit and number.

* Early stopping: the loss on rows that were set aside stays secret, and so do the best loss so far
  and the number of checks since; one bit is revealed, whether training ends. The best model is kept
  by a selection between two sets of weights: nobody learns from which check it is.
* Guard: one bit, whether a weight or a layer's output for the batch has left the range for which
  the ring is sized. The bit at the end of every run is that of `range_guard`.
* Training loss: the mean loss of a batch, to the evaluators, at the steps that the job lists.

Every output has its name and step in `disclosures`, which the reveal gate gets; bits also go to the
dealer, which must know whether there is a next step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.jobs.schedule import checked_rows, is_checked, steps_per_epoch, total_steps
from mpc_train.training.passes import chunks
from mpc_train.training.plausible import checked_loss
from mpc_train.training.range_guard import ADVICE, outside, positive, words_of
from protocols.comparison.compare import below, negative
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import DivergedError
from protocols.ring.fixed_point import decode
from protocols.ring.rational import mantissa
from protocols.shares.arithmetic import remask, select, truncate
from protocols.shares.computed import computed
from protocols.shares.masked import Additive, Masked, MaskedBit, public
from protocols.shares.reveal import Output, RevealGate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.losses import Loss

STOP, GUARD, LOSS = "early_stopping", "guard", "training_loss"
MEAN_BITS = 20
NEVER = 1 << 40
"""A word above all losses."""


def disclosures(job: Job) -> frozenset[Output]:
    """All outputs that `Watch` may disclose, by name and step."""
    found = set()
    for number in looked_at(job):
        found |= {Output(name, number) for name in disclosed_at(job, number)}
    return frozenset(found)


def looked_at(job: Job) -> list[int]:
    """The steps after which something may be disclosed, computed without iterating over all
    steps."""
    steps, train = total_steps(job), job.train
    if not job.trains:
        return []
    periods = [job.reveal.training_loss_every, train.guard_every]
    if train.early_stopping is not None:
        periods.append(train.early_stopping.every * steps_per_epoch(job))
    return sorted({steps}.union(*(range(each, steps + 1, each) for each in periods if each)))


def disclosed_at(job: Job, number: int) -> list[str]:
    names, every = [], job.reveal.training_loss_every
    if every and number % every == 0:
        names.append(LOSS)
    guard = job.train.guard_every
    if guard and number % guard == 0:
        names.append(GUARD)
    epoch, left = divmod(number, steps_per_epoch(job))
    if not left and is_checked(job, epoch - 1) and epoch < job.train.epochs:
        names.append(STOP)
    return names


class Watch:
    """Called after every step of a training.

    inputs, labels: of all rows; parameters: all tensors that training changes; model, loss: those
    in training. on_loss: called at evaluators with the step and each loss that is revealed.
    """

    def __init__(
        self,
        job: Job,
        gate: RevealGate,
        model: Any,
        loss: Loss,
        parameters: Mapping[str, MaskedTensor],
        inputs: MaskedTensor,
        labels: MaskedTensor,
        on_loss: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self._job, self._gate = job, gate
        self._on_loss = on_loss
        self._model, self._loss = model, loss
        self._parameters = parameters
        self._inputs, self._labels = inputs, labels
        self._best: dict[str, Masked] = {}
        self._least: Masked | None = None
        self._waited: Masked | None = None
        self.losses: dict[int, float] = {}
        """Revealed losses by step; empty at the dealer."""
        self._expect(1)

    def state(self) -> tuple[dict[str, Masked], dict[str, Masked]]:
        """For checkpoints: the best model so far, and the numbers that early stopping compares."""
        numbers = {"least": self._least, "waited": self._waited}
        return dict(self._best), {name: x for name, x in numbers.items() if x is not None}

    def restore(
        self,
        number: int,
        best: Mapping[str, Masked],
        numbers: Mapping[str, Masked],
        losses: dict[int, float],
    ) -> None:
        """Continue after step `number` from the results of `state`, under fresh masks."""
        self._best = dict(best)
        self._least, self._waited = numbers.get("least"), numbers.get("waited")
        self.losses = losses
        self._expect(number + 1)

    def _expect(self, number: int) -> None:
        """Have the model keep its layers' outputs if the guard checks this step."""
        self._model.keeps_outputs = GUARD in disclosed_at(self._job, number)

    def after_step(self, number: int, outputs: MaskedTensor, labels: MaskedTensor) -> None:
        """The guard and the training loss, if this step has them.

        outputs: of the batch, before its update. Raises DivergedError at all nodes if the guard
        finds a value out of range.
        """
        due = disclosed_at(self._job, number)
        if GUARD in due:
            self._guard(number)
        if LOSS in due:
            found = self._loss.value(outputs, labels)
            words = self._gate.to_everybody(LOSS, number, found.total)
            if words is not None:
                total = float(decode(words, self._job.fraction_bits).reshape(-1)[0])
                loss = checked_loss(self._job, number, total / found.count)
                self.losses[number] = loss
                self._on_loss(number, loss)
        self._expect(number + 1)

    def after_epoch(self, epoch: int, number: int) -> bool:
        """Whether early stopping ends training after `number` steps."""
        settings = self._job.train.early_stopping
        if settings is None or not is_checked(self._job, epoch):
            return False
        last = epoch + 1 == self._job.train.epochs
        if last and not settings.keep_best:
            return False
        stopped = self._check()
        # After the last epoch the best model must still be kept, but there is nothing to decide.
        return False if last else self._gate.decide(STOP, number, remask(stopped.shares()))

    def finish(self) -> None:
        """Replace the last model by the best checked one."""
        tensors = self._changing()
        for name, words in self._best.items():
            tensors[name].copy_(tensors[name].with_value(words))

    def _guard(self, number: int) -> None:
        most = self._job.fixed_point.activation_limit
        count: Additive | None = None
        for x in (*self._model.outputs, *self._model.parameters.values()):
            words, limit = words_of(x, most)
            part = outside(words.narrowed(64).reshape(words.size), limit)
            count = part if count is None else count + part
        assert count is not None
        found = positive(remask(count.reshape()))
        if self._gate.decide(GUARD, number, remask(found.shares())):
            raise DivergedError(
                f"after step {number} a weight or a layer's output is beyond "
                f"fixed_point.activation_limit = {most}: {ADVICE}"
            )

    def _check(self) -> MaskedBit:
        """Compare the loss on the rows set aside with the best; return the bit that ends
        training."""
        settings = self._job.train.early_stopping
        assert settings is not None
        loss = self._checked_loss()
        role = loss.role
        if self._least is None or self._waited is None:
            self._least = public(role, np.array(NEVER, np.int64))
            self._waited = public(role, np.array(0, np.int64))
        slack = round(Fraction(settings.least_improvement) * (1 << self._job.fraction_bits))
        better = negative((loss - self._least).shift(slack))
        if settings.keep_best:
            self._keep(better)
        self._least = remask(self._least.shares() + select(better, loss - self._least))
        self._waited = remask(select(better.negate(), self._waited.shift(1)))
        return below(self._waited, (settings.patience,)).reshape().negate()

    def _checked_loss(self) -> Masked:
        """The mean loss on the rows set aside, at scale 2^f."""
        rows, total, count = checked_rows(self._job), None, 0
        passes = chunks(self._job, self._model.evaluated, self._inputs, self._labels, rows)
        for outputs, labels in passes:
            found = self._loss.value(outputs, labels)
            part, count = found.total.reshape(), count + found.count
            total = part if total is None else total + part
            computed(total)
        assert total is not None
        whole, shift = mantissa(Fraction(1, count), MEAN_BITS)
        return truncate(total.shares().scale(whole), shift)

    def _changing(self) -> dict[str, MaskedTensor]:
        """The tensors that training changes: parameters and running statistics."""
        frozen = {name for name in self._model.parameters if name not in self._parameters}
        return {name: t for name, t in self._model.secret.items() if name not in frozen}

    def _keep(self, better: MaskedBit) -> None:
        """The weights of this check if it is better, otherwise those kept so far. 1 round."""
        for name, tensor in self._changing().items():
            now, kept = tensor.masked(), self._best.get(name)
            if kept is None:
                self._best[name] = now
                continue
            bit = MaskedBit(
                better.role,
                now.shape,
                better.beta.map(_spread(now.shape)),
                np.broadcast_to(better.mu, now.shape),
            )
            self._best[name] = remask(kept.shares() + select(bit, now - kept))


def _spread(shape: tuple[int, ...]) -> Any:
    return lambda words: np.broadcast_to(words, shape)
