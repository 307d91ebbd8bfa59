"""Where a model comes from: what all nodes of its run signed, verified with the cards alone.

A sealed file holds the record of its run: the contract, the job, the statement of results and every
node's signature (`parties.agreement.result`). An opened model has it in its manifest, which its
recipient signs. Verifying needs no key:

1. The record: the cards are those of the contract, and every node signed the statement.
2. The contract is about this job, with its roles.
3. The job allows each opening in the ledger, and training began with the job's weights.
4. A sealed file: it holds the envelope of each evaluator to one recipient, each signed by its
   sender, and each the one that the statement names.
5. An opened model: its recipient signed the manifest; job, session and promise of privacy are those
   of the record; each evaluator signed what it says of the run, metrics included; every file that
   it speaks of is the one beside it.

Every fault is an ArtifactError or a RosterError.
"""

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpc_train.errors import ArtifactError
from mpc_train.node.collect import check_signed
from mpc_train.node.consent import roles_of
from parties.errors import ContractError

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.results.outcome import Outcome
    from mpc_train.shared.share import About
    from parties.agreement.result import Record
    from parties.keys.identity import Card
    from parties.keys.roster import Roster
    from protocols.sealing.signatures import Signer

MANIFEST_PURPOSE = "mpc-train/manifest/1"
SIGNATURE_FILE = "manifest.sig"
MAX_MANIFEST_BYTES = 1 << 28
MAX_MODEL_BYTES = 1 << 36
_STATED = ("sid", "job", "step", "recipients", "threshold", "metrics", "unavailable")
"""What stands both in a manifest and in the statement of each evaluator."""


@dataclass(frozen=True)
class Provenance:
    """A verified record and what it says. unchecked: what could not be derived here, in words."""

    record: "Record"
    job: "Job"
    outcome: "Outcome"
    unchecked: tuple[str, ...] = ()
    recipient: str = ""
    cards: Mapping[str, "Card"] = field(default_factory=dict, repr=False)
    """Of a sealed file: under which it verified, by name."""
    files: tuple[str, ...] = field(default=())

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.record.contract.roles.nodes


def verify_record(data: bytes, roster: "Roster") -> Provenance:
    """Steps 1 to 3. Raises ArtifactError, RosterError."""
    from mpc_train.admission.load import job_from_bytes
    from mpc_train.errors import JobError, ModelError
    from mpc_train.jobs.training import leaving
    from mpc_train.results.outcome import check, read_outcome
    from parties.agreement.result import Record

    try:
        record = Record.from_bytes(data)
        job = job_from_bytes(record.body)
        record.verify(roster, leaving(job))  # 1, 2
    except ContractError as error:
        raise ArtifactError(f"where the model comes from cannot be verified: {error}") from error
    except JobError as error:
        raise ArtifactError(f"the signed job cannot be read: {error}") from error
    if record.contract.roles != roles_of(job) or record.contract.name != job.name:
        raise ArtifactError("the contract has other roles than the job; it is of no run")
    outcome = read_outcome(record.statement.outcome)
    unchecked: tuple[str, ...] = ()
    try:
        check(job, outcome)  # 3
    except ModelError as error:
        unchecked = (f"the first weights were not derived again: {error}",)
    return Provenance(record, job, outcome, unchecked)


def verify_shared(about: "About", record: bytes, roster: "Roster") -> Provenance:
    """Steps 1 to 3 for a model that stays in shares, and that the record is of the run which
    trained it. Raises ArtifactError, RosterError."""
    found = verify_record(record, roster)
    sid = found.record.statement.sid.hex()
    if found.job.digest() != about.job.digest() or sid != about.public.sid:
        raise ArtifactError(
            f"what all nodes signed is about another run than the one that trained {about.job.name}"
        )
    return found


def verify_sealed(data: bytes, roster: "Roster") -> Provenance:
    """Steps 1 to 4, of the content of a sealed file.

    Raises ArtifactError and RosterError; EnvelopeError for what is no sealed file of this version.
    """
    from mpc_train.admission.load import resolved
    from mpc_train.results.artifact import contents_of, envelope_info
    from mpc_train.results.opening import sealed_title
    from protocols.errors import EnvelopeError
    from protocols.sealing.bundle import unpack_bundle
    from protocols.sealing.envelope import check_envelope, named_keys, read_info

    record, envelopes = unpack_bundle(data)
    try:
        found = verify_record(record, roster)
        joined = found.outcome.joined
        job = resolved(found.job, joined) if joined else found.job
        contents = contents_of(job, sealed_title(data))
        about = [read_info(envelope) for envelope in envelopes]
        senders = [info.sender for info in about]
        missing = [name for name in job.evaluators if name not in senders]
        if missing or len(senders) != len(job.evaluators):  # 4
            raise ArtifactError(
                f"the file holds envelopes of {', '.join(senders) or 'nobody'}; expected one of "
                f"each of {', '.join(job.evaluators)}"
            )
        group = about[0].recipients
        if group not in contents.groups or {info.recipients for info in about} != {group}:
            raise ArtifactError("the envelopes are not for recipients of the signed job")
        sid, cards = found.record.statement.sid, found.record.signers(roster)
        file = f"{contents.title}.envelope"
        for envelope, sender in zip(envelopes, senders, strict=True):
            for name in group:
                sent = found.record.statement.sent_by(sender)
                check_signed(sent, sender, name, file, envelope)
            # Sealed to recipients as they were: they may have been rotated before or since.
            keys = named_keys(envelope, [cards[name].recipient_keys for name in group])
            check_envelope(
                envelope,
                expected=envelope_info(job, contents, sid, sender, group),
                recipient_keys=keys,
                verifier=cards[sender].verifier(),
            )
    except EnvelopeError as error:
        raise ArtifactError(f"the sealed file is not one of this run: {error}") from error
    return replace(found, recipient=", ".join(group), cards=cards)


def sign_manifest(manifest: bytes, signer: "Signer") -> bytes:
    """The recipient's signature under an opened model, as the text of a file."""
    return base64.encodebytes(signer.sign(MANIFEST_PURPOSE, manifest))


def verify_opened(folder: Path, roster: "Roster") -> Provenance:
    """Steps 1 to 3 and 5, of an opened model's folder. Raises ArtifactError, RosterError."""
    from mpc_train.privacy.words import as_json
    from mpc_train.results.artifact import PURPOSE, commit
    from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE
    from protocols.errors import AuthenticationError

    raw = read_result(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    signature = _base64(read_result(folder / SIGNATURE_FILE, 1 << 14), folder / SIGNATURE_FILE)
    try:
        said: dict[str, Any] = json.loads(raw)
        recipient, model = str(said["recipient"]), said["model"]
        record = _base64(str(said["record"]).encode(), folder / MANIFEST_FILE)
        statements = [
            (str(one["evaluator"]), str(one["statement"]).encode(), str(one["signature"]).encode())
            for one in said["statements"]
        ]
        parts = [model, said["preparation"], said.get("regression", {})]
        listed = {str(part["file"]): str(part["hmac_sha256"]) for part in parts if "file" in part}
        job, sid = str(said["job_digest"]), str(said["sid"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: not a manifest of this version") from error
    try:
        roster.card(recipient)
        roster.signers()[recipient].verifier().verify(MANIFEST_PURPOSE, raw, signature)  # 5
    except AuthenticationError as error:
        raise ArtifactError(
            f"{folder / MANIFEST_FILE}: {recipient}, who opened the model, did not sign it: {error}"
        ) from error
    found = verify_record(record, roster)
    if recipient not in found.job.recipients:
        raise ArtifactError(f"{recipient} is not a recipient of the signed job")
    if (job, sid) != (found.job.digest().hex(), found.record.statement.sid.hex()):
        raise ArtifactError(f"{folder / MANIFEST_FILE}: is about another run than its record")
    if [name for name, _, _ in statements] != list(found.job.evaluators):
        raise ArtifactError(
            f"{folder / MANIFEST_FILE}: has the statements of "
            f"{', '.join(name for name, _, _ in statements)}; expected those of "
            f"{', '.join(found.job.evaluators)}"
        )
    if said.get("privacy") != as_json(found.job):
        raise ArtifactError(
            f"{folder / MANIFEST_FILE}: promises another privacy than the job that all nodes signed"
        )
    cards = found.record.signers(roster)
    for name, text, signed in statements:
        try:
            verifier = cards[name].verifier()
            verifier.verify(PURPOSE, text, _base64(signed, folder / MANIFEST_FILE))
        except AuthenticationError as error:
            raise ArtifactError(
                f"{folder / MANIFEST_FILE}: {name} did not sign its statement: {error}"
            ) from error
        _check_statement(text, name, said, found.job)
    if MODEL_FILE not in listed:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: names no {MODEL_FILE}")
    key = b""
    for name, expected in {MODEL_FILE: listed.pop(MODEL_FILE), **listed}.items():
        if Path(name).name != name:
            raise ArtifactError(f"{folder / MANIFEST_FILE}: names a file elsewhere")
        content = read_result(folder / name, MAX_MODEL_BYTES)
        key = key or _manifest_key(content, folder / name)
        if not hmac.compare_digest(commit(key, content), expected):
            raise ArtifactError(f"{folder / name}: is not the file that the manifest speaks of")
    return replace(found, recipient=recipient, files=(MODEL_FILE, *listed))


def _check_statement(text: bytes, name: str, manifest: Mapping[str, Any], job: "Job") -> None:
    """What an evaluator signed is about the model of this run, and says what the manifest says."""
    import msgspec

    from mpc_train.admission.load import job_from_bytes
    from mpc_train.errors import JobError
    from mpc_train.results.artifact import MODEL, Statement

    try:
        said = msgspec.json.decode(text, type=Statement)
        about = job_from_bytes(said.job.encode()).digest()
        signed = json.loads(msgspec.json.encode(said)) | {"job": json.loads(said.job)}
    except (msgspec.MsgspecError, ValueError, RecursionError, JobError) as error:
        raise ArtifactError(f"the statement of {name} is malformed: {error}") from error
    fits = manifest["recipient"] in said.recipients and said.contents == MODEL
    if not fits or (said.evaluator, about) != (name, job.digest()):
        raise ArtifactError(f"the statement of {name} is about another run, recipient or result")
    others = [key for key in _STATED if manifest.get(key) != signed[key]]
    if others:
        raise ArtifactError(
            f"the manifest says another {others[0]} than {name} signed: its recipient altered it"
        )


def _manifest_key(model: bytes, path: Path) -> bytes:
    """The key in a model file that ties it to its manifest."""
    try:
        length = int.from_bytes(model[:8], "little")
        header: Mapping[str, Any] = json.loads(model[8 : 8 + length])
        return bytes.fromhex(header["__metadata__"]["manifest_key"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a model file that mpc-train open wrote") from error


def _base64(text: bytes, path: Path) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError as error:
        raise ArtifactError(f"{path}: holds something other than base64") from error


def read_result(path: Path, most: int) -> bytes:
    from parties.files import read_bounded

    try:
        return read_bounded(path, min(path.stat().st_size, most))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ArtifactError(f"{path}: cannot be read ({reason})") from error
