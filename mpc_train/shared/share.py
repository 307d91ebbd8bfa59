"""A trained model that nobody opens: the share of it that one evaluator keeps, and its return.

Nothing masked survives a session. What an evaluator keeps of a tensor W is a summand of it,

    (Δ at the first evaluator) − [λ]_i + z_i,    Σ summands = W,

where the z_i add up to 0 and come from keys that two evaluators have for this session and forget
with it. Without them, whoever had dealt λ would need only the first evaluator's summand; with them
all evaluators' summands are needed, and fewer say nothing to anybody. In a later session they are
opened under masks that nobody has used: W + λ' = Σ summands + Σ [λ']_i. The dealer takes part with
λ' alone and needs only names and shapes.

    tensor/NAME     the network's tensors: parameters, running statistics, frozen ones
    prepare/NAME    what makes its inputs of raw columns (`preparation.fitted.Parameters`)

A tensor that everybody knows anyway, such as a public frozen one, is kept as it is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mpc_train.admission.load import job_from_bytes
from mpc_train.checkpoints import summands
from mpc_train.checkpoints.state import Entry
from mpc_train.errors import ArtifactError, JobError
from mpc_train.preparation.fitted import Factors, Parameters
from protocols.arrays import Words
from protocols.canonical import pack
from protocols.roles.streams import Stream
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.roles.role import Role

TENSOR, PREPARE = "tensor/", "prepare/"
COARSE, FINE, OFFSET, INSTEAD, FILL = (
    PREPARE + name for name in ("coarse", "fine", "offset", "instead", "fill")
)
SID_BYTES = 32
ZERO_LABEL = "mpc-train zero shares of a kept model v1"
_TAG = b"mpc-train/shared-model/1"
_RENEWED = b"mpc-train/shared-model/refreshed/1"
_COUNTS = b"mpc-train/shared-model/training counts/1"
MAGIC = b"mpc-train shared model 1\n"
_LENGTH = Struct(">I")
_AGREED = "agreed"
MAX_PUBLIC_BYTES = 1 << 26


def model_digest(job: Job, sid: bytes) -> str:
    """What identifies a model in shares everywhere: SHA-256, in hexadecimal, of the job and of the
    session that trained it. No session trains two."""
    return hashlib.sha256(pack(_TAG, job.digest(), sid)).hexdigest()


class Outline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a computing node without a share needs to know of what comes back (`returned`). word,
    bits: of `preparation.fitted.Factors`, 0 without any."""

    entries: tuple[Entry, ...]
    word: int = 0
    bits: int = 0


class Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every evaluator of the run knows, and need not hide. job: its canonical JSON, with the
    number of joined records if there are any. sid: of the session, in hexadecimal. word, bits: of
    `preparation.fitted.Factors`, 0 without any. refreshed: how often its shares were replaced.
    training_counts: how many training rows each bin has, with noise, by histogram, if drift is
    watched against them: what a window of a service is compared with."""

    job: str
    sid: str
    entries: tuple[Entry, ...]
    word: int = 0
    bits: int = 0
    refreshed: int = 0
    training_counts: dict[str, tuple[int, ...]] | msgspec.UnsetType = msgspec.UNSET
    version: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class About:
    """The public part of a share, checked."""

    job: Job
    public: Public

    @property
    def digest(self) -> str:
        """As `model_digest`."""
        return model_digest(self.job, bytes.fromhex(self.public.sid))

    @property
    def training_counts(self) -> dict[str, tuple[int, ...]] | None:
        """As in `Public`; None if windows are compared with the first one."""
        found = self.public.training_counts
        return None if found is msgspec.UNSET else found

    @classmethod
    def read(cls, stream: BinaryIO) -> About:
        """From the head of what `ModelShare.to_bytes` wrote; reads no tensor. Raises
        ArtifactError."""
        if stream.read(len(MAGIC)) != MAGIC:
            raise ArtifactError("not a share of a model of this version")
        try:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
        except StructError as error:
            raise ArtifactError("the share of a model has no head") from error
        if length > MAX_PUBLIC_BYTES:
            raise ArtifactError("the share of a model has too long a head")
        return cls.of(stream.read(length))

    @classmethod
    def of(cls, data: bytes | Public) -> About:
        """From the public part alone, as JSON or parsed. Raises ArtifactError."""
        try:
            said = data if isinstance(data, Public) else msgspec.json.decode(data, type=Public)
            job = job_from_bytes(said.job.encode())
            sid = bytes.fromhex(said.sid)
        except (ValueError, RecursionError, msgspec.MsgspecError, JobError) as error:
            raise ArtifactError(f"the description of a model is malformed: {error}") from error
        if len(sid) != SID_BYTES:
            raise ArtifactError("the description of a model names no session")
        check(job, said)
        return cls(job, said)

    def to_bytes(self) -> bytes:
        """What `of` reads: nothing secret."""
        return msgspec.json.encode(self.public, order="deterministic")


@dataclass(frozen=True, slots=True, repr=False)
class ModelShare:
    """What one evaluator keeps. parts: its summand of each secret, the words of each constant.
    agreed: a digest of all Δ, and of the counts of the training rows if there are any, the same at
    every evaluator and at nobody else."""

    about: About
    parts: dict[str, Words]
    agreed: bytes

    def to_bytes(self) -> bytes:
        """MAGIC ‖ length ‖ the public part as JSON ‖ safetensors of int64, and of `agreed`."""
        head = self.about.to_bytes()
        tensors: dict[str, NDArray[Any]] = {_AGREED: np.frombuffer(self.agreed, np.uint8)}
        tensors |= self.parts
        return MAGIC + _LENGTH.pack(len(head)) + head + bytes(save_tensors(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelShare:
        """Raises ArtifactError for anything that `to_bytes` did not write."""
        stream = BytesIO(data)
        about = About.read(stream)
        try:
            found = load_tensors(stream.read())
            agreed = found.pop(_AGREED).tobytes()
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError("the share of a model is malformed") from error
        shapes = {entry.name: entry.shape for entry in about.public.entries}
        if {name: words.shape for name, words in found.items()} != shapes or any(
            words.dtype != np.int64 for words in found.values()
        ):
            raise ArtifactError("the share of a model holds other tensors than it says")
        return cls(about, found, agreed)

    def proof(self, key: bytes, sender: str) -> bytes:
        """What `sender` shows another evaluator, who has the same key, of the Δ that it holds."""
        return hmac.digest(key, pack(sender.encode(), self.agreed), "sha256")


def expected_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that is kept of this job's model."""
    found = {TENSOR + name: tuple(shape) for name, shape in job.shapes.items()}
    pipeline = job.pipeline
    scaled = {*pipeline.scaled}
    filled = [index in scaled for index in pipeline.filled]
    for names, size in (
        ((COARSE, FINE, OFFSET), len(pipeline.scaled)),
        ((INSTEAD,), sum(filled)),
        ((FILL,), len(filled) - sum(filled)),
    ):
        if size:
            found |= dict.fromkeys(names, (size,))
    return found


def check(job: Job, said: Public) -> None:
    """Raise ArtifactError unless names and shapes are those of the job's model."""
    expected = expected_shapes(job)
    if {entry.name: entry.shape for entry in said.entries} != expected or len(said.entries) != len(
        expected
    ):
        raise ArtifactError(f"the share is not of the model of job {job.name}")
    if not job.stays_shared:
        raise ArtifactError(f"the model of job {job.name} does not stay in shares")
    if said.training_counts is not msgspec.UNSET:
        _check_counts(job, said.training_counts)


def _check_counts(job: Job, found: Mapping[str, tuple[int, ...]]) -> None:
    from mpc_train.evaluation.histograms import histograms  # and Polars: a coordinator needs none

    expected = {one.name: len(one.bins) for one in histograms(job)} if job.counts_training else {}
    if {name: len(counts) for name, counts in found.items()} != expected:
        raise ArtifactError(f"the counts of training rows are not those of job {job.name}")


def kept_tensors(tensors: Mapping[str, Masked], parameters: Parameters) -> dict[str, Masked]:
    """All that is kept, by name. tensors: of the network."""
    found = {TENSOR + name: x for name, x in tensors.items()}
    factors = parameters.factors
    if factors is not None:
        found |= {COARSE: factors.coarse, FINE: factors.fine}
    for name, x in (
        (OFFSET, parameters.offset),
        (INSTEAD, parameters.instead),
        (FILL, parameters.fill),
    ):
        if x is not None:
            found[name] = x
    return found


def captured(
    job: Job,
    role: Role,
    sid: bytes,
    kept: Mapping[str, Masked],
    factors: Factors | None,
    zeros: Callable[[int], Words],
    counts: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelShare:
    """This evaluator's share. No communication but what is pending.

    zeros: returns as many words that add up to 0 over the evaluators, each time others. counts: of
    the training rows, with noise, if they have left.
    """
    role.finish()
    entries, parts, seen = [], {}, hashlib.sha256(sid)
    for name, x in sorted(kept.items()):
        entry = summands.entry_of(name, x)
        entries.append(entry)
        parts[name] = summands.kept(entry, x, seen)
        if not entry.constant:
            with np.errstate(over="ignore"):
                parts[name] = parts[name] + zeros(prod(x.shape)).reshape(x.shape)
    word, bits = (0, 0) if factors is None else (factors.word, factors.bits)
    said = Public(job.to_bytes().decode(), sid.hex(), tuple(entries), word, bits)
    if counts is not None:
        said = msgspec.structs.replace(said, training_counts=dict(counts))
        seen.update(pack(_COUNTS, msgspec.json.encode(said.training_counts, order="deterministic")))
    check(job, said)
    return ModelShare(About(job, said), parts, seen.digest())


def renewed(share: ModelShare, sid: bytes, zeros: Callable[[int], Words]) -> ModelShare:
    """Another share of the same model, which fits only those that the other evaluators make in this
    session: every secret gets a summand, and all of them add up to 0. No communication.

    sid: of the session. zeros: as in `captured`, from keys of the session.
    """
    said, parts = share.about.public, dict(share.parts)
    with np.errstate(over="ignore"):
        for entry in said.entries:
            if not entry.constant:
                words = zeros(prod(entry.shape)).reshape(entry.shape)
                parts[entry.name] = parts[entry.name] + words
    said = msgspec.structs.replace(said, refreshed=said.refreshed + 1)
    agreed = hashlib.sha256(pack(_RENEWED, share.agreed, sid, str(said.refreshed).encode()))
    return ModelShare(About(share.about.job, said), parts, agreed.digest())


def zero_shares(me: int, streams: Mapping[int, Stream]) -> Callable[[int], Words]:
    """Words of evaluator `me` that add up to 0 over all evaluators.

    streams: one with each other evaluator, by its index; the lower index adds what the higher one
    subtracts.
    """

    def drawn(count: int) -> Words:
        total = np.zeros(count, np.int64)
        with np.errstate(over="ignore"):
            for other, stream in streams.items():
                words = stream.words(count)
                total = total + words if me < other else total - words
        return total

    return drawn


def returned(
    role: Role, said: Public | Outline, parts: Mapping[str, Words] | None
) -> tuple[dict[str, Masked], Parameters]:
    """The network's tensors and the parameters of the preparation, under fresh masks. 1 round,
    opens 8 bytes an element.

    parts: this evaluator's, of at least the entries of `said`; None at the dealer.
    """
    found = {
        entry.name: summands.again(role, entry, None if parts is None else parts[entry.name])
        for entry in said.entries
    }
    tensors = {name.removeprefix(TENSOR): x for name, x in found.items() if name.startswith(TENSOR)}
    factors = None
    if COARSE in found:
        factors = Factors(found[COARSE], found[FINE], said.word, said.bits)
    return tensors, Parameters(
        factors=factors,
        offset=found.get(OFFSET),
        instead=found.get(INSTEAD),
        fill=found.get(FILL),
    )
