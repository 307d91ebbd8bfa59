"""The joined rows of a run as one evaluator keeps them, and the same under fresh masks later.

Another join would put the rows in another order, by which held-out rows would train. So they are
kept once, after joining and before training, and checkpoints refer to them by a digest. As in
`state`, an evaluator keeps its summand of every word, of which all together give the secret and
fewer give nothing. Which rows train is public and follows from their number.

    digest    SHA-256 of the session and all Δ, the same at every evaluator and at nobody else
    rows      their number, 8 bytes
    words     inputs, labels, weights, the sealed parameters of the preparation: little-endian

Rows are many: they are written and read in blocks, and memory is that of the rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from struct import Struct
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mpc_train.errors import ArtifactError
from mpc_train.jobs.sealed import preparation_shapes
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.sharing import Shared
from protocols.arrays import Shape
from protocols.canonical import pack
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares.arithmetic import remask
from protocols.shares.computed import computed
from protocols.shares.masked import Additive, Masked, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.roles.role import Role

FRONT = Struct(">32sQ")
BLOCK_WORDS = 1 << 20
INPUTS, LABELS, WEIGHTS = "inputs", "labels", "weights"


class Reader(Protocol):
    """An opened file."""

    def read(self, size: int, /) -> bytes: ...


class JoinedRows:
    """The rows as they are shared in this session. shared: of the job resolved for them."""

    def __init__(self, job: Job, shared: Shared, sid: bytes) -> None:
        tensors = {INPUTS: shared.inputs.masked(), LABELS: shared.labels.masked()}
        if shared.weights is not None:
            tensors[WEIGHTS] = shared.weights.masked()
        tensors |= shared.parameters.sealed
        self._rows, self._sid = job.rows, sid
        self._tensors = {name: tensors[name] for name in shapes_of(job)}
        self.digest = b""
        """Of all Δ, once `pieces` has begun."""

    def pieces(self) -> Iterator[bytes]:
        """The content to keep. No communication: every word is there, once the role has
        finished."""
        self.digest = self._digest()
        yield FRONT.pack(self.digest, self._rows)
        for x in self._tensors.values():
            for block in _blocks(x):
                yield block.shares().part.get().astype("<i8").tobytes()

    def _digest(self) -> bytes:
        seen = hashlib.sha256(pack(self._sid, self._rows.to_bytes(8, "big")))
        for name, x in self._tensors.items():
            seen.update(pack(name.encode(), x.size.to_bytes(8, "big")))
            for block in _blocks(x):
                seen.update(block.delta.get().astype("<i8").tobytes())
        return seen.digest()


def shapes_of(job: Job) -> dict[str, Shape]:
    """What is kept of the rows of a job that is resolved for them, by name, in order."""
    found: dict[str, Shape] = {
        INPUTS: (job.rows, job.pipeline.width),
        LABELS: (job.rows, job.outputs),
    }
    if job.weight:
        found[WEIGHTS] = (job.rows, 1)
    return found | preparation_shapes(job.pipeline)


def kept_bytes(job: Job) -> int:
    """How large they are on each evaluator's disk, before encryption."""
    return FRONT.size + 8 * sum(map(prod, shapes_of(job).values()))


def restored(job: Job, role: Role, kept: Reader | None, digest: bytes) -> Shared:
    """The rows under fresh masks; at every computing node. A round a block, opens 8 bytes a word.

    job: resolved for the rows. kept: this evaluator's summands; None at the dealer. digest: what
    the checkpoint says of them. Raises ArtifactError for others.
    """
    if kept is not None and kept.read(FRONT.size) != FRONT.pack(digest, job.rows):
        raise ArtifactError("the joined rows are not those of the checkpoint")
    found = {name: _tensor(role, kept, shape) for name, shape in shapes_of(job).items()}
    if kept is not None and kept.read(1):
        raise ArtifactError("more joined rows are kept than the job has")
    weights = found.pop(WEIGHTS, None)
    return Shared(
        MaskedTensor(found.pop(INPUTS)),
        MaskedTensor(found.pop(LABELS)),
        Parameters(sealed=found),
        None if weights is None else MaskedTensor(weights),
    )


def _tensor(role: Role, kept: Reader | None, shape: Shape) -> Masked:
    size, parts = prod(shape), []
    for start in range(0, size, BLOCK_WORDS):
        count = min(BLOCK_WORDS, size - start)
        words = np.zeros(count, np.int64)
        if kept is not None:
            data = kept.read(8 * count)
            if len(data) != 8 * count:
                raise ArtifactError("the joined rows are cut off")
            words = np.frombuffer(data, "<i8").astype(np.int64)
        part = remask(Additive(role, (count,), role.known(words), None))
        computed(part)
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else concatenate(parts)
    return whole.reshape(*shape)


def _blocks(x: Masked) -> Iterator[Masked]:
    flat = x.reshape(x.size)
    for start in range(0, x.size, BLOCK_WORDS):
        yield flat.select(slice(start, start + BLOCK_WORDS))
