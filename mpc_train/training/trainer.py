"""The training loop over shares: one batch and one update per step.

It knows a model, its rows and a schedule, but not how many processes an organisation has, who the
parties are or where a channel leads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.schedule import batches, steps_per_epoch
from mpc_train.jobs.training import is_frozen
from mpc_train.networks.network import Network
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.losses import Loss
from mpc_train.training.optimizers.gradients import (
    Seen,
    Take,
    exact_limit,
    take_gradients,
    unseen,
)
from mpc_train.training.optimizers.sgd import Clip, Optimizer
from mpc_train.training.rates import rate
from mpc_train.training.setup import make_clip, make_loss, make_optimizer, make_take
from mpc_train.training.step_times import StepTimes
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.range_guard import RangeGuard
    from mpc_train.training.watch import Watch


@dataclass(frozen=True, slots=True)
class Trainer:
    """One model in training. parameters: the trained ones, by name. seen: called with the masked
    values of a step's forward and backward pass. take: how gradients of a batch become what the
    rule gets."""

    model: Any
    loss: Loss
    parameters: dict[str, MaskedTensor]
    optimizer: Optimizer
    clip: Clip | None = None
    seen: Seen = unseen
    take: Take = take_gradients

    def step(
        self,
        inputs: MaskedTensor,
        labels: MaskedTensor,
        learning_rate: Fraction,
        weights: MaskedTensor | None = None,
    ) -> MaskedTensor:
        """Forward pass, backward pass and update on one batch; openings may still be pending
        afterwards.

        inputs: [rows, features]; labels: the shape of the model's output; weights: how many times
        the loss of each row counts, [rows, 1], None: once. Returns the outputs.
        """
        outputs = self.model(inputs)
        gradient = self.loss.gradient(outputs, labels)
        outputs.backward(gradient if weights is None else gradient.mul(weights))
        for tensor in (outputs, gradient):
            if isinstance(tensor.value, Masked) and tensor.bits <= tensor.fraction_bits:
                self.seen(tensor.value, exact_limit(tensor.fraction_bits))
        self.optimizer.step(learning_rate, self.clip, self.take)
        return cast("MaskedTensor", outputs)


def keep_nothing(number: int) -> None:
    """For trainings without checkpoints."""


@dataclass(slots=True)
class Training:
    """The cost of a training: how long its steps took, and rounds of all steps together."""

    steps: StepTimes = field(default_factory=StepTimes)
    rounds: int = 0


def make_trainer(
    job: Job, start: Mapping[str, MaskedTensor] | None = None, seen: Seen = unseen
) -> Trainer:
    """The job's model with its loss and optimizer, with its public initial weights or with `start`.

    seen: called with words of every step.
    """
    seed = job.train.seed if job.train.dropout_mask == "public" else None
    model = Network(job.graph, initial_weights(job), seed)
    model.tensors.update(start or {})
    trained = {
        name: tensor for name, tensor in model.parameters.items() if not is_frozen(job, name)
    }
    return Trainer(
        model,
        make_loss(job),
        trained,
        make_optimizer(job, trained, seen),
        make_clip(job, seen),
        seen,
        make_take(job, trained),
    )


def steps(job: Job) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Epoch, number and rows of each step in order; epochs count from 0, steps from 1."""
    number = 0
    for epoch in range(job.train.epochs):
        for rows in batches(job, epoch):
            number += 1
            yield epoch, number, rows


def train(
    job: Job,
    role: Role,
    trainer: Trainer,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    done: Callable[[int], None],
    watch: Watch | None = None,
    weights: MaskedTensor | None = None,
    guard: RangeGuard | None = None,
    keep: Callable[[int], None] = keep_nothing,
    begun: int = 0,
) -> Training:
    """All epochs of the job over rows [rows, features], labels [rows, outputs] and the rows'
    weights [rows, 1]; None if each row counts once.

    Steps count from 1; `done` is called with the number of each finished step. `watch` discloses
    what the job lists, and may end the training; `guard` collects the words that the trainer gives
    it. keep: called with the number of each step when all that follows from it is done. begun:
    that many steps lie before the state that the objects are in.
    """
    found = Training()
    before, each = role.rounds, steps_per_epoch(job)
    for epoch, number, rows in steps(job):
        begin = time.perf_counter()
        if number <= begun:
            continue
        if number - 1 > begun:
            keep(number - 1)
        role.begin_step(number)
        batch = labels[rows]
        counts = None if weights is None else weights[rows]
        outputs = trainer.step(inputs[rows], batch, rate(job, epoch, number), counts)
        if watch is not None:
            watch.after_step(number, outputs, batch)
        role.finish()
        if guard is not None:
            guard.end_step()
        found.steps.add(time.perf_counter() - begin)
        done(number)
        if number % each == 0 and watch is not None and watch.after_epoch(epoch, number):
            break
    if watch is not None:
        watch.finish()
    found.rounds = role.rounds - before
    return found
