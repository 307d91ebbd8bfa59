"""What an audit log says: entries of a closed list of kinds, with fields that hold no secret.

An entry says what happened, when, and in which job. Fields are words, numbers and names; no cell,
value, share, key or passphrase is ever one of them, and no error's text, which may hold paths or
depend on data: errors stand there by their code.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from parties.errors import (
    AuditError,
    AuditTamperedError,
    PassphraseError,
    RetiredKeyError,
    VaultError,
)
from protocols.errors import AuthenticationError, EnvelopeError, HandshakeError

Value = str | int | bool | None | tuple[str, ...]
MAX_ENTRY_BYTES = 1 << 16


class Kind(StrEnum):
    """The closed list; a log with another kind is of a later release."""

    LOG_BEGUN = "log-begun"
    LOG_KEY = "log-key"
    """The log's key was wrapped, at first or anew; `sha256` of the file that holds it is public."""
    LOG_SHARED = "log-shared"
    """The log's key was sealed to these auditors, and taken away from others."""
    LOG_TORN = "log-torn"
    """The last entry was incomplete, after a crash, and was cut off: `bytes` of it."""
    CLOCK_BACK = "clock-back"
    """The clock said an earlier time than at the entry before."""
    IDENTITY_OPENED = "identity-opened"
    IDENTITY_ROTATED = "identity-rotated"
    """This node's identity was succeeded; the succession is public and stands beside the entry.
    Checkpoints from here on are signed by the successor."""
    PEER_ROTATED = "peer-rotated"
    """The card of `node` was replaced by its successor, which the old card has signed."""
    SUCCESSION_REFUSED = "succession-refused"
    """A successor of a card of `node` was not believed: forged, late, or one of two."""
    PEER_REVOKED = "peer-revoked"
    """A card of `node` is not accepted any more, and was put out of the run."""
    AUTHENTICATION_FAILED = "authentication-failed"
    UNEXPECTED_PEER = "unexpected-peer"
    DECRYPTION_FAILED = "decryption-failed"
    RETIRED_KEY_USED = "retired-key-used"
    POLICY_ACCEPTED = "policy-accepted"
    """The signed policy that is in force from here on: its digest, and its number."""
    POLICY_REFUSED = "policy-refused"
    """A policy that is not signed as it has to be, not for this day or node, or an older one."""
    APPROVAL_GIVEN = "approval-given"
    """Somebody approved a job here; whether that counts is for the rules to say."""
    RUN_PROPOSED = "run-proposed"
    JOB_APPROVED = "job-approved"
    """Why this node may sign: the digest in its file, approvers, or a person; and the digest of
    the policy that says so."""
    RUN_REFUSED = "run-refused"
    RUN_SIGNED = "run-signed"
    CHECKPOINT_RECEIVED = "checkpoint-received"
    """Another node's checkpoint; the note itself is public and stands beside the entry."""
    LOG_CONTRADICTED = "log-contradicted"
    """Another node's log does not go on from a checkpoint that this node holds."""
    RUN_STARTED = "run-started"
    OPENING = "opening"
    """A value is about to leave the masked domain."""
    OPENED = "opened"
    """It has; `digest` is an HMAC of it under a key of this log."""
    OPENING_REFUSED = "opening-refused"
    MODEL_SEALED = "model-sealed"
    MODEL_KEPT = "model-kept"
    """An evaluator is about to keep its share of a `model`, which nobody opens."""
    MODEL_REFRESHED = "model-refreshed"
    MODEL_RETIRED = "model-retired"
    """Its share of a `model` is about to be destroyed."""
    RESULTS_SIGNED = "results-signed"
    """The statement of results that all nodes sign, by its digest."""
    METRICS_SEALED = "metrics-sealed"
    MODEL_OPENED = "model-opened"
    """A recipient is about to open what was sealed to it: `sealed` is the file's SHA-256, `to` the
    object of the vault that it becomes, or nothing for files in the clear."""
    METRICS_OPENED = "metrics-opened"
    CONTRIBUTION_MADE = "contribution-made"
    """A recipient helps `opener` to open a file that several open together."""
    RUN_ENDED = "run-ended"
    RUN_ABORTED = "run-aborted"
    VAULT_IMPORT = "vault-import"
    VAULT_EXPORT = "vault-export"
    VAULT_ROTATE = "vault-rotate"
    VAULT_SHRED = "vault-shred"
    SERVICE_STARTED = "service-started"
    """This node takes part in a service of `models` in shares, by their digests, from here on."""
    SERVICE_ENDED = "service-ended"
    QUERY_ANSWERED = "query-answered"
    """A `client` got predictions of `model` for up to so many `rows`; their number is padded. An
    entry may stand for several `questions`."""
    QUERY_REFUSED = "query-refused"
    """A `client` got none, for the reason `code`. An entry may stand for several `questions`."""
    COUNTS_RELEASED = "counts-released"
    """How many `rows` that a `model` was asked about fall into which bins is about to leave with
    noise of so much `epsilon`, for all evaluators; their number is padded."""
    ALERT_FAILED = "alert-failed"


ALARMING = frozenset(
    {
        Kind.AUTHENTICATION_FAILED,
        Kind.UNEXPECTED_PEER,
        Kind.DECRYPTION_FAILED,
        Kind.RETIRED_KEY_USED,
        Kind.SUCCESSION_REFUSED,
        Kind.PEER_REVOKED,
        Kind.POLICY_REFUSED,
        Kind.RUN_REFUSED,
        Kind.OPENING_REFUSED,
        Kind.LOG_CONTRADICTED,
    }
)
"""What somebody is told of at once (`alerts`)."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """time: UTC, ISO 8601 with milliseconds. job, digest: empty where it is about no job."""

    time: str
    kind: Kind
    job: str = ""
    digest: str = ""
    fields: dict[str, Value] = {}

    def encoded(self) -> bytes:
        data = msgspec.json.encode(self)
        if len(data) > MAX_ENTRY_BYTES:
            raise AuditError(f"an entry has {len(data)} bytes, at most {MAX_ENTRY_BYTES}")
        return data

    def record(self, number: int) -> dict[str, object]:
        """As it is shown to machines."""
        return {"entry": number, **msgspec.to_builtins(self)}


def read_entry(data: bytes) -> Entry:
    """Raises AuditTamperedError for what is not an entry of this release."""
    try:
        return msgspec.json.decode(data, type=Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AuditTamperedError("is not an entry that this release knows") from error


def kind_of(error: BaseException) -> Kind | None:
    """What an error is to be logged as besides the end of what it ended; None: as nothing more."""
    kinds: Mapping[type[BaseException], Kind] = {
        AuthenticationError: Kind.AUTHENTICATION_FAILED,
        HandshakeError: Kind.AUTHENTICATION_FAILED,
        PassphraseError: Kind.AUTHENTICATION_FAILED,
        RetiredKeyError: Kind.RETIRED_KEY_USED,
        EnvelopeError: Kind.DECRYPTION_FAILED,
    }
    while True:
        for one, kind in kinds.items():
            if isinstance(error, one):
                return kind
        # The vault names the object, and has what went wrong as its cause.
        if not isinstance(error, VaultError) or error.__cause__ is None:
            return None
        error = error.__cause__
