"""k-fold cross-validation over shares: k trainings, of which only each metric's mean is revealed.

Each training leaves out one fold of the training rows and is evaluated on it. The results of single
folds stay secret; only the sum over folds passes the reveal gate. All folds use the preparation of
the whole training part, whose statistics do not depend on labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpc_train.evaluation.figures import Figure, leave, released
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import fold_form, form_of
from mpc_train.evaluation.metrics import Evaluation, evaluation_of
from mpc_train.jobs.audience import PREFIX, fold_outputs
from mpc_train.jobs.schedule import fold_jobs, split, total_steps
from mpc_train.training.passes import Model
from protocols.comparison.compare import all_of
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.means import mean_of
from protocols.roles.role import Role
from protocols.shares.masked import Masked, concatenate, together
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


class Later:
    """A role whose steps are numbered after `base` others, for a second training."""

    def __init__(self, role: Role, base: int) -> None:
        self._role, self._base = role, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._role, name)

    def begin_step(self, step: int) -> None:
        self._role.begin_step(self._base + step)


def fold_steps(job: Job) -> int:
    """The steps of all folds together."""
    return sum(total_steps(fold) for fold in fold_jobs(job))


def cross_validated(
    job: Job,
    role: Role,
    gate: RevealGate,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    train: Callable[[Job, Any], Model],
    settled: Callable[[], None] = lambda: None,
    halves: dict[str, SealedHalf] | None = None,
) -> Findings:
    """The means over folds, which all evaluators learn; empty at the dealer, without folds, and if
    they are sealed to readers: then this evaluator's halves are put into `halves`.

    train: trains a fold's job under a role of later steps and returns the model's outputs. settled:
    called after all folds are trained, before anything is revealed.
    """
    base, parts = total_steps(job), {name: list[Figure]() for name in fold_outputs(job)}
    metrics = [name.removeprefix(PREFIX) for name in parts]
    for fold in fold_jobs(job):
        model = train(fold, Later(role, base))
        base += total_steps(fold)
        _, rows = split(fold)
        evaluation = evaluation_of(fold, metrics, model, inputs, labels, rows)
        for name, metric in zip(parts, metrics, strict=True):
            parts[name].append(_whole(fold, evaluation, metric))
        role.finish()
    settled()
    found = Findings()
    for (name, figures), metric in zip(parts.items(), metrics, strict=True):
        form, step = fold_form(job, metric), total_steps(job)
        value = released(job, form, _mean(figures))
        leave(job, gate, step, name, form, value, found, {} if halves is None else halves)
    return found


def _whole(job: Job, evaluation: Evaluation, metric: str) -> Figure:
    """A fold's metric, divided by its public divisor."""
    figure = evaluation.figure(metric)
    divisor = form_of(job, metric, evaluation.rows).divisor
    if divisor == 1:
        return figure
    return replace(figure, values=mean_of(figure.values, divisor))


def _mean(figures: list[Figure]) -> Figure:
    """The sum over folds; refused or undefined if one of them is."""
    total: Masked = figures[0].values.reshape(1)
    for figure in figures[1:]:
        total = total + figure.values.reshape(1)
    groups = [figure.groups.reshape(-1) for figure in figures if figure.groups is not None]
    defined = [
        all_of(figure.defined.reshape(-1)) for figure in figures if figure.defined is not None
    ]
    return Figure(
        total,
        concatenate(groups) if groups else None,
        together(defined) if defined else None,
    )
