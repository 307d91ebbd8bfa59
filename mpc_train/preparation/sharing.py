"""What each owner secret-shares, and what the computing nodes derive: inputs, labels, parameters.

Owners' statistics come first, so that rows can be prepared as they arrive and are then freed.
Shapes and scales follow from the job alone, so every node knows what to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.schedule import split, training_of
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import STATISTICS, SUMS, Local, least_filled, partials, sums
from mpc_train.owners.row_norms import clipped, clipped_labels, weights_of
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.noisy import Sums, noisy_parameters, noisy_sums
from mpc_train.preparation.rows import BLOCK, Rows, prepared
from mpc_train.privacy.statistics import statistics_bits, statistics_plan
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor, Source, crypten
from protocols.ring.fixed_point import encode
from protocols.shares.masked import Masked, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.table import Table


BLOCK_WORDS = 1 << 22
"""A matrix with more words is shared in blocks of rows: what an owner encodes, masks and sends at a
time is then small compared to the table."""


Brought = Mapping[str, Callable[[slice], Reals]]
"""For each matrix, by name, the function that makes some of its rows."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one matrix of an owner, from row `first`: real numbers at scale 2^bits."""

    name: str
    shape: tuple[int, ...]
    bits: int
    first: int = 0

    def of(self, values: Brought) -> Reals:
        return values[self.name](slice(self.first, self.first + self.shape[0]))


Told = Callable[[int, int], None]
"""Called with the number of shared rows, and with their total."""


class _Progress:
    """Reports rows as they are shared; tables of a single block are not reported."""

    def __init__(self, job: Job, told: Told, rows: int) -> None:
        self._told, self._rows, self._done = told, rows, 0
        self._quiet = rows * len(job.pipeline.terms) <= BLOCK_WORDS

    def took(self, piece: Piece) -> None:
        if piece.name == "features" and not self._quiet:
            self._done += piece.shape[0]
            self._told(self._done, self._rows)


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """All rows, in the order of the owners. inputs: [rows, width]; labels: [rows, outputs];
    weights: how many times each row's loss counts, [rows, 1], with `[privacy]` in parts of the
    largest weight; None: once. sums: with noise, from which the parameters follow (`noisy`); None:
    they have none."""

    inputs: MaskedTensor
    labels: MaskedTensor
    parameters: Parameters
    weights: MaskedTensor | None = None
    sums: Masked | None = None


def pieces_of(job: Job, owner: str) -> Iterator[Piece]:
    """What `owner` provides, in order: statistics if there are any, then for each block of rows its
    features, its labels and the rest."""
    pipeline, rows, f = job.pipeline, job.data.rows[owner], job.fraction_bits
    if pipeline.secret and job.has_own_statistics:
        names = SUMS if job.has_noisy_statistics else STATISTICS
        yield Piece("statistics", (len(names), len(pipeline.secret)), 0)
    widths = {
        "features": (len(pipeline.terms), f),
        "fine": (len(pipeline.scaled), 0),
        "labels": (job.outputs, f),
        "weights": (1 if job.weight else 0, f),
        "present": (len(pipeline.filled), 0),
    }
    size = max(1, BLOCK_WORDS // max(width for width, _ in widths.values()))
    for first in range(0, rows, size):
        for name, (width, bits) in widths.items():
            if width:
                yield Piece(name, (min(size, rows - first), width), bits, first)


def brought(job: Job, owner: str, table: Table) -> Brought:
    """The values of `pieces_of`, at their owner."""
    pipeline = job.pipeline
    mine = training_of(job, owner) - job.first_row(owner)
    local = Local(table.features, table.present)
    total = len(split(job)[0])
    if job.has_noisy_statistics:
        statistics = sums(pipeline, local, mine, statistics_bits(total))
    else:
        statistics = partials(pipeline, local, mine, total)
    return {
        "features": lambda rows: with_coarse(
            job, clipped(job, owner, table.features[rows], rows.start)
        ),
        "fine": lambda rows: halves(cells(pipeline, table.features[rows]), WORD_BITS)[1],
        "labels": lambda rows: label_matrix(
            job, clipped_labels(job, owner, table.labels[rows], rows.start)
        ),
        "weights": lambda rows: weights_of(job, table.weights[rows]).reshape(-1, 1),
        "present": lambda rows: table.present[rows],
        "statistics": lambda rows: statistics[rows],
    }


def with_coarse(job: Job, features: Reals) -> Reals:
    """Features whose words at scale 2^f are the coarse ones of scaled terms, and u of others."""
    scaled = list(job.pipeline.scaled)
    if scaled:
        coarse, _ = halves(cells(job.pipeline, features), WORD_BITS)
        features = features.copy()
        features[:, scaled] = np.ldexp(coarse, -job.fraction_bits)
    return features


def words_brought(job: Job, owner: str, table: Table, told: Told) -> Iterator[NDArray[np.int64]]:
    """The same as words, in order, for an owner that neither evaluates nor deals."""
    values, progress = brought(job, owner, table), _Progress(job, told, table.rows)
    for piece in pieces_of(job, owner):
        yield encode(piece.of(values), piece.bits)
        progress.took(piece)


def share_in(
    job: Job,
    sources: Mapping[str, Source],
    me: str,
    table: Table | None,
    told: Told,
    given: Parameters | None = None,
    saw: Callable[[Rows], None] = lambda rows: None,
    before: Masked | None = None,
) -> Shared:
    """Secret-share all owners' rows and prepare them; at every computing node.

    sources: how each owner provides its rows, from this node's view; table: this node's own. given:
    the statistics that come with a model; None: those of these rows. saw: gets the rows as they are
    shared, in order, before they are prepared and freed. before: the noisy sums of an earlier
    session of the run.
    """
    progress = _Progress(job, told, job.rows)
    pipeline, f = job.pipeline, job.fraction_bits
    mine = None if table is None or me not in job.owners else brought(job, me, table)

    def taken(owner: str, piece: Piece) -> Masked:
        tensor = crypten.cryptensor(
            piece.of(mine) if mine is not None and owner == me else None,
            src=sources[owner],
            shape=piece.shape,
            bits=piece.bits,
        )
        assert isinstance(tensor.value, Masked) and tensor.nelement() == prod(piece.shape)
        progress.took(piece)
        return tensor.value

    pieces = {owner: pieces_of(job, owner) for owner in job.owners}
    secret, drawn = Parameters() if given is None else given, None
    if pipeline.secret and given is None:
        statistics = [taken(owner, next(pieces[owner])) for owner in job.owners]
        if job.has_noisy_statistics:
            drawn = _drawn(job, statistics) if before is None else before
            found = Sums.apart(pipeline, drawn)
            secret = noisy_parameters(pipeline, found, statistics_plan(job), f)
        else:
            secret = parameters(pipeline, statistics, len(split(job)[0]), least_filled(job), f)
    inputs: list[Masked] = []
    waiting: dict[str, list[Masked]] = {}
    kept: dict[str, list[Masked]] = {"labels": [], "weights": []}

    def prepare() -> None:
        if pipeline.trivial:  # blocks need no preparation: all are concatenated at the end
            for block in waiting.pop("features"):
                saw(Rows(block))
                inputs.append(block)
            return
        whole = {name: concatenate(waiting.pop(name)) for name in tuple(waiting)}
        rows = Rows(whole["features"], whole.get("fine"), whole.get("present"))
        saw(rows)
        inputs.append(prepared(pipeline, rows, secret, f))

    for owner in job.owners:
        for piece in pieces[owner]:
            # A block is complete when the next one begins; small ones wait for each other.
            full = sum(part.size for part in waiting.get("features", ())) >= BLOCK
            if piece.name == "features" and full:
                prepare()
            place = kept if piece.name in kept else waiting
            place.setdefault(piece.name, []).append(taken(owner, piece))
    prepare()
    table = mine = None  # the last reference: the owner's rows are freed here
    labels = MaskedTensor(concatenate(kept["labels"]))
    weights = MaskedTensor(concatenate(kept["weights"])) if job.weight else None
    whole = inputs[0] if len(inputs) == 1 else concatenate(inputs)
    return Shared(MaskedTensor(whole), labels, secret, weights, drawn)


def _drawn(job: Job, statistics: list[Masked]) -> Masked:
    """The sums of all owners, with fresh noise."""
    return noisy_sums(job.pipeline, statistics, statistics_plan(job)).together()


def label_matrix(job: Job, labels: Reals) -> Reals:
    """Labels [rows] in the shape of the model's output: one column, or one-hot classes."""
    if job.outputs == 1:
        return labels.reshape(-1, 1)
    return np.eye(job.outputs)[labels.astype(np.int64)]
