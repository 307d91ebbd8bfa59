"""Phase 5: seals the weights, and the parameters that prepare their inputs, to recipients."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from mpc_train.evaluation.findings import Findings
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.preparation.sharing import Shared
from mpc_train.results.artifact import METRICS, MODEL, Contents, contents_of, seal_result
from mpc_train.run.phases.train import Trained
from parties.audit.entries import Kind
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from parties.agreement.session import Session


def reveal_sealed(
    job: Job, gate: RevealGate, trained: Trained, shared: Shared
) -> dict[str, SealedHalf]:
    """Return this evaluator's halves of the sealed tensors, under fresh masks; empty at the
    dealer."""
    secret = {name: trained.model.tensors[name].masked() for name in job.shapes}
    secret |= shared.parameters.sealed | trained.secret
    halves = {}
    for name in sealed_tensors(job):
        half = gate.for_recipients(name, total_steps(job), secret[name])
        if half is not None:
            halves[name] = half
    return halves


def seal_halves(
    session: Session, job: Job, halves: dict[str, SealedHalf], findings: Findings
) -> None:
    """Send an envelope with this evaluator's halves to each recipient; the same one to all if a
    threshold of them is required."""
    _seal(session, job, contents_of(job, MODEL), Kind.MODEL_SEALED, halves, findings)


def seal_metrics(session: Session, job: Job, halves: dict[str, SealedHalf]) -> None:
    """Send an envelope with this evaluator's halves of the metrics to each of their readers."""
    if job.reveal.metrics_to:
        _seal(session, job, contents_of(job, METRICS), Kind.METRICS_SEALED, halves, Findings())


def _seal(
    session: Session,
    job: Job,
    contents: Contents,
    kind: Kind,
    halves: dict[str, SealedHalf],
    findings: Findings,
) -> None:
    for group in contents.groups:
        envelope = seal_result(
            job,
            contents,
            sid=session.sid,
            me=session.me,
            recipients=group,
            recipient_keys=[session.cards[name].recipient_key for name in group],
            delta={name: half.delta for name, half in halves.items()},
            mask={name: half.lam for name, half in halves.items()},
            metrics=findings.metrics,
            unavailable=findings.reasons,
            signer=session.vault,
        )
        digest = sha256(envelope).hexdigest()
        for name in group:
            session.record(kind, recipient=name, envelope=digest)
            session.emit("sealed", f"{name}/{contents.title}.envelope", envelope)
