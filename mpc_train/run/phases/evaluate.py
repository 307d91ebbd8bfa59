"""Phase 4: the listed metrics on held-out rows, of the model and of those of cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.folds import cross_validated, fold_steps
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.evaluation.own import own_halves
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.train import Trained, train_model
from mpc_train.training.range_guard import RangeGuard
from protocols.roles.role import Role
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from parties.agreement.session import Session


def evaluate(
    session: Session,
    job: Job,
    role: Role,
    gate: RevealGate,
    shared: Shared,
    trained: Trained,
    guard: RangeGuard | None,
) -> tuple[Findings, dict[str, SealedHalf], dict[str, SealedHalf]]:
    """Return the metrics, known to all evaluators and empty at the dealer; this evaluator's halves
    of the metrics that owners learn about their own rows; and its halves of those that are sealed
    to readers: all metrics, or none.

    Raises RangeError for an impossible metric.
    """
    steps = total_steps(job)
    session.progress(phase="evaluating")

    def fold_model(fold: Job, later: Any) -> Any:
        session.progress(phase="evaluating", fold=fold.data.fold, folds=job.reveal.folds)
        return train_model(fold, later, None, shared, {}, lambda _: None, guard).model.evaluated

    def settled() -> None:
        if guard is not None:
            guard.decide(gate, steps)

    sealed: dict[str, SealedHalf] = {}
    folds = cross_validated(
        job, role, gate, shared.inputs, shared.labels, fold_model, settled, sealed
    )
    role.begin_step(steps + fold_steps(job) + 1)
    model = trained.model.evaluated
    findings = _metrics(job, gate, model, shared, sealed) | folds
    findings.check()
    own = own_halves(job, gate, model, shared.inputs, shared.labels)
    return (findings, {}, sealed | own) if job.reveal.metrics_to else (findings, own, {})


def _metrics(
    job: Job, gate: RevealGate, model: Any, shared: Shared, sealed: dict[str, SealedHalf]
) -> Findings:
    metrics = job.reveal.metrics
    if not metrics:
        return Findings()
    _, rows = split(job)
    evaluation = evaluation_of(job, metrics, model, shared.inputs, shared.labels, rows)
    return revealed(job, gate, total_steps(job), metrics, evaluation, sealed)
