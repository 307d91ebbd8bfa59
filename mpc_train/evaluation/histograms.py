"""Which histograms a service counts its rows into: public, from the job alone.

Edges become words as an owner's cell at that edge would, so that a cell at an edge is in the bin
above it for everybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.jobs.training import loss_name
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import term_values
from protocols.ring.fixed_point import encode

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.pipeline import Term
    from mpc_train.tables.schema import Column

OUTPUTS = "(outputs)"
"""The name of the outputs' histogram; no column has it in a schema's spelling of features."""
MAX_BINS = 65
PROBABILITY_BINS = 10


@dataclass(frozen=True, slots=True)
class Histogram:
    """What is counted of one column, or of the outputs: public, from the job alone.

    bins: their names, in order. term: place of the column's term, None for outputs. edges: words of
    the term or the output. levels: places of a category's terms, one a bin. present: place among
    the filled terms; its missing cells are the last bin.
    """

    name: str
    bins: tuple[str, ...]
    term: int | None = None
    edges: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    present: int | None = None


def histograms(job: Job) -> tuple[Histogram, ...]:
    """The histograms of a job, columns in order and the outputs last."""
    found = []
    for feature in job.features:
        column = job.schema[feature.name]
        one = _of_column(job, column)
        if one is not None and len(one.bins) <= MAX_BINS:
            found.append(one)
    outputs = _of_outputs(job)
    return (*found, outputs) if outputs is not None else tuple(found)


def named(
    counted: Sequence[Histogram], found: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, int]]:
    """Counts by histogram, with the names of their bins."""
    return {one.name: dict(zip(one.bins, found[one.name], strict=True)) for one in counted}


def _of_column(job: Job, column: Column) -> Histogram | None:
    terms = job.pipeline.terms
    mine = [place for place, term in enumerate(terms) if term.column == column.name]
    if column.kind == "category":
        levels = (*column.levels, *(["other"] if column.other else []))
        if terms[mine[0]].part == "index":
            # Numbers from 0; the one after them all is a missing cell.
            term = terms[mine[0]]
            names = levels if term.fill is None else (*levels, "missing")
            edges = [number - 0.5 for number in range(1, len(names))]
            return Histogram(column.name, names, mine[0], _words(job, mine[0], edges))
        mine = [place for place in mine if terms[place].part == "level"]
        names = tuple(levels[terms[place].level] for place in mine)
        # Rows of none: of the level without a term, and missing cells.
        return Histogram(column.name, (*names, "(none of these)"), levels=tuple(mine))
    raw = [0.5] if column.kind == "boolean" else [*column.edges]
    place = next((k for k in mine if terms[k].part == "number" and terms[k].power == 1), None)
    if place is None or not raw:
        return None
    raw = [edge for edge in raw if _divides(terms[place], edge)]
    if not raw:
        return None
    names = ("false", "true") if column.kind == "boolean" else _between(raw)
    present = None
    if terms[place].filled:
        present = job.pipeline.filled.index(place)
        names = (*names, "missing")
    return Histogram(column.name, names, place, _words(job, place, raw), present=present)


def _divides(term: Term, edge: float) -> bool:
    """Whether values on both sides of an edge are told apart after the column's clip."""
    return term.clip is None or term.clip[0] < edge <= term.clip[1]


def _between(edges: Sequence[float]) -> tuple[str, ...]:
    inner = (f"{low:g} to {high:g}" for low, high in pairwise(edges))
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} and above")


def _words(job: Job, place: int, raw: Sequence[float]) -> tuple[int, ...]:
    """The words that an owner's cells of these raw values have in this term's column."""
    pipeline = job.pipeline
    term = pipeline.terms[place]
    edges = np.array(raw)
    u = term_values(term, edges, np.zeros(len(edges), bool))
    if not term.scaled:
        return tuple(encode(u, job.fraction_bits).tolist())
    table = np.zeros((len(edges), len(pipeline.terms)))
    table[:, place] = u
    coarse, _ = halves(cells(pipeline, table), WORD_BITS)
    found = coarse[:, pipeline.scaled.index(place)].astype(np.int64)
    return tuple(found.tolist())


def _of_outputs(job: Job) -> Histogram | None:
    f = job.fraction_bits
    if job.outputs > 1:
        return Histogram(OUTPUTS, tuple(f"class {k}" for k in range(job.classes)))
    if job.classes:
        parts = [k / PROBABILITY_BINS for k in range(1, PROBABILITY_BINS)]
        return Histogram(OUTPUTS, _between(parts), edges=tuple(edges_of(PROBABILITY_BINS, f)))
    raw = job.schema[job.label.name].edges
    if not raw or loss_name(job) == "poisson":
        return None
    center, scale = float(job.label.center), float(job.label.scale)
    words = encode((np.array(raw) - center) / scale, f)
    return Histogram(OUTPUTS, _between(raw), edges=tuple(words.tolist()))


def noise_of(job: Job) -> float:
    """The standard deviation of the noise in each count of a job that watches drift."""
    assert job.drift is not None
    return sqrt(2 * len(job.evaluators)) * len(histograms(job)) / float(job.drift.epsilon)


def edges_of(bins: int, fraction_bits: int) -> list[int]:
    """The scores at scale 2^f at the edges of bins of equal width of the probability 1/(1 +
    e^-z)."""
    # Public constants from a float, rounded to 2^-10, so that every machine gets the same.
    return [round(log(k / (bins - k)) * 1024) << (fraction_bits - 10) for k in range(1, bins)]
