"""Whether what a model is asked about, and what it answers, is still like its training rows.

Each column with `bins` in the schema, each category and boolean, and the outputs have a histogram.
Rows are counted over shares, batch by batch, and the counts stay shares. What leaves, after
training (`training_counts`) and then on a schedule, and only over enough rows, is each count with
discrete Laplace noise of every evaluator: it says how many rows a bin has, about, and is
ε-differentially private for one row. From two such releases, of the training rows and of those
that were asked, anybody computes the population stability index of a histogram,

    PSI = Σ over its bins (q − p) · ln(q / p),    p, q: a bin's share of training and of asked rows

of which 0.1 and 0.25 are the customary limits: no shift below, a shift to look into above.

    1. A histogram's edges (`histograms`) are compared with all rows at once.
    2. Rows below each edge are added up, and neighbouring sums subtracted. A row counts as often as
       a secret weight says, 0 or 1: rows that only pad a question do not count.
    3. A missing cell that the secret mean fills has a bin of its own.

A client that shares in numbers which the schema does not allow distorts the counts; so does one
that asks about rows of its choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, log
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.noise import with_noise
from mpc_train.owners.cells import WORD_BITS
from protocols.comparison.compare import argmax, below, negative
from protocols.shares.arithmetic import multiply, remask, select
from protocols.shares.masked import Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from mpc_train.evaluation.histograms import Histogram
    from mpc_train.jobs.job import Job
    from protocols.arrays import Words

SMOOTHED = 0.5
"""Rows that are added to each bin, so that an empty one has a finite index."""


def counts(
    job: Job,
    counted: Sequence[Histogram],
    features: Masked | None,
    present: Masked | None,
    outputs: Masked | None,
    real: Masked | None = None,
) -> Masked:
    """How many rows each bin of each histogram has, one after the other, at scale 2^f.

    features, present: as in `serving.forward.asked_shapes`; None where no column is counted.
    outputs: [rows, outputs] at scale 2^f; None where they are not counted. real: words 0 and 1,
    [rows]: the rows that count; None: all do. Rounds: 4, or those of `argmax`.
    """
    counter = _Counter(job, counted, features, present, outputs, real)
    return concatenate([counter.of(one) for one in counted])


class _Counter:
    def __init__(
        self,
        job: Job,
        counted: Sequence[Histogram],
        features: Masked | None,
        present: Masked | None,
        outputs: Masked | None,
        real: Masked | None,
    ) -> None:
        any_rows = outputs if features is None else features
        if any_rows is None:
            raise ValueError("there are rows of neither columns nor outputs")
        self._f, self._any_rows = job.fraction_bits, any_rows
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
        assert self._features is not None
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
            assert self._features is not None
            x = self._features.select((slice(None), list(one.levels)))
            found = x.sum(axis=0)
            if self._real is not None:
                found = remask(multiply(x, self._real.reshape(-1, 1)).sum(axis=0))
            return concatenate([found, self._all() - found.sum(keepdims=True)])
        if one.term is None and not one.edges:
            assert self._outputs is not None
            winners = argmax(self._outputs)
            if self._real is None:
                return remask(winners.shares().sum(axis=0).scale(1 << self._f))
            chosen = select(winners, self._real.reshape(-1, 1)).sum(axis=0)
            return remask(chosen.scale(1 << self._f))
        if one.term is None:
            assert self._outputs is not None
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
        zero = self._any_rows.select((slice(0, 1), 0)).scale(0)
        return zero.shift(self._any_rows.shape[0] << self._f)


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


def read(
    words: Words, counted: Sequence[Histogram], fraction_bits: int
) -> dict[str, tuple[int, ...]] | None:
    """The counts of each histogram, by name, from the words of `released`; None: too few rows.

    A count may be negative, by its noise.
    """
    if not words[0]:
        return None
    return by_histogram(words[1:], counted, fraction_bits)


def by_histogram(
    words: Words, counted: Sequence[Histogram], fraction_bits: int
) -> dict[str, tuple[int, ...]]:
    """Opened counts at scale 2^f, one histogram after the other, by its name."""
    numbers = (words >> fraction_bits).tolist()
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
