"""Phase 3: the steps of an optimizer or of a regression, over shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mpc_train.checkpoints.keeper import Keeper
from mpc_train.checkpoints.live import Live, NetworkCourse
from mpc_train.jobs.schedule import is_newton, total_steps
from mpc_train.preparation.sharing import Shared
from mpc_train.regression.course import RegressionCourse
from mpc_train.regression.run import regress, regressed
from mpc_train.serving.forward import network_of
from mpc_train.training.balance import balanced
from mpc_train.training.optimizers.gradients import unseen
from mpc_train.training.range_guard import (
    ADVICE,
    GIVEN_ADVICE,
    NEWTON_ADVICE,
    RangeGuard,
    look_at_network,
    look_at_weights,
)
from mpc_train.training.trainer import Training, keep_nothing, make_trainer, train
from mpc_train.training.watch import Watch
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from protocols.shares.reveal import RevealGate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of training. model: has `tensors` by name and `evaluated(inputs)`. secret: the
    other sealed tensors. losses: the revealed ones, by step."""

    model: Any
    training: Training
    secret: dict[str, Masked]
    losses: dict[int, float]


def train_model(
    job: Job,
    role: Role,
    gate: RevealGate | None,
    shared: Shared,
    start: dict[str, MaskedTensor],
    done: Callable[[int], None],
    guard: RangeGuard | None = None,
    keeper: Keeper | None = None,
    on_loss: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Train from `start`, or from the job's initial weights if that is empty.

    gate: None if nothing is disclosed during training. done: called with the number of each step.
    guard: checks the steps and the result. keeper: writes checkpoints, and may know one from which
    training goes on; None for a training that is not worth one. on_loss: called at evaluators with
    each revealed loss.
    """
    if is_newton(job):
        return _regressed(job, role, shared, done, guard, keeper)
    if not job.trains:
        return _given(job, shared, start, guard)
    trainer = make_trainer(job, start, unseen if guard is None else guard.sample)
    if job.train.loss.balanced:
        trainer = replace(trainer, loss=balanced(job, trainer.loss, shared.labels))
    model = trainer.model
    rows = shared.inputs, shared.labels
    watch = None
    if gate is not None:
        watch = Watch(job, gate, model, trainer.loss, model.secret, *rows, on_loss)
    keep, begun = keep_nothing, 0
    if keeper is not None:
        keeper.start(Live(role, NetworkCourse(trainer, watch), guard, shared.sums))
        if keeper.finished:
            return Trained(model, Training(), {}, {} if watch is None else watch.losses)
        keep, begun = keeper.point, keeper.begun
    counts = shared.weights
    if counts is not None and job.privacy:
        counts = counts.mul(job.most_weight)  # shared in parts of it
    training = train(job, role, trainer, *rows, done, watch, counts, guard, keep, begun)
    if guard is not None:
        look_at_network(guard, job, model, shared.inputs)
    if keeper is not None:
        keeper.finish(begun + training.steps.count)
    return Trained(model, training, {}, {} if watch is None else watch.losses)


def _given(
    job: Job, shared: Shared, start: dict[str, MaskedTensor], guard: RangeGuard | None
) -> Trained:
    """The model of the warm start, as it is."""
    model = network_of(job, {name: tensor.masked() for name, tensor in start.items()})
    if guard is not None:
        if job.rows:
            look_at_network(guard, job, model, shared.inputs)
        else:
            look_at_weights(guard, job, model)
    return Trained(model, Training(), {}, {})


def _regressed(
    job: Job,
    role: Role,
    shared: Shared,
    done: Callable[[int], None],
    guard: RangeGuard | None,
    keeper: Keeper | None,
) -> Trained:
    course = RegressionCourse(job=job)
    if keeper is not None:
        keeper.start(Live(role, course, guard))
        if keeper.finished:
            found = regressed(job, course.values)
            return Trained(found, found.training, found.secret, {})
        course.keep = keeper.point
    rows = shared.inputs, shared.labels
    found = regress(job, role, *rows, done, shared.weights, guard, course)
    if keeper is not None:
        keeper.finish(total_steps(job))
    return Trained(found, found.training, found.secret, {})


def guard_of(job: Job, role: Role) -> RangeGuard | None:
    """The guard that says at the end whether a value left the ring's range; None if the job
    switches it off."""
    if not job.train.guards_end:
        return None
    advice = ADVICE if job.trains else GIVEN_ADVICE
    return RangeGuard(role, NEWTON_ADVICE if is_newton(job) else advice)
