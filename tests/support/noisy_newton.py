"""Jobs of regressions whose sums have noise, and their steps over shares in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpc_train.jobs.job import Job
from mpc_train.jobs.sealed import CHANGE, DEPENDENCE
from mpc_train.owners.row_norms import bounded_labels, clipped_rows
from mpc_train.regression.course import RegressionCourse
from mpc_train.regression.run import regress
from mpc_train.regression.settings import regression_bits
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.noise import summands
from protocols.roles.role import Role
from protocols.shares.masked import Additive
from tests.support.jobs import job_toml, loaded
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached

LABELS = {
    "linear": '{ name = "y", range = [-8, 8] }',
    "logistic": "y",
    "poisson": '{ name = "y", range = [0, 30] }',
}


def noisy_toml(
    kind: str = "logistic",
    *,
    rows: int = 2000,
    features: int = 3,
    epsilon: str = "8",
    l2: str = "2",
    steps: int = 0,
    clip: str = "3",
    neighbours: str = "zeroed",
    privacy: str = "",
    optimizer: str = "",
    reveal: str = "",
    data: str = "",
    job: str = "",
) -> str:
    """A job of two owners whose rows all train."""
    words = f'name = "newton", l2 = {l2}{f", steps = {steps}" if steps else ""}{optimizer}'
    if kind == "poisson" and "log_range" not in optimizer:
        words += ", log_range = [-2, 2]"
    label = {"linear": "clip_label = 2", "poisson": "clip_label = 8"}.get(kind, "")
    return job_toml(
        [f"x{k}" for k in range(features)],
        kind,
        label=LABELS[kind],
        rows={"ann": rows // 2, "bob": rows - rows // 2}
        if "cleo" not in job
        else dict.fromkeys(("ann", "bob", "cleo"), rows // 3),
        job=job,
        data=f"limit = 32\n{data}",
        train=f"guard = false\noptimizer = {{ {words} }}",
        more=f"{reveal}\n[privacy]\nepsilon = {epsilon}\ndelta = 0.0001\nclip = {clip}\n"
        f'neighbours = "{neighbours}"\n{label if "clip_label" not in privacy else ""}\n{privacy}',
    )


def noisy_job(folder: Path, kind: str = "logistic", **changes: Any) -> Job:
    return loaded(folder, noisy_toml(kind, **changes))


def noisy_rows(job: Job, seed: int = 0) -> tuple[Reals, Reals]:
    """Rows as their owners share them, some of which were longer than their norm, and labels of a
    rule."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(job.rows, job.widths[0])).clip(-8, 8) * 1.5
    z = (inputs @ np.linspace(0.4, -0.3, job.widths[0]) + 0.3).clip(-2, 2)
    if job.model.kind == "linear":
        labels = (z + 0.5 * generator.normal(size=job.rows)).clip(-8, 8)
    elif job.model.kind == "logistic":
        labels = (generator.random(job.rows) < 1 / (1 + np.exp(-z))).astype(np.float64)
    else:
        labels = generator.poisson(np.exp(z)).clip(0, 30).astype(np.float64)
    every = np.arange(job.rows)
    return clipped_rows(job, inputs, every), bounded_labels(job, labels, every)


@dataclass(frozen=True)
class Fitted:
    """coefficients, change: [columns], the intercept last. unresolved: as it is sealed. rounds:
    after each step."""

    coefficients: Reals
    change: Reals
    unresolved: Reals
    rounds: list[int]


def fitted(
    job: Job,
    inputs: Reals,
    labels: Reals,
    *,
    net: LockstepLoopback | None = None,
    seed: int = 1,
    course: Callable[[Role], RegressionCourse] | None = None,
) -> Fitted:
    """The job's regression over shares; all rows come from evaluator 0."""
    rounds: list[int] = []

    def program(role: Role) -> list[Any]:
        def done(number: int) -> None:
            if role.is_first:
                rounds.append(role.rounds)

        return outcome_at(role, job, inputs, labels, done, course and course(role))

    results = run_lockstep(program, len(job.evaluators), seed, net)
    words = [combine_masked(list(parts)).reshape(-1) for parts in zip(*results, strict=True)]
    bits = regression_bits(job)
    scale = 2.0**job.fraction_bits
    unresolved = words[3] / 2.0 ** bits[DEPENDENCE] if job.privacy else np.zeros(0)
    coefficients = np.concatenate(words[:2]) / scale
    return Fitted(coefficients, words[2] / 2.0 ** bits[CHANGE], unresolved, rounds)


def outcome_at(
    role: Role,
    job: Job,
    inputs: Reals,
    labels: Reals,
    done: Callable[[int], None],
    course: RegressionCourse | None = None,
    src: int = 0,
) -> list[Any]:
    """One node's part of weight, bias, last change and, with noise, what was not inverted."""
    with attached(role, job.fraction_bits):
        x, y = (
            MaskedTensor(torch.from_numpy(values), src=src)
            for values in (inputs, labels.reshape(-1, 1))
        )
        found = regress(job, role, x, y, done, course=course)
        secrets = [found.tensors["weight"].masked(), found.tensors["bias"].masked()]
        secrets.append(found.secret[CHANGE])
        if job.privacy:
            secrets.append(found.secret[DEPENDENCE])
        role.finish()
        return [shares_of(value) for value in secrets]


def without_noise(monkeypatch: Any) -> None:
    """The same program with no noise on its sums."""
    for name in ("noisy", "noisy_first", "noisy_first_symmetric"):
        monkeypatch.setattr(summands, name, _as_it_is)


def _as_it_is(z: Additive, variance: object) -> Additive:
    return replace(z)
