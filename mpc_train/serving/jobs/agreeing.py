"""The evaluators of a session agree on the model in shares that they all keep.

1. Each evaluator shows each other one, under their pairwise key, that it holds a share of the same
   model: a proof over a digest of all Δ, which only its evaluators have.
2. Each tells the dealer, who keeps nothing, the names and shapes of what comes back, and what else
   is public about it; the dealer compares them with each other and with the job.

Nothing of the model is opened before both have succeeded.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import msgspec

from mpc_train.errors import ArtifactError
from mpc_train.owners.cells import WORD_BITS
from mpc_train.preparation.fitted import MIN_INPUT_BITS
from mpc_train.serving.share import COARSE, PREPARE, Outline, expected_shapes
from protocols.channel import MAX_FRAME_BYTES
from protocols.errors import DesyncError
from protocols.ring.rational import HEADROOM_BITS
from protocols.roles.frames import check_label

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.serving.share import ModelShare
    from parties.agreement.session import Session

PROOF_LABEL = "mpc-train shared model proof v1"
PROOF, TOLD = b"model share", b"model outline"


def agreed_outline(session: Session, job: Job, share: ModelShare | None) -> Outline:
    """What of the model of the job's warm start comes back; at every computing node. 1 round.

    share: this evaluator's; None at the dealer. Raises ArtifactError if an evaluator holds a share
    of another model, or of another refresh; DesyncError and ArtifactError at the dealer for
    anything that does not fit the job.
    """
    channel = session.channel
    if share is None:
        said = set()
        for peer in job.evaluators:
            label, payload = channel.receive(peer, MAX_FRAME_BYTES)
            check_label(peer, TOLD, label)
            said.add(bytes(payload))
        if len(said) != 1:
            raise DesyncError("the evaluators hold shares of different models")
        return read_outline(job, said.pop())
    peers = [name for name in job.evaluators if name != session.me]
    keys = {peer: session.export(peer, PROOF_LABEL) for peer in peers}
    for peer, key in keys.items():
        channel.send(peer, PROOF, share.proof(key, session.me))
    for peer, key in keys.items():
        label, proof = channel.receive(peer, len(share.agreed))
        check_label(peer, PROOF, label)
        if not hmac.compare_digest(bytes(proof), share.proof(key, peer)):
            raise ArtifactError(
                f"{peer} holds a share of the model {share.about.digest[:16]} that does not belong "
                f"to the one of {session.me}; the shares must be of one run: restore the vault in "
                "which they are"
            )
    outline = outline_of(job, share)
    channel.send(job.dealer, TOLD, msgspec.json.encode(outline))
    return outline


def outline_of(job: Job, share: ModelShare) -> Outline:
    """What the job needs of a share."""
    said = share.about.public
    entries = said.entries
    if job.has_own_statistics:
        entries = tuple(entry for entry in entries if not entry.name.startswith(PREPARE))
    scaled = any(entry.name == COARSE for entry in entries)
    return Outline(entries, *((said.word, said.bits) if scaled else (0, 0)))


def read_outline(job: Job, data: bytes) -> Outline:
    """At the dealer: the outline, checked against the job."""
    try:
        found = msgspec.json.decode(data, type=Outline)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the outline of a model in shares is malformed: {error}") from error
    shapes = {entry.name: entry.shape for entry in found.entries}
    expected = expected_shapes(job)
    if job.has_own_statistics:
        expected = {name: s for name, s in expected.items() if not name.startswith(PREPARE)}
    if shapes != expected or len(found.entries) != len(expected):
        raise ArtifactError("the evaluators hold shares of another model than the job's")
    if COARSE in shapes and not (
        found.word == WORD_BITS and 0 < found.bits <= HEADROOM_BITS - MIN_INPUT_BITS
    ):
        raise ArtifactError("the outline of a model in shares has factors of another form")
    return found
