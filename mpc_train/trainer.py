"""The training loop over shares: batches in, one update a step.

It knows a model, its rows and a schedule; not how many processes an organisation has, who the
parties are or where a channel leads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mpc_train.models import initial_weights, loss_function
from mpc_train.network import Network
from mpc_train.optim import SGD, Optimizer
from mpc_train.ranges import rate
from mpc_train.schedule import batches
from protocols.crypten_backend import MaskedTensor
from protocols.role import Role

if TYPE_CHECKING:
    from mpc_train.job import Job

Watcher = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Trainer:
    """One model in training. loss: a CrypTen loss whose backward gives the gradient."""

    model: Any
    loss: Any
    parameters: dict[str, MaskedTensor]
    optimizer: Optimizer

    def step(self, inputs: MaskedTensor, labels: MaskedTensor, learning_rate: Fraction) -> None:
        """Forward, backward and update on one batch; openings may still be pending after it.

        inputs: [rows, features]; labels: the shape of the model's output.
        """
        self.loss(self.model(inputs), labels).backward()
        self.optimizer.step(learning_rate)


@dataclass(slots=True)
class Training:
    """What a training took: seconds of each step, and rounds of all steps together."""

    step_seconds: list[float] = field(default_factory=list)
    rounds: int = 0


def make_trainer(job: Job) -> Trainer:
    """The job's model at its public initial weights, with its loss and optimizer."""
    model = Network(job.graph, initial_weights(job), job.train.seed)
    named = model.parameters
    settings = job.train.optimizer
    optimizer = SGD(
        named,
        momentum=Fraction(settings.momentum),
        weight_decay=Fraction(settings.weight_decay),
    )
    return Trainer(model, loss_function(job.model.kind), named, optimizer)


def train(
    job: Job,
    role: Role,
    trainer: Trainer,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    watch: Watcher,
) -> Training:
    """All epochs of the job over rows [rows, features] and labels [rows, outputs].

    Steps count from 1; `watch` hears the number of each one that is done.
    """
    done = Training()
    before = role.rounds
    number = 0
    for epoch in range(job.train.epochs):
        learning_rate = rate(job, epoch)
        for rows in batches(job, epoch):
            begin = time.perf_counter()
            number += 1
            role.begin_step(number)
            trainer.step(inputs[rows], labels[rows], learning_rate)
            role.finish()
            done.step_seconds.append(time.perf_counter() - begin)
            watch(number)
    done.rounds = role.rounds - before
    return done
