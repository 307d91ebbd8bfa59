"""Rows of several owners' columns become the model's inputs: joined, over shares.

Each owner brings its terms, bits of what is there, and label and weight if it has them, as one
matrix.

* Where holders know which rows are joined, each brings those, in the common order.
* Where nobody does, each brings all of its rows in the order in which it sent its list. They follow
  the list: every other evaluator in turn permutes them as it permuted the list
  (`protocols.shuffle`), and those at the positions that the lists have in common stay.

Nobody learns anything here: what evaluators see is masked afresh at every turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpc_train.jobs.schedule import split
from mpc_train.linkage.columns import Part, part_of
from mpc_train.preparation.combined import Parameters, parameters, prepared
from mpc_train.preparation.joined import joined_statistics
from mpc_train.preparation.sharing import Shared, label_matrix
from protocols.crypten_backend import MaskedTensor
from protocols.fixed_point import encode
from protocols.inputs import from_evaluator
from protocols.intersection import route
from protocols.masked import Masked, concatenate
from protocols.shuffle import pick, shuffle

if TYPE_CHECKING:
    from mpc_train.data import Table
    from mpc_train.jobs.job import Job
    from mpc_train.linkage.link import Linked
    from protocols.role import Role, Words


def share_joined(job: Job, role: Role, linked: Linked, me: str, table: Table | None) -> Shared:
    """Inputs [joined rows, width], labels and weights of all owners; at every computing node.

    job: resolved for the joined rows. table: this node's own, None where it owns none.
    """
    parts = [part_of(job, owner) for owner in job.owners]
    brought = [
        _joined(job, role, linked, owner, part, table if owner == me else None)
        for owner, part in zip(job.owners, parts, strict=True)
    ]
    whole = concatenate(brought, 1)
    terms, filled, label, weight = _places(parts)
    values = whole.select((slice(None), terms))
    present = whole.select((slice(None), filled)) if filled else None
    pipeline, f = job.pipeline, job.fraction_bits
    found = Parameters(None, None, None)
    if pipeline.secret:
        training, _ = split(job)
        there = None if present is None else present.select(training)
        statistics = joined_statistics(pipeline, values.select(training), there, f)
        found = parameters(pipeline, [statistics], f)
    inputs = prepared(pipeline, values, present, found, f)
    labels = whole.select((slice(None), label))
    weights = MaskedTensor(whole.select((slice(None), weight))) if weight else None
    return Shared(MaskedTensor(inputs), MaskedTensor(labels), found, weights)


def _joined(
    job: Job, role: Role, linked: Linked, owner: str, part: Part, table: Table | None
) -> Masked:
    """An owner's part of the joined rows, int64[rows, part.width]."""
    index = job.evaluators.index(owner)
    words = None
    if table is not None:
        if linked.mine is None:
            raise ValueError("an owner knows in which order it brings its rows")
        words = _words(job, part, table)[linked.mine]
    if not linked.orders:
        return from_evaluator(role, index, (linked.rows, part.width), words)
    x = from_evaluator(role, index, (job.data.rows[owner], part.width), words)
    for evaluator in route(owner, job.evaluators)[1:]:
        order = linked.orders[owner, evaluator]
        x = shuffle(x, job.evaluators.index(evaluator), order)
    return pick(x, linked.positions.get(owner), linked.rows)


def _words(job: Job, part: Part, table: Table) -> Words:
    f = job.fraction_bits
    blocks = [encode(table.features, f), encode(table.present, 0)]
    if part.label:
        blocks.append(encode(label_matrix(job, table.labels), f))
    if part.weight:
        blocks.append(encode(table.weights, f))
    return np.concatenate([block.reshape(table.rows, -1) for block in blocks], axis=1)


def _places(parts: list[Part]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Where the pipeline's terms, its filled terms, the label and the weight stand among all
    owners' words."""
    terms: dict[int, int] = {}
    filled: dict[int, int] = {}
    label: list[int] = []
    weight: list[int] = []
    start = 0
    for part in parts:
        terms |= {place: start + i for i, place in enumerate(part.terms)}
        start += len(part.terms)
        filled |= {place: start + i for i, place in enumerate(part.filled)}
        start += len(part.filled)
        if part.label:
            label = list(range(start, start + part.outputs))
            start += part.outputs
        if part.weight:
            weight = [start]
            start += 1
    return [terms[i] for i in sorted(terms)], [filled[i] for i in sorted(filled)], label, weight
