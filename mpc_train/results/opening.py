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

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mpc_train.admission.load import job_from_bytes
from mpc_train.base.reading import Reading, is_reading
from mpc_train.errors import ArtifactError, JobError
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import metric_forms
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import is_newton, total_steps
from mpc_train.jobs.sealed import BEYOND
from mpc_train.linkage.partners import all_linkage_warnings, without_partner
from mpc_train.preparation.sealed import BITS, in_words, opened_parameters, remarks
from mpc_train.privacy.words import as_json
from mpc_train.regression.settings import regression_bits
from mpc_train.regression.table import COEFFICIENTS_FILE, Results, results
from mpc_train.results.artifact import (
    METRICS,
    MODEL,
    PURPOSE,
    Contents,
    Statement,
    check_tensors,
    commit,
    contents_of,
)
from mpc_train.results.contribution import PublicCard, Shares, contributed, keys_of, own_shares
from mpc_train.results.recipe import recipe
from protocols.arrays import Reals
from protocols.canonical import unpack
from protocols.errors import AuthenticationError, FrameError
from protocols.sealing.bundle import unpack_bundle
from protocols.sealing.envelope import (
    MAX_PAYLOAD_BYTES,
    Unsealer,
    open_together,
    read_info,
)
from protocols.sealing.recipient_keys import RecipientKey

MODEL_FILE, MANIFEST_FILE = "model.safetensors", "manifest.json"
METRICS_FILE = "metrics.json"
PREPARATION_FILE = "preparation.safetensors"
"""The parameters that turn raw columns into the model's inputs, float64, if the job has secret
ones."""
MAX_STATEMENT_BYTES = 1 << 24
_SIGNATURE_BYTES = 1 << 14
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding raises on bytes that are not JSON of the type."""


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
        return _remarks(self.job, self.weights)

    def __repr__(self) -> str:
        return f"OpenedModel({self.job.name}, {len(self.weights)} tensors)"


def open_model(
    sealed: bytes | Sequence[bytes],
    *,
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
    job: Job | None = None,
    contributions: Sequence[bytes] = (),
    record: bytes = b"",
) -> OpenedModel:
    """Open a bundle (or its envelopes) as `recipient` and put the model together.

    record: what all nodes signed, verified by the caller; it goes into the manifest.

    contributions: of other recipients, if the job requires a threshold (`contribution`).

    1. Every envelope verifies under its sender's card and opens with our key, or with our share
       and those that others contribute.
    2. Its statement is signed by the sender and fits the envelope and the tensors inside.
    3. All statements are about the same job, session and metrics; the job is `job` if given, by its
       digest, which does not count how many rows were joined.
    4. Every evaluator of the job sent exactly one envelope, and nobody else sent one.
    5. All evaluators sealed the same ΔW.

    Raises ArtifactError, which says which envelope is wrong or missing; EnvelopeError for one that
    does not verify or open.
    """
    parts, signed_job = _opened_parts(sealed, MODEL, recipient, private, cards, job, contributions)
    weights = _weights(signed_job, _combine(contents_of(signed_job, MODEL), parts))
    files = _files(signed_job, recipient, cards[recipient].recipient_key, weights, parts, record)
    said = next(iter(parts.values())).statement
    return OpenedModel(signed_job, weights, dict(said.metrics), files, dict(said.unavailable))


@dataclass(frozen=True, repr=False)
class OpenedMetrics:
    """A reader's metrics, by the name of their output; `files` are ready to be written."""

    job: Job
    metrics: dict[str, Reading]
    unavailable: dict[str, str]
    impossible: tuple[str, ...]
    """Metrics without a possible number: values have left the ring's range, and the model is wrong
    as well."""
    files: dict[str, bytes]

    def __repr__(self) -> str:
        return f"OpenedMetrics({self.job.name}, {len(self.metrics)} metrics)"


def open_metrics(
    sealed: bytes | Sequence[bytes],
    *,
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
    job: Job | None = None,
) -> OpenedMetrics:
    """Open what evaluators sealed to a reader of metrics, with the checks of `open_model`.

    A metric is a number, or refused or undefined for a reason, as if all nodes had learnt it.
    """
    parts, signed_job = _opened_parts(sealed, METRICS, recipient, private, cards, job)
    words = _combine(contents_of(signed_job, METRICS), parts)
    found = Findings()
    for name, form in metric_forms(signed_job).items():
        found.take(signed_job, name, form, words[name])
    first = next(iter(parts.values())).statement
    content = {
        "version": 1,
        "job": signed_job.name,
        "job_digest": signed_job.digest().hex(),
        "sid": first.sid,
        "reader": recipient,
        "metrics": found.metrics,
        "unavailable": found.reasons,
        "statements": _statements(signed_job, parts),
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    return OpenedMetrics(
        signed_job,
        found.metrics,
        found.reasons,
        tuple(found.impossible),
        {METRICS_FILE: text},
    )


def sealed_title(sealed: bytes) -> str:
    """What a bundle says that it contains, NOT verified: "model" or "metrics"."""
    info = read_info(unpack_bundle(sealed).envelopes[0])
    return METRICS if info.subject.startswith(f"the {METRICS} ") else MODEL


def _opened_parts(
    sealed: bytes | Sequence[bytes],
    title: str,
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
    job: Job | None,
    contributions: Sequence[bytes] = (),
) -> "tuple[dict[str, _Part], Job]":
    """Steps 1 to 4 of `open_model`: what each evaluator sealed, and the job that it signed."""
    envelopes = unpack_bundle(sealed).envelopes if isinstance(sealed, bytes) else list(sealed)
    if not envelopes:
        raise ArtifactError(f"no envelope; ask the coordinator for the sealed {title}")
    shares = _gathered(envelopes, recipient, private, cards, contributions)
    parts: dict[str, _Part] = {}
    for envelope in envelopes:
        part = _open_part(envelope, title, shares, cards)
        if part.statement.evaluator in parts:
            raise ArtifactError(f"two envelopes of {part.statement.evaluator}; remove one")
        parts[part.statement.evaluator] = part
    first = next(iter(parts.values()))
    signed_job = _signed_job(first.statement)
    if job is not None and job.digest() != signed_job.digest():
        raise ArtifactError(
            f"the sealed {title} is that of the job {signed_job.name}, digest "
            f"{signed_job.digest().hex()}; expected {job.name}, digest {job.digest().hex()}"
        )
    _check_complete(parts, signed_job)
    return parts, signed_job


@dataclass(frozen=True, repr=False)
class _Part:
    statement: Statement
    statement_text: bytes
    signature: bytes
    tensors: dict[str, NDArray[np.int64]]


def _gathered(
    envelopes: Sequence[bytes],
    recipient: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
    contributions: Sequence[bytes],
) -> Shares:
    """By evaluator, the shares of its envelope's key: the recipient's own and contributed ones."""
    for envelope in envelopes:
        claimed = read_info(envelope)
        keys_of([claimed.sender], cards, "an evaluator")
        keys_of(claimed.recipients, cards, "a recipient")
        if recipient not in claimed.recipients:
            names = ", ".join(claimed.recipients)
            raise ArtifactError(
                f"an envelope for {names}; it opens with that identity, not with {recipient!r}"
            )
        if claimed.threshold > 1 + len(contributions):
            raise ArtifactError(
                f"{claimed.threshold} of {', '.join(claimed.recipients)} together open this file, "
                f"and {recipient} has the contributions of {len(contributions)} others. Ask "
                f"others to run: mpc-train open --contribute FILE --for {recipient} --out PART, "
                "and give their files with --with"
            )
    if contributions and read_info(envelopes[0]).threshold == 1:
        raise ArtifactError(f"{recipient} opens this file alone; leave out --with")
    own = own_shares(envelopes, recipient, private, cards)
    others = contributed(contributions, envelopes, me=recipient, private=private, cards=cards)
    return {sender: {recipient: share} | others[sender] for sender, share in own.items()}


def _open_part(
    envelope: bytes,
    title: str,
    shares: Shares,
    cards: Mapping[str, PublicCard],
) -> _Part:
    claimed = read_info(envelope)
    sender = claimed.sender
    verifier = cards[sender].verifier()
    # What the envelope says of itself is compared with the statement after that is read.
    payload = open_together(  # 1
        envelope,
        shares[sender],
        expected=claimed,
        recipient_keys=keys_of(claimed.recipients, cards, "a recipient", envelope),
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
    about = (statement.evaluator, statement.recipients, statement.sid, statement.step)
    said = (sender, claimed.recipients, claimed.sid.hex(), claimed.step)
    if statement.contents != title:
        raise ArtifactError(f"{sender} sealed {statement.contents}, not a {title}")
    if about != said or statement.threshold != claimed.threshold or statement.version != 2:
        raise ArtifactError(f"the statement of {sender} does not fit its envelope")
    if not hmac.compare_digest(statement.commitment, commit(key, blob)):
        raise ArtifactError(f"the statement of {sender} is not about the tensors it sealed")
    try:
        tensors = load_tensors(blob)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{sender} sealed tensors that cannot be read") from error
    job = _signed_job(statement)
    contents = contents_of(job, title)
    if claimed.names != tuple(contents.shapes) or claimed.subject != contents.subject(job):
        raise ArtifactError(f"the envelope of {sender} does not name the {title}'s tensors and job")
    if job.reveal.metrics_to and (statement.metrics or statement.unavailable):
        raise ArtifactError(f"{sender} states metrics, which only their readers may learn")
    if claimed.threshold != contents.threshold or claimed.recipients not in contents.groups:
        raise ArtifactError(f"{sender} sealed to other recipients together than the job says")
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


def _combine(contents: Contents, parts: Mapping[str, _Part]) -> dict[str, NDArray[np.int64]]:
    """The words of what was sealed: Δ − Σ [λ]_i modulo 2^64."""
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
            check_tensors(contents, f"{kind} of {sender}", tensors)
        for name in contents.shapes:
            if name not in first:
                first[name] = halves["delta"][name]
                total[name] = halves["delta"][name].copy()
            if not np.array_equal(first[name], halves["delta"][name]):  # 5
                raise ArtifactError(
                    f"{sender} sealed different masked values from {next(iter(parts))}: one of "
                    "them deviated, so nothing is opened"
                )
            total[name] -= halves["mask"][name]
    return total


def _weights(job: Job, total: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float64]]:
    """The model and its preparation in float64, from their words."""
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


def _statements(job: Job, parts: Mapping[str, _Part]) -> list[dict[str, str]]:
    return [
        {
            "evaluator": name,
            "statement": parts[name].statement_text.decode(),
            "signature": base64.b64encode(parts[name].signature).decode(),
        }
        for name in job.evaluators
    ]


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
        described |= {"remarks": _remarks(job, weights)}
    first = next(iter(parts.values())).statement
    manifest = {
        "version": 2,
        "job": msgspec.json.decode(job.to_bytes()),
        "job_digest": job.digest().hex(),
        "sid": first.sid,
        "step": first.step,
        "recipient": recipient,
        "recipients": first.recipients,
        "threshold": first.threshold,
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
        "metrics_to": list(job.reveal.metrics_to),
        "privacy": as_json(job),
        **said,
        "statements": _statements(job, parts),
        "record": base64.b64encode(record).decode(),
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    return {**files, MANIFEST_FILE: text + b"\n"}


def _remarks(job: Job, weights: Mapping[str, Reals]) -> dict[str, list[str]]:
    """What is to be said of the inputs of an opened model."""
    least = 0.0
    if job.privacy and job.has_noisy_statistics:
        least = float(job.privacy.of_statistics.least_deviation)
    return remarks(job.pipeline, weights, least)
