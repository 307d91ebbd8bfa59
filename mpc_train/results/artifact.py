"""The trained model on its way from the evaluators to a recipient: what is sealed, and how.

Metrics with readers of their own (`reveal.metrics_to`) travel in the same way.

At the end of a run evaluator i holds ΔW, the same at all of them, and its own mask share [λW]_i. It
puts both, with a signed statement of what they are, into one envelope for each recipient, or into
one for all recipients if a threshold of them is required (`reveal.threshold`). The recipient opens
the envelopes of all evaluators (`mpc_train.results.opening`) and computes W = ΔW − Σ [λW]_i modulo
2^64. If one envelope is missing, W is uniformly random to the recipient, so there is no partial
result.

The public part (the manifest) contains no opened value: the evaluators commit to what they sealed
under a random key that stays in the envelope, and the model file is tied to the manifest under a
key that stays in the model file. A plain hash of either would let somebody who knows the masks, or
guesses well, recover weights.

Payload: `pack`(statement, signature, commitment key, tensors), tensors in safetensors form with
the names "delta.<name>" and "mask.<name>", int64.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from mpc_train.base.reading import Reading
from mpc_train.errors import ArtifactError
from mpc_train.evaluation.forms import metric_forms
from mpc_train.jobs.audience import recipient_groups
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from protocols.canonical import pack
from protocols.sealing.envelope import EnvelopeInfo, seal_envelope
from protocols.sealing.recipient_keys import RecipientKey
from protocols.sealing.signatures import Signer

Tensors = Mapping[str, NDArray[np.int64]]

PURPOSE = "mpc-train/model-statement/2"
MODEL, METRICS = "model", "metrics"
ENVELOPE_FILE = f"{MODEL}.envelope"
METRICS_ENVELOPE_FILE = f"{METRICS}.envelope"


@dataclass(frozen=True)
class Contents:
    """What is sealed: title, names and shapes of tensors, to which recipients together, and how
    many of these can open it."""

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    groups: Sequence[tuple[str, ...]]
    threshold: int = 1

    def subject(self, job: Job) -> str:
        """What an envelope says that it contains."""
        return f"the {self.title} of job {job.name}, digest {job.digest().hex()}"


def contents_of(job: Job, title: str) -> Contents:
    """The model of a job, or the words of its metrics (`evaluation.forms`), which each reader opens
    alone."""
    if title == METRICS:
        shapes = {name: form.words for name, form in metric_forms(job).items()}
        return Contents(METRICS, shapes, [(name,) for name in job.reveal.metrics_to])
    return Contents(MODEL, sealed_tensors(job), recipient_groups(job), job.reveal.threshold)


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an evaluator signs about the model that it seals: public, without opened values."""

    evaluator: str
    recipients: tuple[str, ...]
    threshold: int
    contents: str
    """"model" or "metrics"."""
    sid: str
    step: int
    job: str
    """The whole job as canonical JSON: with it the manifest says what the model is."""
    metrics: dict[str, Reading]
    """None, or None inside a metric: unavailable; `unavailable` says why."""
    commitment: str
    """HMAC-SHA256, hexadecimal, of the sealed tensors under the key in the envelope."""
    unavailable: dict[str, str] = {}
    """Why a metric, or a bin of it, was refused or is undefined, by its name."""
    version: int = 2


def envelope_info(
    job: Job, contents: Contents, sid: bytes, sender: str, recipients: tuple[str, ...]
) -> EnvelopeInfo:
    """The header of an envelope with these contents; recipients: one of their groups."""
    return EnvelopeInfo(
        contents.subject(job),
        sid,
        total_steps(job),
        tuple(contents.shapes),
        sender,
        recipients,
        contents.threshold,
    )


def seal_result(
    job: Job,
    contents: Contents,
    *,
    sid: bytes,
    me: str,
    recipients: tuple[str, ...],
    recipient_keys: Sequence[RecipientKey],
    delta: Tensors,
    mask: Tensors,
    metrics: Mapping[str, Reading],
    unavailable: Mapping[str, str],
    signer: Signer,
) -> bytes:
    """Seal evaluator `me`'s part of the contents to `recipients`, one of their groups; return the
    envelope.

    delta, mask: ΔW and [λW]_me by name, int64, shapes as the contents say; the masks must be
    fresh since their last opening. Raises ArtifactError for other names or shapes and for
    recipients to whom the job seals nothing.
    """
    if recipients not in contents.groups:
        raise ArtifactError(
            f"the job does not seal its {contents.title} to {', '.join(recipients)}"
        )
    for kind, tensors in (("delta", delta), ("mask", mask)):
        check_tensors(contents, f"{kind} of {me}", tensors)
    tensors = {f"delta.{name}": np.ascontiguousarray(value) for name, value in delta.items()}
    tensors |= {f"mask.{name}": np.ascontiguousarray(value) for name, value in mask.items()}
    blob = save_tensors(tensors)
    key = os.urandom(32)
    statement = msgspec.json.encode(
        Statement(
            evaluator=me,
            recipients=recipients,
            threshold=contents.threshold,
            contents=contents.title,
            sid=sid.hex(),
            step=total_steps(job),
            job=job.to_bytes().decode(),
            metrics=dict(metrics),
            unavailable=dict(unavailable),
            commitment=commit(key, blob),
        ),
        order="deterministic",
    )
    payload = pack(statement, signer.sign(PURPOSE, statement), key, blob)
    return seal_envelope(
        payload,
        info=envelope_info(job, contents, sid, me, recipients),
        recipient_keys=recipient_keys,
        signer=signer,
    )


def check_tensors(contents: Contents, what: str, tensors: Tensors) -> None:
    """Raise ArtifactError unless names, shapes and type are those of what the job seals."""
    if set(tensors) != set(contents.shapes):
        raise ArtifactError(f"{what}: the tensors are not those of the job's {contents.title}")
    for name, shape in contents.shapes.items():
        value = tensors[name]
        if value.dtype != np.int64 or value.shape != shape:
            raise ArtifactError(
                f"{what}: {name} is {value.dtype}{list(value.shape)}, not int64{list(shape)}"
            )


def commit(key: bytes, data: bytes) -> str:
    """HMAC-SHA256 in hexadecimal: commits to `data` and reveals nothing about it without the
    key."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()
