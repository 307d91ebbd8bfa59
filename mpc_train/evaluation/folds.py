"""k-fold cross-validation over shares: k trainings, and of each metric the mean over folds alone.

Each training leaves one fold of the training rows out and is evaluated on it. What the folds found
stays secret; the sum over folds passes the reveal gate. All folds use the preparation of the whole
training part, whose statistics need no label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpc_train.evaluation.figures import Figure, Form, form_of, mean_of, read, released
from mpc_train.evaluation.metrics import Evaluation
from mpc_train.jobs.audience import PREFIX, fold_outputs
from mpc_train.jobs.schedule import fold_jobs, split, total_steps
from protocols.crypten_backend import MaskedTensor
from protocols.masked import Masked, concatenate
from protocols.reveal import RevealGate
from protocols.role import Role

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.reading import Reading

Model = Callable[[MaskedTensor], MaskedTensor]


class Later:
    """A role whose steps come after `base` others: what a second training takes for its role."""

    def __init__(self, role: Role, base: int) -> None:
        self._role, self._base = role, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._role, name)

    def begin_step(self, step: int) -> None:
        self._role.begin_step(self._base + step)


def fold_steps(job: Job) -> int:
    """Steps of all folds together."""
    return sum(total_steps(fold) for fold in fold_jobs(job))


def cross_validated(
    job: Job,
    role: Role,
    gate: RevealGate,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    train: Callable[[Job, Any], Model],
    settled: Callable[[], None] = lambda: None,
) -> dict[str, Reading]:
    """Means over folds, as all evaluators learn them; empty at the dealer and without folds.

    train: trains a fold's job under a role of later steps and returns the model's outputs. settled:
    called when all folds are trained, before anything of them is revealed.
    """
    base, parts = total_steps(job), {name: list[Figure]() for name in fold_outputs(job)}
    for fold in fold_jobs(job):
        model = train(fold, Later(role, base))
        base += total_steps(fold)
        _, rows = split(fold)
        evaluation = Evaluation(fold, model(inputs[rows]), labels[rows])
        for name, figures in parts.items():
            figures.append(_whole(fold, evaluation, name.removeprefix(PREFIX), len(rows)))
        role.finish()
    settled()
    found = {}
    for name, figures in parts.items():
        form = Form(divisor=job.reveal.folds)
        value = released(job, form, _together(figures))
        words = gate.to_everybody(name, total_steps(job), value)
        if words is not None:
            found[name] = read(job, form, words)
    return found


def _whole(job: Job, evaluation: Evaluation, metric: str, rows: int) -> Figure:
    """A fold's metric, divided by what is public."""
    figure, divisor = evaluation.figure(metric), form_of(job, metric, rows).divisor
    if divisor == 1:
        return figure
    return Figure(mean_of(figure.values, divisor), figure.groups)


def _together(figures: list[Figure]) -> Figure:
    """The sum over folds; refused where one of them is."""
    total: Masked = figures[0].values.reshape(1)
    for figure in figures[1:]:
        total = total + figure.values.reshape(1)
    groups = [figure.groups.reshape(-1) for figure in figures if figure.groups is not None]
    return Figure(total, concatenate(groups) if groups else None)
