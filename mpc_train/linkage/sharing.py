"""Joins rows of several owners' columns over shares into the model's inputs.

Each owner provides its terms (for those with a secret scale a coarse and a fine word), presence
bits, and label and weight if it has them, as one matrix; in addition, how it counts the cells of
scaled terms (`owners.cells.Affine`).

* If holders know which rows are joined, each provides those, in the common order.
* If nobody does, each provides all its rows in the order of its list. They follow the list: every
  other evaluator in turn permutes them as it permuted the list (`protocols.linkage.shuffle`), and
  the rows at the positions that the lists have in common are kept.

Nobody learns anything here: what evaluators see has fresh masks at every turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.schedule import split
from mpc_train.owners.cells import Affine, cells, halves, joined_bits
from mpc_train.owners.columns import Part, part_of
from mpc_train.owners.local import least_filled
from mpc_train.owners.row_norms import weights_of
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.joined import joined_parameters
from mpc_train.preparation.noisy import joined_sums, noisy_parameters
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.preparation.sharing import Shared, label_matrix
from mpc_train.privacy.statistics import statistics_bits, statistics_plan
from protocols.arrays import Shape, Words
from protocols.crypten_tensor.tensor import MaskedTensor, crypten
from protocols.linkage.intersection import route
from protocols.linkage.shuffle import pick, shuffle
from protocols.ring.fixed_point import encode
from protocols.shares.masked import Masked, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.linkage.link import Linked
    from mpc_train.owners.table import Table
    from protocols.roles.role import Role


def share_joined(job: Job, role: Role, linked: Linked, me: str, table: Table | None) -> Shared:
    """Inputs [joined rows, width], labels and weights of all owners; at every computing node.

    job: resolved for the joined rows. table: this node's own, None if it owns none.
    """
    parts = [part_of(job, owner) for owner in job.owners]
    brought = [
        _joined(job, role, linked, owner, part, table if owner == me else None)
        for owner, part in zip(job.owners, parts, strict=True)
    ]
    whole = concatenate([mine for mine, _ in brought], 1)
    places = _Places.of(parts)
    fine, present = (
        whole.select((slice(None), of)) if of else None for of in (places.fine, places.filled)
    )
    rows = Rows(whole.select((slice(None), places.terms)), fine, present)
    pipeline, f = job.pipeline, job.fraction_bits
    found = Parameters()
    if pipeline.secret:
        training, _ = split(job)
        affine, chosen = None, rows.select(training)
        if places.affine and not job.has_noisy_statistics:
            affine = concatenate([words for _, words in brought if words is not None], 1)
            affine = affine.select((slice(None), places.affine))
        if job.has_noisy_statistics:
            plan = statistics_plan(job)
            sums = joined_sums(pipeline, chosen, plan, f)
            found = noisy_parameters(pipeline, sums, plan, f, 2 * plan.bits, plan.bits)
        else:
            word = joined_bits(job.rows)
            found = joined_parameters(pipeline, chosen, affine, word, least_filled(job), f)
    inputs = prepared(pipeline, rows, found, f)
    labels = whole.select((slice(None), places.label))
    weights = None
    if places.weight:
        weights = MaskedTensor(whole.select((slice(None), places.weight)))
    return Shared(MaskedTensor(inputs), MaskedTensor(labels), found, weights)


def _joined(
    job: Job, role: Role, linked: Linked, owner: str, part: Part, table: Table | None
) -> tuple[Masked, Masked | None]:
    """An owner's part of the joined rows, int64[rows, part.width], and how it counts the cells of
    its scaled terms, `Affine.words`."""
    index = job.evaluators.index(owner)
    words = affine = None
    if table is not None:
        if linked.mine is None:
            raise ValueError("an owner knows in which order it brings its rows")
        words, affine = _words(job, part, table.ordered(linked.mine))
    counted = None
    if part.scaled and not job.has_noisy_statistics:
        counted = _shared(affine, index, (5, len(part.scaled)))
    if not linked.orders:
        return _shared(words, index, (linked.rows, part.width)), counted
    x = _shared(words, index, (job.data.rows[owner], part.width))
    for evaluator in route(owner, job.evaluators)[1:]:
        order = linked.orders[owner, evaluator]
        x = shuffle(x, job.evaluators.index(evaluator), order)
    return pick(x, linked.positions.get(owner), linked.rows), counted


def _shared(words: Words | None, owner: int, shape: Shape) -> Masked:
    """Words of evaluator `owner`, secret-shared unchanged."""
    value = crypten.cryptensor(words, src=owner, shape=shape, bits=0).value
    assert isinstance(value, Masked)
    return value


def _words(job: Job, part: Part, table: Table) -> tuple[Words, Words]:
    f, pipeline = job.fraction_bits, job.pipeline
    mine = Pipeline(tuple(pipeline.terms[place] for place in part.terms))
    scaled, filled = list(mine.scaled), list(mine.filled)
    features = table.features
    if job.has_noisy_statistics:
        # The bound of what a row changes in sums, whatever was read.
        most = np.exp2(mine.reaches)
        features = np.where(_secret(mine), np.clip(features, -most, most), features)
    values = encode(features, f)
    whole, there = cells(mine, features), np.ones((table.rows, len(scaled)), bool)
    for place, term in enumerate(scaled):
        if term in filled:
            there[:, place] = table.present[:, filled.index(term)] == 1
    if job.has_noisy_statistics:
        word = statistics_bits(len(split(job)[0]))
        affine = Affine.public(len(scaled), word)
    else:
        word = joined_bits(job.rows)
        affine = Affine.of(whole, there, word)
    coarse, fine = (encode(half, 0) for half in halves(affine.numbers(whole, there), word))
    values[:, scaled] = coarse
    blocks = [values, fine, encode(table.present, 0)]
    if part.label:
        blocks.append(encode(label_matrix(job, table.labels), f))
    if part.weight:
        blocks.append(encode(weights_of(job, table.weights), f))
    rows = np.concatenate([block.reshape(table.rows, -1) for block in blocks], axis=1)
    return rows, encode(affine.words, 0)


def _secret(pipeline: Pipeline) -> NDArray[np.bool_]:
    """Which of its terms have secret statistics."""
    return np.array([term.secret for term in pipeline.terms], bool)


@dataclass(frozen=True, slots=True)
class _Places:
    """The places of the pipeline's terms, the fine words of its scaled terms, its filled terms, the
    label and the weight among all owners' words; affine: the places of the scaled terms in the
    owners' `Affine` words."""

    terms: list[int]
    fine: list[int]
    filled: list[int]
    label: list[int]
    weight: list[int]
    affine: list[int]

    @classmethod
    def of(cls, parts: list[Part]) -> _Places:
        terms: dict[int, int] = {}
        fine: dict[int, int] = {}
        filled: dict[int, int] = {}
        label: list[int] = []
        weight: list[int] = []
        start = 0
        for part in parts:
            for found, mine in ((terms, part.terms), (fine, part.scaled), (filled, part.filled)):
                found |= {place: start + i for i, place in enumerate(mine)}
                start += len(mine)
            if part.label:
                label = list(range(start, start + part.outputs))
                start += part.outputs
            if part.weight:
                weight = [start]
                start += 1
        affine = np.argsort([place for part in parts for place in part.scaled]).tolist()
        values, low, there = (
            [found[place] for place in sorted(found)] for found in (terms, fine, filled)
        )
        return cls(values, low, there, label, weight, affine)
