"""Phase 5 for a model that stays in shares: each evaluator keeps its share in its vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mpc_train.errors import ArtifactError
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.train import Trained
from mpc_train.shared.share import ZERO_LABEL, captured, kept_tensors, zero_shares
from parties.audit.entries import Kind
from protocols.roles.frames import swap
from protocols.roles.role import Role
from protocols.roles.streams import Stream

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.shared.share import ModelShare
    from parties.agreement.session import Session

KEPT = b"model kept"


class Library(Protocol):
    """Where an evaluator keeps its shares of models."""

    def share(self, digest: str) -> ModelShare:
        """The share of the model of this digest. Raises ArtifactError if it cannot be used."""

    def keep(self, share: ModelShare) -> None:
        """Durable when this returns. Raises ArtifactError where it cannot be kept."""


def keep_model(
    session: Session,
    job: Job,
    role: Role,
    trained: Trained,
    shared: Shared,
    library: Library | None,
) -> None:
    """Keep the model; at every computing node, of which the dealer keeps nothing.

    Nothing is kept by anybody that counts unless all evaluators have: the run ends otherwise, and
    can go on from its last checkpoint. Raises ArtifactError.
    """
    tensors = {name: trained.model.tensors[name].masked() for name in job.shapes}
    kept = kept_tensors(tensors, shared.parameters)
    role.finish()
    if not session.is_evaluator:
        return
    me, streams = job.evaluators.index(session.me), {}
    for index, peer in enumerate(job.evaluators):
        if index != me:
            streams[index] = Stream(session.export(peer, ZERO_LABEL))
            streams[index].begin_step(0)
    zeros = zero_shares(me, streams)
    share = captured(job, role, session.sid, kept, shared.parameters.factors, zeros)
    problem = ""
    try:
        if library is None:
            raise ArtifactError("this node has no vault")
        session.record(Kind.MODEL_KEPT, model=share.about.digest)
        library.keep(share)
    except ArtifactError as error:
        problem = str(error)
    others = [name for name in job.evaluators if name != session.me]
    said = swap(session.channel, others, KEPT, bytes([not problem]))
    missing = [name for name in others if said[name] != b"\1"] + [session.me] * bool(problem)
    if missing:
        raise ArtifactError(
            f"{', '.join(missing)} could not keep a share of the model"
            + (f" ({problem})" if problem else "")
            + "; mend that and start the nodes again: the run goes on after its last step"
        )
