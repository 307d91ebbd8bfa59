"""Whether what a model is asked about, and what it answers, is still like its training rows.

Each column with `bins` in the schema, each category and boolean, and the outputs have a histogram.
Rows are counted over shares, batch by batch, and the counts stay shares. What leaves, on a schedule
and only over enough rows, is each count with discrete Laplace noise of every evaluator: it says how
many rows a bin has, about, and is ε-differentially private for one row of a question. From two such
releases, of the training rows and of those that were asked, anybody computes the population
stability index of a histogram,

    PSI = Σ over its bins (q − p) · ln(q / p),    p, q: a bin's share of training and of asked rows

of which 0.1 and 0.25 are the customary limits: no shift below, a shift to look into above.

    1. Edges become words as an owner's cell at that edge would, so that a cell at an edge is in the
       bin above it for everybody. A histogram's edges are compared with all rows at once.
    2. Rows below each edge are added up, and neighbouring sums subtracted. A row counts as often as
       a secret weight says, 0 or 1: rows that only pad a question do not count.
    3. A missing cell that the secret mean fills has a bin of its own.

A client that shares in numbers which the schema does not allow distorts the counts; so does one
that asks about rows of its choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, log, sqrt
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.noise import with_noise
from mpc_train.evaluation.ranking import edges_of
from mpc_train.jobs.training import loss_name
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import term_values
from protocols.comparison.compare import argmax, below, negative
from protocols.ring.fixed_point import encode
from protocols.shares.arithmetic import multiply, remask, select
from protocols.shares.masked import Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.pipeline import Term
    from mpc_train.tables.schema import Column
    from protocols.arrays import Words

OUTPUTS = "(outputs)"
"""The name of the outputs' histogram; no column has it in a schema's spelling of features."""
MAX_BINS = 65
PROBABILITY_BINS = 10
SMOOTHED = 0.5
"""Rows that are added to each bin, so that an empty one has a finite index."""


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


def counts(
    job: Job,
    counted: Sequence[Histogram],
    features: Masked,
    present: Masked | None,
    outputs: Masked,
    real: Masked | None = None,
) -> Masked:
    """How many rows each bin of each histogram has, one after the other, at scale 2^f.

    features, present: as in `serving.forward.asked_shapes`. outputs: [rows, outputs] at scale 2^f.
    real: words 0 and 1, [rows]: the rows that count; None: all do. Rounds: 4, or those of `argmax`.
    """
    counter = _Counter(job, counted, features, present, outputs, real)
    return concatenate([counter.of(one) for one in counted])


class _Counter:
    def __init__(
        self,
        job: Job,
        counted: Sequence[Histogram],
        features: Masked,
        present: Masked | None,
        outputs: Masked,
        real: Masked | None,
    ) -> None:
        self._f, self._rows = job.fraction_bits, outputs.shape[0]
        self._features, self._present = features, present
        self._outputs, self._real = outputs, real
        self._below = self._compared(job, counted)

    def _compared(self, job: Job, counted: Sequence[Histogram]) -> dict[str, MaskedBit]:
        """[x < edge] for all edges of all columns in one comparison: [edges, rows] by name."""
        places = [(one, edge) for one in counted if one.term is not None for edge in one.edges]
        if not places:
            return {}
        column = [one.term for one, _ in places]
        edges = np.array([edge for _, edge in places])[:, None]
        bits = negative(
            self._features.select((slice(None), column))
            .transpose()
            .shift(-edges)
            .narrowed(_compared_bits(job))
        )
        found: dict[str, MaskedBit] = {}
        start = 0
        for one in counted:
            if one.term is not None:
                found[one.name] = bits.select(slice(start, start + len(one.edges)))
                start += len(one.edges)
        return found

    def of(self, one: Histogram) -> Masked:
        """The counts of one histogram, [bins]."""
        if one.levels:
            x = self._features.select((slice(None), list(one.levels)))
            found = x.sum(axis=0)
            if self._real is not None:
                found = remask(multiply(x, self._real.reshape(-1, 1)).sum(axis=0))
            return concatenate([found, self._all() - found.sum(keepdims=True)])
        if one.term is None and not one.edges:
            winners = argmax(self._outputs)
            if self._real is None:
                return remask(winners.shares().sum(axis=0).scale(1 << self._f))
            chosen = select(winners, self._real.reshape(-1, 1)).sum(axis=0)
            return remask(chosen.scale(1 << self._f))
        if one.term is None:
            narrow = self._outputs.reshape(-1)
            narrow = narrow if narrow.early else narrow.narrowed(64 - self._f)
            bits = below(narrow, one.edges)
        else:
            bits = self._below[one.name]
        weight, total = self._real, self._all()
        missing = []
        if one.present is not None and self._present is not None:
            there = self._present.select((slice(None), one.present))
            weight = there if weight is None else remask(multiply(there, weight))
            missing = [total]
            total = weight.sum(keepdims=True).scale(1 << self._f)
            missing[0] = missing[0] - total
        sums = bits.shares() if weight is None else select(bits, weight.reshape(1, -1))
        under = remask(sums.sum(axis=1).scale(1 << self._f))
        inner = under.select(slice(1, None)) - under.select(slice(0, -1))
        last = total - under.select(slice(-1, None))
        return concatenate([under.select(slice(0, 1)), inner, last, *missing])

    def _all(self) -> Masked:
        """The number of rows that count, [1]."""
        if self._real is not None:
            return self._real.sum(keepdims=True).scale(1 << self._f)
        zero = self._outputs.select((slice(0, 1), 0)).scale(0)
        return zero.shift(self._rows << self._f)


def _compared_bits(job: Job) -> int:
    """Of the difference of a column's word and an edge."""
    most = max(ceil(job.data.limit), *(ceil(term.bound) for term in job.pipeline.terms))
    return min(64, max(WORD_BITS, most.bit_length() + job.fraction_bits) + 3)


def released(
    total: Masked, counted: Sequence[Histogram], least: int, epsilon: Fraction, fraction_bits: int
) -> Masked:
    """The words to be revealed: 1 and the counts with noise, or zeros if fewer than `least` rows
    count. ε is for one row more or less, which changes one count of each histogram.

    int64[1 + bins]: a word at scale 1, then counts at scale 2^f.
    """
    first = len(counted[0].bins)
    rows = total.select(slice(0, first)).sum(keepdims=True)
    enough = below(rows, ((2 * least - 1) << (fraction_bits - 1),)).reshape(1).negate()
    noisy = with_noise(total, len(counted) / epsilon, fraction_bits)
    kept = remask(select(enough.broadcast_to(total.shape), noisy))
    return concatenate([remask(enough.shares()), kept])


def noise_of(job: Job) -> float:
    """The standard deviation of the noise in each count of a job that watches drift."""
    assert job.drift is not None
    return sqrt(2 * len(job.evaluators)) * len(histograms(job)) / float(job.drift.epsilon)


def read(
    words: Words, counted: Sequence[Histogram], fraction_bits: int
) -> dict[str, tuple[int, ...]] | None:
    """The counts of each histogram, by name, from the words of `released`; None: too few rows.

    A count may be negative, by its noise.
    """
    if not words[0]:
        return None
    numbers = (words[1:] >> fraction_bits).tolist()
    found, start = {}, 0
    for one in counted:
        found[one.name] = tuple(numbers[start : start + len(one.bins)])
        start += len(one.bins)
    return found


def stability(training: Sequence[int], asked: Sequence[int]) -> float:
    """The population stability index of two histograms of the same bins."""
    if len(training) != len(asked):
        raise ValueError("histograms of different bins")
    p, q = _parts(training), _parts(asked)
    return sum((b - a) * log(b / a) for a, b in zip(p, q, strict=True))


def by_chance(training: Sequence[int], asked: Sequence[int], deviation: float = 0.0) -> float:
    """About what the index is when nothing has shifted: of the numbers of rows alone, and of noise
    of this standard deviation in each count. What is hardly more than this says nothing."""
    found = 0.0
    for numbers in (training, asked):
        parts, rows = _parts(numbers), max(1, sum(max(0, number) for number in numbers))
        found += (len(parts) - 1) / rows
        found += sum((deviation / rows) ** 2 * (1 - part) ** 2 / part for part in parts)
    return found


def _parts(numbers: Sequence[int]) -> list[float]:
    smoothed = [max(0, number) + SMOOTHED for number in numbers]
    return [number / sum(smoothed) for number in smoothed]


def report(
    training: Mapping[str, Sequence[int]], asked: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """The index of each histogram, by name."""
    return {name: stability(training[name], found) for name, found in asked.items()}
