"""Phase 5: seals the weights, and the parameters that prepare their inputs, to recipients."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from mpc_train.evaluation.findings import Findings
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.preparation.sharing import Shared
from mpc_train.results.artifact import ENVELOPE_FILE, seal_model
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
    """Send an envelope with this evaluator's halves to each recipient."""
    for recipient in job.recipients:
        envelope = seal_model(
            job,
            sid=session.sid,
            me=session.me,
            recipient=recipient,
            recipient_key=session.cards[recipient].recipient_key,
            delta={name: half.delta for name, half in halves.items()},
            mask={name: half.lam for name, half in halves.items()},
            metrics=findings.metrics,
            unavailable=findings.reasons,
            signer=session.vault,
        )
        digest = sha256(envelope).hexdigest()
        session.record(Kind.MODEL_SEALED, recipient=recipient, envelope=digest)
        session.emit("sealed", f"{recipient}/{ENVELOPE_FILE}", envelope)
