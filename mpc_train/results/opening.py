"""A recipient opens what the evaluators sealed, and gets an ordinary PyTorch state_dict.

It needs the envelopes of all evaluators of one run (`mpc_train.results.artifact` says what is in
them), compares every ΔW bit for bit, and computes W = ΔW − Σ [λW]_i modulo 2^64 at scale 2**f. If
anything does not fit, an error names the sender of the envelope, and nothing is opened.

The manifest can be shown to others, who verify it with the evaluators' cards (signatures) and, if
they have the model file, tie the two together with the key inside that file.
"""

import base64
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mpc_train.admission.load import job_from_bytes
from mpc_train.base.reading import Reading, is_reading
from mpc_train.errors import ArtifactError, JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import is_newton, total_steps
from mpc_train.jobs.sealed import BEYOND, sealed_tensors
from mpc_train.linkage.partners import all_linkage_warnings, without_partner
from mpc_train.preparation.sealed import BITS, in_words, opened_parameters, remarks
from mpc_train.regression.settings import regression_bits
from mpc_train.regression.table import COEFFICIENTS_FILE, Results, results
from mpc_train.results.artifact import PURPOSE, Statement, check_tensors, commit
from mpc_train.results.recipe import recipe
from protocols.canonical import unpack
from protocols.errors import AuthenticationError, FrameError
from protocols.sealing.envelope import (
    MAX_PAYLOAD_BYTES,
    EnvelopeInfo,
    Unsealer,
    open_envelope,
    read_info,
)
from protocols.sealing.recipient_keys import RecipientKey
from protocols.sealing.signatures import Verifier

MODEL_FILE, MANIFEST_FILE = "model.safetensors", "manifest.json"
PREPARATION_FILE = "preparation.safetensors"
"""The parameters that turn raw columns into the model's inputs, float64, if the job has secret
ones."""
MAX_STATEMENT_BYTES = 1 << 24
_SIGNATURE_BYTES = 1 << 14
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding raises on bytes that are not JSON of the type."""


class PublicCard(Protocol):
    """The part of a card that opening needs."""

    @property
    def recipient_key(self) -> RecipientKey: ...

    def verifier(self) -> Verifier: ...


@dataclass(frozen=True, repr=False)
class OpenedModel:
    """A recipient's model. weights: float64 by name, exact; `files` are ready to be written."""

    job: Job
    weights: dict[str, NDArray[np.float64]]
    metrics: dict[str, Reading]
    files: dict[str, bytes]
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why a metric, or a bin of it, is unavailable, by its name."""

    @property
    def results(self) -> Results | None:
        """For a regression: its table of coefficients."""
        return results(self.job, self.weights) if is_newton(self.job) else None

    @property
    def warnings(self) -> list[str]:
        """What a reader of the model has to know about its training rows and its inputs; for a
        regression `results` says more."""
        return [*_of_linkage(self.job), *in_words(self.remarks)]

    @property
    def remarks(self) -> dict[str, list[str]]:
        """Inputs that are not scaled as the job asks, see `preparation.sealed.remarks`."""
        return remarks(self.job.pipeline, self.weights)

    def __repr__(self) -> str:
        return f"OpenedModel({self.job.name}, {len(self.weights)} tensors)"


def open_model(
    envelopes: Sequence[bytes],
    *,
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
    job: Job | None = None,
    record: bytes = b"",
) -> OpenedModel:
    """Open the envelopes of a run as `recipient` and put the model together.

    record: what all nodes signed, verified by the caller; it goes into the manifest.

    1. Every envelope verifies under its sender's card and opens with our key.
    2. Its statement is signed by the sender and fits the envelope and the tensors inside.
    3. All statements are about the same job, session and metrics; the job is `job` if given, by its
       digest, which does not count how many rows were joined.
    4. Every evaluator of the job sent exactly one envelope, and nobody else sent one.
    5. All evaluators sealed the same ΔW.

    Raises ArtifactError, which says which envelope is wrong or missing; EnvelopeError for one that
    does not verify or open.
    """
    parts: dict[str, _Part] = {}
    for envelope in envelopes:
        part = _open_part(envelope, recipient, private, cards)
        if part.statement.evaluator in parts:
            raise ArtifactError(f"two envelopes of {part.statement.evaluator}; remove one")
        parts[part.statement.evaluator] = part
    if not parts:
        raise ArtifactError("no envelope; ask the coordinator for the sealed model")
    first = next(iter(parts.values()))
    signed_job = _signed_job(first.statement)
    if job is not None and job.digest() != signed_job.digest():
        raise ArtifactError(
            f"the sealed model is that of the job {signed_job.name}, digest "
            f"{signed_job.digest().hex()}; expected {job.name}, digest {job.digest().hex()}"
        )
    _check_complete(parts, signed_job)
    weights = _combine(signed_job, parts)
    files = _files(signed_job, recipient, cards[recipient].recipient_key, weights, parts, record)
    said = first.statement
    return OpenedModel(signed_job, weights, dict(said.metrics), files, dict(said.unavailable))


@dataclass(frozen=True, repr=False)
class _Part:
    statement: Statement
    statement_text: bytes
    signature: bytes
    tensors: dict[str, NDArray[np.int64]]


def _open_part(
    envelope: bytes,
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
) -> _Part:
    claimed = read_info(envelope)
    sender = claimed.sender
    if sender not in cards:
        raise ArtifactError(f"an envelope of {sender!r}, who is not in the roster; add its card")
    if recipient not in cards:
        raise ArtifactError(f"no card of {recipient!r}, the recipient, in the roster")
    if claimed.recipient != recipient:
        raise ArtifactError(
            f"an envelope for {claimed.recipient!r}; it opens with that identity, not with "
            f"{recipient!r}"
        )
    # Step and names in the envelope are compared with the statement after that is read.
    expected = EnvelopeInfo(claimed.sid, claimed.step, claimed.names, sender, recipient)
    verifier = cards[sender].verifier()
    payload = open_envelope(  # 1
        envelope,
        expected=expected,
        recipient_key=cards[recipient].recipient_key,
        private=private,
        verifier=verifier,
    )
    bounds = (MAX_STATEMENT_BYTES, _SIGNATURE_BYTES, 32, MAX_PAYLOAD_BYTES)
    try:
        text, signature, key, blob = unpack(payload, bounds)
        verifier.verify(PURPOSE, text, signature)  # 2
        statement = msgspec.json.decode(text, type=Statement)
    except (*_MALFORMED, FrameError, AuthenticationError) as error:
        raise ArtifactError(f"{sender} sealed a statement that is malformed: {error}") from error
    if not all(is_reading(value) for value in statement.metrics.values()):
        raise ArtifactError(f"the statement of {sender} contains a metric that is not a number")
    about = (statement.evaluator, statement.recipient, statement.sid, statement.step)
    if about != (sender, recipient, claimed.sid.hex(), claimed.step) or statement.version != 1:
        raise ArtifactError(f"the statement of {sender} does not fit its envelope")
    if not hmac.compare_digest(statement.commitment, commit(key, blob)):
        raise ArtifactError(f"the statement of {sender} is not about the tensors it sealed")
    try:
        tensors = load_tensors(blob)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{sender} sealed tensors that cannot be read") from error
    if tuple(claimed.names) != tuple(sealed_tensors(_signed_job(statement))):
        raise ArtifactError(f"the envelope of {sender} does not name the model's tensors")
    return _Part(statement, text, signature, tensors)


def _signed_job(statement: Statement) -> Job:
    try:
        return job_from_bytes(statement.job.encode())
    except (JobError, UnicodeEncodeError) as error:
        raise ArtifactError(f"the statement of {statement.evaluator}: {error}") from error


def _check_complete(parts: Mapping[str, _Part], job: Job) -> None:
    sessions = {part.statement.sid for part in parts.values()}
    if len(sessions) > 1:
        raise ArtifactError("the envelopes are of different runs; take those of one run only")
    body = job.to_bytes().decode()
    for name, part in parts.items():  # 3
        statement = part.statement
        if statement.job != body:
            raise ArtifactError(f"the envelope of {name} is of another job than the others")
        if statement.step != total_steps(job):
            raise ArtifactError(f"the envelope of {name} is not of the last step")
        first = next(iter(parts.values())).statement
        if (statement.metrics, statement.unavailable) != (first.metrics, first.unavailable):
            raise ArtifactError(f"{name} states different metrics from the other evaluators")
    missing = [name for name in job.evaluators if name not in parts]
    foreign = [name for name in parts if name not in job.evaluators]
    if missing:  # 4
        raise ArtifactError(
            f"the envelope of {', '.join(missing)} is missing; without it nothing can be opened; "
            "ask the coordinator, or that evaluator, for it"
        )
    if foreign:
        raise ArtifactError(f"an envelope of {', '.join(foreign)}, who did not evaluate this job")


def _combine(job: Job, parts: Mapping[str, _Part]) -> dict[str, NDArray[np.float64]]:
    total: dict[str, NDArray[np.int64]] = {}
    first: dict[str, NDArray[np.int64]] = {}
    for sender, part in parts.items():
        halves: dict[str, dict[str, NDArray[np.int64]]] = {"delta": {}, "mask": {}}
        for key, value in part.tensors.items():
            kind, _, name = key.partition(".")
            if kind not in halves:
                raise ArtifactError(f"{sender} sealed a tensor that the job does not know")
            halves[kind][name] = value
        for kind, tensors in halves.items():
            check_tensors(job, f"{kind} of {sender}", tensors)
        for name in sealed_tensors(job):
            if not first.keys() >= sealed_tensors(job).keys():
                first[name] = halves["delta"][name]
                total[name] = halves["delta"][name].copy()
            if not np.array_equal(first[name], halves["delta"][name]):  # 5
                raise ArtifactError(
                    f"{sender} sealed different masked weights from {next(iter(parts))}: one of "
                    "them deviated, so the model is not opened"
                )
            total[name] -= halves["mask"][name]
    bits = regression_bits(job) | BITS
    decoded = {
        name: np.ldexp(value.astype(np.float64), -bits.get(name, job.fraction_bits))
        for name, value in total.items()
    }
    kept = {name: value for name, value in decoded.items() if name not in BITS or name == BEYOND}
    return kept | opened_parameters(job.pipeline, decoded)


def _of_linkage(job: Job) -> list[str]:
    """Warnings if few of an owner's records were joined: the signed job says how many."""
    joined = job.data.joined
    return all_linkage_warnings(job, joined) if joined else []


def _files(
    job: Job,
    recipient: str,
    recipient_key: RecipientKey,
    weights: Mapping[str, NDArray[np.float64]],
    parts: Mapping[str, _Part],
    record: bytes,
) -> dict[str, bytes]:
    """The model as float32 safetensors, and its manifest; the caller writes them."""
    key = os.urandom(32)
    single: dict[str, NDArray[np.generic]] = {
        name: weights[name].astype(np.float32) for name in job.shapes
    }
    steps = next(iter(parts.values())).statement.step
    for name, shape in job.graph.named("counter"):
        single[name] = np.full(shape, steps, np.int64)
    model = save_tensors(single, metadata={"format": "pt", "manifest_key": key.hex()})
    files = {MODEL_FILE: model}
    said: dict[str, object] = {}
    joined = job.data.joined
    if joined:
        lost = without_partner(job, joined)
        said["linkage"] = {"joined": joined, "unmatched": lost, "warnings": _of_linkage(job)}
    if is_newton(job):
        table = results(job, weights)
        files[COEFFICIENTS_FILE] = table.to_csv()
        said["regression"] = {
            "file": COEFFICIENTS_FILE,
            "hmac_sha256": commit(key, files[COEFFICIENTS_FILE]),
            "converged": table.converged,
            "separation": "suspected" if table.separated else "none seen",
            "warnings": list(table.warnings),
        }
    described = recipe(job)
    if job.pipeline.shapes:
        prepare = save_tensors({name: weights[name] for name in job.pipeline.shapes})
        files[PREPARATION_FILE] = prepare
        described |= {"file": PREPARATION_FILE, "hmac_sha256": commit(key, prepare)}
        described |= {"remarks": remarks(job.pipeline, weights)}
    first = next(iter(parts.values())).statement
    manifest = {
        "version": 2,
        "job": msgspec.json.decode(job.to_bytes()),
        "job_digest": job.digest().hex(),
        "sid": first.sid,
        "step": first.step,
        "recipient": recipient,
        "recipient_key": {
            "kind": recipient_key.kind,
            "suite": recipient_key.suite,
            "post_quantum": recipient_key.post_quantum,
        },
        "model": {"file": MODEL_FILE, "dtype": "float32", "hmac_sha256": commit(key, model)},
        "preparation": described,
        "tensors": {name: list(shape) for name, shape in job.shapes.items()},
        "metrics": first.metrics,
        "unavailable": first.unavailable,
        **said,
        "statements": [
            {
                "evaluator": name,
                "statement": parts[name].statement_text.decode(),
                "signature": base64.b64encode(parts[name].signature).decode(),
            }
            for name in job.evaluators
        ],
        "record": base64.b64encode(record).decode(),
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    return {**files, MANIFEST_FILE: text + b"\n"}
