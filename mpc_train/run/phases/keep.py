"""Phase 5 for a model that stays in shares: each evaluator keeps its share in its vault, or
replaces it by another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from mpc_train.errors import ArtifactError
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.train import Trained
from mpc_train.shared.agreeing import common_share
from mpc_train.shared.share import ZERO_LABEL, captured, kept_tensors, renewed, zero_shares
from parties.audit.entries import Kind
from protocols.arrays import Words
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

    def shares(self, digest: str) -> list[ModelShare]:
        """The shares of the model of this digest, the newest first. Raises ArtifactError if there
        is none."""

    def settle(self, share: ModelShare) -> None:
        """Destroy all other shares of this model. Raises ArtifactError."""

    def keep(self, share: ModelShare) -> None:
        """Durable when this returns. Raises ArtifactError where it cannot be kept."""


def keep_model(
    session: Session,
    job: Job,
    role: Role,
    trained: Trained,
    shared: Shared,
    library: Library | None,
    counts: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Keep the model; at every computing node, of which the dealer keeps nothing.

    counts: of the training rows, if the job lets them out. Nothing is kept by anybody that counts
    unless all evaluators have: the run ends otherwise, and can go on from its last checkpoint,
    unless counts with noise have left. Raises ArtifactError.
    """
    tensors = {name: trained.model.tensors[name].masked() for name in job.shapes}
    kept = kept_tensors(tensors, shared.parameters)
    role.finish()
    if not session.is_evaluator:
        return
    zeros = _zeros(session, job)
    share = captured(job, role, session.sid, kept, shared.parameters.factors, zeros, counts)
    missing, problem = _kept_by_all(session, job, share, Kind.MODEL_KEPT, library)
    if missing:
        then = "the run goes on after its last step"
        if job.counts_training:
            then = (
                "the run begins anew with --fresh at all nodes, because noise that was drawn for "
                "counts of its training rows may not be drawn again"
            )
        raise ArtifactError(
            f"{', '.join(missing)} could not keep a share of the model{problem}; mend that and "
            f"start the nodes again: {then}"
        )


def refresh_model(
    session: Session, job: Job, held: Sequence[ModelShare], library: Library | None
) -> None:
    """Replace the evaluators' shares of a model; at an evaluator. 2 rounds.

    1. The evaluators agree on the newest share that all hold. Every other one is worth nothing.
    2. Each adds its part of zeros that follow from keys of this session, and keeps the result
       beside the old share.
    3. Each says whether that is durable. The old share is destroyed when all have said so.

    Wherever a node ends, all evaluators hold the old shares or all hold the new ones, or both: the
    next session chooses by 1. Raises ArtifactError.
    """
    share = common_share(session, job, held)  # 1
    if library is not None:
        library.settle(share)
    new = renewed(share, session.sid, _zeros(session, job))  # 2
    missing, problem = _kept_by_all(session, job, new, Kind.MODEL_REFRESHED, library)
    if missing or library is None:
        raise ArtifactError(
            f"{', '.join(missing)} could not keep a new share of the model{problem}; the old "
            "shares stay good. Mend that, and start the nodes again"
        )
    library.settle(new)  # 3


def _zeros(session: Session, job: Job) -> Callable[[int], Words]:
    """This evaluator's part of words that add up to 0, from keys of this session."""
    me, streams = job.evaluators.index(session.me), {}
    for index, peer in enumerate(job.evaluators):
        if index != me:
            streams[index] = Stream(session.export(peer, ZERO_LABEL))
            streams[index].begin_step(0)
    return zero_shares(me, streams)


def _kept_by_all(
    session: Session, job: Job, share: ModelShare, kind: Kind, library: Library | None
) -> tuple[list[str], str]:
    """Keep a share, and hear of the others; who could not, and why, if it is this node. 1 round."""
    problem = ""
    try:
        if library is None:
            raise ArtifactError("this node has no vault")
        session.record(kind, model=share.about.digest)
        library.keep(share)
    except ArtifactError as error:
        problem = f" ({error})"
    others = [name for name in job.evaluators if name != session.me]
    said = swap(session.channel, others, KEPT, bytes([not problem]))
    missing = [name for name in others if said[name] != b"\1"] + [session.me] * bool(problem)
    return missing, problem
