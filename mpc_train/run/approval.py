"""A job's digest with a signature: an approval that nodes accept instead of a person's consent.

An approver reads the job (`mpc-train job check`) and signs its digest; a node that lists the
approver under `[rules] approvers` and has the approver's card in its roster runs the job without
asking. The node's other rules still apply. An approval contains no secret and may be sent in any
way.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Protocol

import msgspec

from mpc_train.jobs.job import Job
from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.sealing.signatures import Signer, Verifier

PURPOSE = "mpc-train/job-approval/1"
SUFFIX = ".approval"
MAX_APPROVAL_BYTES = 1 << 14


class ApprovalError(ValueError):
    """A fault of an approval, without the file's name."""


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """signature: base64, over approver and digest. job: for people, the name of the job."""

    approver: str
    job: str
    digest: str
    signature: str
    version: int = 1


class PublicCard(Protocol):
    """The part of a card that verification needs."""

    def verifier(self) -> Verifier: ...


def approve(job: Job, approver: str, signer: Signer) -> bytes:
    """The approval of `job` by `approver`, whose keys `signer` holds."""
    digest = job.digest()
    signature = signer.sign(PURPOSE, _statement(approver, digest))
    text = base64.b64encode(signature).decode()
    return msgspec.json.encode(Approval(approver, job.name, digest.hex(), text)) + b"\n"


def approver_of(body: bytes, digest: bytes, cards: Mapping[str, PublicCard]) -> str | None:
    """Who approves the job with this digest; None if it is for another job, or not by anybody in
    `cards`.

    Raises ApprovalError for a file that is not an approval, and for a signature that does not
    verify.
    """
    try:
        found = msgspec.json.decode(body, type=Approval)
        signature = base64.b64decode(found.signature, validate=True)
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise ApprovalError("is not an approval; make one with mpc-train job approve") from error
    if found.version != 1:
        raise ApprovalError(
            f"is an approval of version {found.version}; this program reads version 1"
        )
    if found.digest != digest.hex() or found.approver not in cards:
        return None
    try:
        statement = _statement(found.approver, digest)
        cards[found.approver].verifier().verify(PURPOSE, statement, signature)
    except AuthenticationError as error:
        raise ApprovalError(f"the signature is not that of {found.approver}'s card") from error
    return found.approver


def _statement(approver: str, digest: bytes) -> bytes:
    return pack(approver.encode(), digest)
