"""What each owner shares in, and what the computing nodes make of it: inputs, labels, parameters.

Shapes and scales follow from the job alone, so that every node knows what is coming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.schedule import split
from mpc_train.preparation.combined import Parameters, parameters, prepared
from mpc_train.preparation.local import STATISTICS, Local, partials
from protocols.crypten_backend import MaskedTensor, Source
from protocols.fixed_point import encode
from protocols.masked import Masked, concatenate
from protocols.scaling import VARIANCE_BITS

if TYPE_CHECKING:
    from mpc_train.data import Table
    from mpc_train.jobs.job import Job

Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor that an owner brings: real numbers at scale 2^bits."""

    name: str
    shape: tuple[int, ...]
    bits: int


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """All rows, owner after owner. inputs: [rows, width]; labels: [rows, outputs]."""

    inputs: MaskedTensor
    labels: MaskedTensor
    parameters: Parameters


def pieces_of(job: Job, owner: str) -> Iterator[Piece]:
    """What `owner` brings, in order."""
    pipeline, rows, f = job.pipeline, job.data.rows[owner], job.fraction_bits
    yield Piece("features", (rows, len(pipeline.terms)), f)
    yield Piece("labels", (rows, job.outputs), f)
    if pipeline.filled:
        yield Piece("present", (rows, len(pipeline.filled)), 0)
    if pipeline.secret:
        yield Piece("statistics", (len(STATISTICS) - 1, len(pipeline.secret)), f)
        yield Piece("moments", (len(pipeline.secret),), VARIANCE_BITS)


def brought(job: Job, owner: str, table: Table) -> dict[str, Reals]:
    """The values of `pieces_of`, at their owner."""
    training, _ = split(job)
    first = job.first_row(owner)
    mine = training[(training >= first) & (training < first + table.rows)] - first
    local = Local(table.features, table.present)
    statistics = partials(job.pipeline, local, mine, len(training))
    return {
        "features": table.features,
        "labels": label_matrix(job, table.labels),
        "present": table.present,
        "statistics": statistics[:-1],
        "moments": statistics[-1],
    }


def words_brought(job: Job, owner: str, table: Table) -> Iterator[NDArray[np.int64]]:
    """The same as words, in order, for an owner that neither evaluates nor deals."""
    values = brought(job, owner, table)
    for piece in pieces_of(job, owner):
        yield encode(values[piece.name], piece.bits)


def share_in(job: Job, sources: Mapping[str, Source], me: str, table: Table | None) -> Shared:
    """Share in all owners' rows and prepare them; at every computing node.

    sources: how each owner brings its rows, as this node sees it; table: this node's own.
    """
    found: dict[str, list[Masked]] = {}
    for owner in job.owners:
        values = brought(job, owner, table) if owner == me and table is not None else {}
        for piece in pieces_of(job, owner):
            tensor = MaskedTensor(
                values.get(piece.name), src=sources[owner], shape=piece.shape, bits=piece.bits
            )
            assert isinstance(tensor.value, Masked) and tensor.nelement() == prod(piece.shape)
            found.setdefault(piece.name, []).append(tensor.value)
    pipeline, f = job.pipeline, job.fraction_bits
    statistics = found.pop("statistics", []), found.pop("moments", [])
    whole = {name: concatenate(parts) for name, parts in found.items()}
    secret = parameters(pipeline, list(zip(*statistics, strict=True)), f)
    inputs = prepared(pipeline, whole.pop("features"), whole.get("present"), secret, f)
    return Shared(MaskedTensor(inputs), MaskedTensor(whole["labels"]), secret)


def label_matrix(job: Job, labels: Reals) -> Reals:
    """Labels [rows] in the shape of the model's output: one column, or one-hot classes."""
    if job.outputs == 1:
        return labels.reshape(-1, 1)
    return np.eye(job.outputs)[labels.astype(np.int64)]
