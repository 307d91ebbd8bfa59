"""What each owner shares in, and what the computing nodes make of it: inputs, labels, parameters.

Shapes and scales follow from the job alone, so that every node knows what is coming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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


BLOCK_WORDS = 1 << 22
"""Longer matrices are shared in block by block of rows: what an owner encodes, masks and sends at a
time is then small beside the table itself."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one matrix that an owner brings, from row `first`: real numbers at scale 2^bits."""

    name: str
    shape: tuple[int, ...]
    bits: int
    first: int = 0

    def blocks(self) -> Iterator[Piece]:
        """The same rows in pieces of at most BLOCK_WORDS."""
        size = max(1, BLOCK_WORDS // max(1, prod(self.shape[1:])))
        for first in range(0, self.shape[0], size):
            rows = min(size, self.shape[0] - first)
            yield replace(self, shape=(rows, *self.shape[1:]), first=first)

    def of(self, values: Mapping[str, Reals]) -> Reals:
        return values[self.name][self.first : self.first + self.shape[0]]


Told = Callable[[int, int], None]
"""Hears how many rows are shared, and of how many."""


class _Progress:
    """Tells of rows as they are shared; of tables that take one block there is nothing to tell."""

    def __init__(self, job: Job, told: Told, rows: int) -> None:
        self._told, self._rows, self._done = told, rows, 0
        self._quiet = rows * len(job.pipeline.terms) <= BLOCK_WORDS

    def took(self, piece: Piece) -> None:
        if piece.name == "features" and not self._quiet:
            self._done += piece.shape[0]
            self._told(self._done, self._rows)


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """All rows, owner after owner. inputs: [rows, width]; labels: [rows, outputs]; weights: how
    many times each row's loss counts, [rows, 1], None: once."""

    inputs: MaskedTensor
    labels: MaskedTensor
    parameters: Parameters
    weights: MaskedTensor | None = None


def pieces_of(job: Job, owner: str) -> Iterator[Piece]:
    """What `owner` brings, in order."""
    pipeline, rows, f = job.pipeline, job.data.rows[owner], job.fraction_bits
    yield from Piece("features", (rows, len(pipeline.terms)), f).blocks()
    yield from Piece("labels", (rows, job.outputs), f).blocks()
    if job.weight:
        yield from Piece("weights", (rows, 1), f).blocks()
    if pipeline.filled:
        yield from Piece("present", (rows, len(pipeline.filled)), 0).blocks()
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
        "weights": table.weights.reshape(-1, 1),
        "present": table.present,
        "statistics": statistics[:-1],
        "moments": statistics[-1],
    }


def words_brought(job: Job, owner: str, table: Table, told: Told) -> Iterator[NDArray[np.int64]]:
    """The same as words, in order, for an owner that neither evaluates nor deals."""
    values, progress = brought(job, owner, table), _Progress(job, told, table.rows)
    for piece in pieces_of(job, owner):
        yield encode(piece.of(values), piece.bits)
        progress.took(piece)


def share_in(
    job: Job, sources: Mapping[str, Source], me: str, table: Table | None, told: Told
) -> Shared:
    """Share in all owners' rows and prepare them; at every computing node.

    sources: how each owner brings its rows, as this node sees it; table: this node's own.
    """
    progress = _Progress(job, told, job.rows)
    found: dict[str, list[Masked]] = {}
    for owner in job.owners:
        mine = brought(job, owner, table) if owner == me and table is not None else None
        for piece in pieces_of(job, owner):
            tensor = MaskedTensor(
                None if mine is None else piece.of(mine),
                src=sources[owner],
                shape=piece.shape,
                bits=piece.bits,
            )
            assert isinstance(tensor.value, Masked) and tensor.nelement() == prod(piece.shape)
            found.setdefault(piece.name, []).append(tensor.value)
            progress.took(piece)
    table = mine = None  # whoever holds no other reference frees the owner's rows here
    pipeline, f = job.pipeline, job.fraction_bits
    statistics = found.pop("statistics", []), found.pop("moments", [])
    whole = {name: concatenate(parts) for name, parts in found.items()}
    secret = parameters(pipeline, list(zip(*statistics, strict=True)), f)
    inputs = prepared(pipeline, whole.pop("features"), whole.get("present"), secret, f)
    weights = MaskedTensor(whole["weights"]) if job.weight else None
    return Shared(MaskedTensor(inputs), MaskedTensor(whole["labels"]), secret, weights)


def label_matrix(job: Job, labels: Reals) -> Reals:
    """Labels [rows] in the shape of the model's output: one column, or one-hot classes."""
    if job.outputs == 1:
        return labels.reshape(-1, 1)
    return np.eye(job.outputs)[labels.astype(np.int64)]
