"""The evaluators of a session agree on the model in shares that they all keep.

1. Each evaluator shows each other one, under their pairwise key, which shares of the model it
   holds: for each a proof over a digest that only evaluators have who hold what belongs to it. That
   is one share, or more while a refresh is not over; the newest that all have is used.
2. Each tells the dealer, who keeps nothing, the names and shapes of what comes back, and what else
   is public about it; the dealer compares them with each other and with the job.

Nothing of the model is opened before both have succeeded.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from mpc_train.errors import ArtifactError
from mpc_train.owners.cells import WORD_BITS
from mpc_train.preparation.fitted import MIN_INPUT_BITS
from mpc_train.shared.library import MAX_HELD
from mpc_train.shared.share import COARSE, PREPARE, Outline, expected_shapes
from protocols.channel import MAX_FRAME_BYTES
from protocols.errors import DesyncError
from protocols.ring.rational import HEADROOM_BITS
from protocols.roles.frames import check_label

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.shared.share import ModelShare
    from parties.agreement.session import Session

PROOF_LABEL = "mpc-train shared model proof v1"
PROOF, TOLD = b"model share", b"model outline"
PROOF_BYTES = 32


def common_share(session: Session, job: Job, held: Sequence[ModelShare]) -> ModelShare:
    """The newest of this evaluator's shares that belongs to one of each other evaluator. 1 round.

    held: the newest first. Raises ArtifactError if there is none.
    """
    peers = [name for name in job.evaluators if name != session.me]
    keys = {peer: session.export(peer, PROOF_LABEL) for peer in peers}
    for peer, key in keys.items():
        session.channel.send(peer, PROOF, b"".join(one.proof(key, session.me) for one in held))
    common, lacking = list(held), list[str]()
    for peer, key in keys.items():
        label, payload = session.channel.receive(peer, MAX_HELD * PROOF_BYTES)
        check_label(peer, PROOF, label)
        shown = bytes(payload)
        proofs = [shown[at : at + PROOF_BYTES] for at in range(0, len(shown), PROOF_BYTES)]
        there = [
            one
            for one in common
            if any(hmac.compare_digest(proof, one.proof(key, peer)) for proof in proofs)
        ]
        lacking += [peer] * (not there)
        common = there
    if not common:
        raise ArtifactError(
            f"the shares of the model {held[0].about.digest[:16]} at {session.me} and at "
            f"{', '.join(lacking)} do not belong together: they are of different refreshes, or one "
            "of the vaults was restored from an old copy"
        )
    return common[0]


def tell_outline(session: Session, job: Job, share: ModelShare, *, whole: bool = False) -> Outline:
    """At an evaluator: what of its share comes back, which the dealer is told."""
    outline = outline_of(job, share, whole=whole)
    session.channel.send(job.dealer, TOLD, msgspec.json.encode(outline))
    return outline


def told_outline(session: Session, job: Job, *, whole: bool = False) -> Outline:
    """At the dealer: what all evaluators say of it. Raises DesyncError and ArtifactError for
    anything that does not fit the job."""
    said = set()
    for peer in job.evaluators:
        label, payload = session.channel.receive(peer, MAX_FRAME_BYTES)
        check_label(peer, TOLD, label)
        said.add(bytes(payload))
    if len(said) != 1:
        raise DesyncError("the evaluators hold shares of different models")
    return read_outline(job, said.pop(), whole=whole)


def outline_of(job: Job, share: ModelShare, *, whole: bool = False) -> Outline:
    """What the job needs of a share."""
    said = share.about.public
    entries = said.entries
    if job.has_own_statistics and not whole:
        entries = tuple(entry for entry in entries if not entry.name.startswith(PREPARE))
    scaled = any(entry.name == COARSE for entry in entries)
    return Outline(entries, *((said.word, said.bits) if scaled else (0, 0)))


def read_outline(job: Job, data: bytes, *, whole: bool = False) -> Outline:
    """At the dealer: the outline, checked against the job."""
    try:
        found = msgspec.json.decode(data, type=Outline)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the outline of a model in shares is malformed: {error}") from error
    shapes = {entry.name: entry.shape for entry in found.entries}
    expected = expected_shapes(job)
    if job.has_own_statistics and not whole:
        expected = {name: s for name, s in expected.items() if not name.startswith(PREPARE)}
    if shapes != expected or len(found.entries) != len(expected):
        raise ArtifactError("the evaluators hold shares of another model than the job's")
    if COARSE in shapes and not (
        found.word == WORD_BITS and 0 < found.bits <= HEADROOM_BITS - MIN_INPUT_BITS
    ):
        raise ArtifactError("the outline of a model in shares has factors of another form")
    return found
