"""Trainings at any learning rate, and where their arithmetic went wrong.

A step over shares is right if a step in the clear from the same weights ends at the same ones. Over
many steps the two may part even so, where training is unstable; a step cannot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import batches
from mpc_train.owners.table import Table
from mpc_train.results.plain_model import plain_module
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.range_guard import RangeGuard, look_at_network
from mpc_train.training.rates import rate
from mpc_train.training.trainer import make_trainer, train
from mpc_train.twin.setup import twin_clip, twin_loss, twin_optimizer
from mpc_train.twin.training import pooled_inputs
from protocols.roles.role import Role
from tests.support.jobs import job_toml, loaded
from tests.support.pooled import Outcome, in_lockstep, parts_of, shared_rows

ROWS = 40
LOGISTIC, LINEAR, MLP = "logistic", "linear", "mlp"
TOLERANCE = 0.05
"""Of a step: more than rounding, less than what wrapped around."""
MIN_STEP = 2.0**-8
SPLINE = 16 * 2.0**-12
"""What a spline's error makes of a gradient, for inputs up to 16."""


@dataclass(frozen=True)
class Setting:
    """scale: of the features; label: of a label that is a number."""

    optimizer: str
    model: str = LINEAR
    features: int = 3
    scale: float = 1.0
    label: float = 1.0
    epochs: int = 2
    batch: int = 16
    seed: int = 0
    extra: str = ""

    def job(self) -> Job:
        """JobError where the job is refused."""
        metric = "mse" if self.model == LINEAR else "accuracy"
        text = job_toml(
            [f"x{index}" for index in range(self.features)],
            self.model,
            model="hidden = [6]\nclasses = 3" if self.model == MLP else "",
            rows={"ann": ROWS, "bob": ROWS},
            train=f"epochs = {self.epochs}\nbatch_size = {self.batch}\nseed = {self.seed}\n"
            f"optimizer = {self.optimizer}\n{self.extra}",
            more=f'[reveal]\nleast_test_rows = 10\nmetrics = ["{metric}"]',
        )
        with tempfile.TemporaryDirectory() as folder:
            return loaded(Path(folder), text)

    def tables(self, job: Job) -> list[Table]:
        rng = np.random.default_rng(self.seed)
        rule, found = rng.normal(size=self.features) / self.features**0.5, []
        for _ in job.owners:
            x = rng.normal(size=(ROWS, self.features))
            score = x @ rule + rng.normal(0, 0.3, ROWS)
            y = np.clip(self.label * score, -64, 64)
            if job.classes:
                y = np.digitize(score, [-0.5, 0.5] if job.outputs > 1 else [0]).astype(np.float64)
            found.append(Table(np.clip(self.scale * x, -16, 16), y, np.ones((ROWS, 0))))
        return found


@dataclass(frozen=True)
class Traced:
    """worst: the largest error of a step, as a part of it. largest: of all weights and outputs that
    the steps had. gradient: the largest one of a weight."""

    outcome: Outcome
    worst: float
    largest: float
    gradient: float

    @property
    def right(self) -> bool:
        return self.worst <= TOLERANCE

    @property
    def within_bounds(self) -> bool:
        """Whether everything stayed within what a job states by default."""
        return self.largest <= 64 and self.gradient <= 8


def traced(setting: Setting) -> Traced:
    """Train over shares with the range guard, and look at every step."""
    job = setting.job()
    tables = setting.tables(job)

    def run(role: Role, guard: RangeGuard | None) -> list[dict[str, Any]]:
        assert guard is not None
        shared, trainer = shared_rows(job, role, tables), make_trainer(job, None, guard.sample)
        found: list[dict[str, Any]] = []

        def done(number: int) -> None:
            found.append(parts_of(trainer.parameters))

        train(job, role, trainer, shared.inputs, shared.labels, done, guard=guard)
        look_at_network(guard, job, trainer.model, shared.inputs)
        return found

    outcome = in_lockstep(job, run, 2, True)
    words = initial_weights(job)
    first = {name: value * 2.0**-job.fraction_bits for name, value in words.items()}
    return Traced(outcome, *_steps(job, tables, [first, *outcome.trace]))


def _steps(
    job: Job, tables: Sequence[Table], weights: Sequence[dict[str, Any]]
) -> tuple[float, float, float]:
    inputs = torch.from_numpy(pooled_inputs(job, tables)[0])
    labels = torch.from_numpy(np.concatenate([table.labels for table in tables]))
    module, loss = plain_module(job).double(), twin_loss(job, labels)
    parameters = list(module.parameters())
    optimizer, number = twin_optimizer(job, parameters), 0
    worst = largest = gradient = 0.0
    for epoch in range(job.train.epochs):
        for rows in batches(job, epoch):
            state = {name: torch.from_numpy(np.copy(v)) for name, v in weights[number].items()}
            module.load_state_dict(state)
            number += 1
            for group in optimizer.param_groups:
                group["lr"] = float(rate(job, epoch, number))
            optimizer.zero_grad()
            outputs = module(inputs[rows])
            loss(outputs, labels[rows]).backward()
            grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
            gradient = max(gradient, *(float(grad.abs().max()) for grad in grads))
            twin_clip(job, parameters)
            optimizer.step()
            largest = max(largest, float(outputs.detach().abs().max()))
            for name, value in module.state_dict().items():
                expected, found = value.numpy(), weights[number][name]
                step = float(np.abs(expected - weights[number - 1][name]).max())
                error = float(np.abs(found - expected).max()) - SPLINE * group["lr"]
                worst = max(worst, error / max(step, MIN_STEP))
                largest = max(largest, float(np.abs(found).max()))
    return worst, largest, gradient
