"""Parameters from sums with noise: what a job with `[privacy]` scales and fills by.

A center or a scale that is fitted to the rows depends on each of them, and the inputs of all rows
depend on it. So it does not help that it is never opened: another cell in one row would change the
gradients of all others, each by up to its norm, and clipping bounds only what a row does by its own
gradient. With noise the argument is that of adaptive composition:

1. Sums over the training rows leave a Gaussian mechanism: numbers of cells that are present, of
   columns that are filled; sums; of columns that are scaled, sums of squares. A row adds cells
   within their declared range, 1 or less, whatever it contains (`mpc_train.privacy.statistics`).
   Every node adds noise of its own before anything is rounded (`protocols.noise.summands`).
2. Everything else here is a function of these noisy sums, of public numbers and of rounding that
   does not depend on data: it costs nothing more, opened or not.
3. Given the noisy sums, a row's input is a function of its own cells alone. Its clipped gradients
   are then bounded as if the parameters were public, in each step of the training: mechanisms that
   depend on what was drawn before, which compose.

Nothing is opened but masked words, and no bit says whether a mean exists:

    mean = Σ v / n,   variance = Σ v² / rows − n / rows · mean²,   n: cells that are present,

with n within `least` and the number of rows, |mean| <= 1, and a variance of at least the square of
`least_deviation`: what noise moves beyond that is moved back. A filled cell is the mean, which adds
nothing to the variance. So no input is larger than 2 / least_deviation, and none leaves the ring.

Noisy sums are drawn once. A session that goes on from a checkpoint gets them from there
(`checkpoints.live`): other noise on the same sums would be a second release of them.

Precision: means and variances within 2^-26 of the range and its square. Rounds: 66 where cells are
scaled and filled, 48 where they are only scaled, 31 where they are only filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.owners.cells import CELL_BITS, WORD_BITS
from mpc_train.preparation.fitted import (
    Count,
    Fitted,
    Parameters,
    filled_places,
    finished,
    input_bits,
    with_factors,
)
from mpc_train.preparation.rows import Rows
from mpc_train.privacy.statistics import StatisticsPlan
from protocols.arrays import Shape
from protocols.comparison.compare import clamped, relu
from protocols.functions.magnitude import exactly, inverse_root, magnitude
from protocols.noise.summands import noisy
from protocols.ring.rational import MANTISSA_BITS
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.masked import Masked, concatenate, public

UNIT_BITS = 30
"""Fractional bits of means and variances, in which the range of a term is −1 … 1."""
TOP_LEVEL = UNIT_BITS // 2
"""A variance is at most 1, hence below 4^(TOP_LEVEL + 1)."""


@dataclass(frozen=True, slots=True, repr=False)
class Sums:
    """Noisy, over the training rows. number: of the filled terms, at scale 2^bits; first: of the
    secret terms, at scale 2^bits; second: squares, of the scaled terms, at scale 2^(2 bits)."""

    number: Masked
    first: Masked
    second: Masked

    def together(self) -> Masked:
        """All of them as one vector, of `sums_size`."""
        return concatenate([self.number, self.first, self.second])

    @classmethod
    def apart(cls, pipeline: Pipeline, whole: Masked) -> Sums:
        """From `together`."""
        ends = np.cumsum([0, len(pipeline.filled), len(pipeline.secret), len(pipeline.scaled)])
        parts = (whole.select(slice(*map(int, ends[k : k + 2]))) for k in range(3))
        return cls(*parts)


def sums_shape(pipeline: Pipeline) -> Shape:
    """The shape of `Sums.together`."""
    return (len(pipeline.filled) + len(pipeline.secret) + len(pipeline.scaled),)


def noisy_sums(pipeline: Pipeline, brought: Sequence[Masked], plan: StatisticsPlan) -> Sums:
    """1: from each owner's `owners.local.sums`, [4, secret terms] in whole words. 1 round."""
    total = brought[0]
    for other in brought[1:]:
        total = total + other
    count, first, high, low = (total.select(place) for place in range(4))
    second = high.scale(1 << WORD_BITS) + low
    number = count.select(_filled(pipeline)).scale(1 << plan.bits)
    return Sums(
        remask(noisy(number.shares(), plan.variance(plan.bits))),
        remask(noisy(first.shares(), plan.variance(plan.bits))),
        remask(noisy(second.select(_scaled(pipeline)).shares(), plan.variance(2 * plan.bits))),
    )


def joined_sums(
    pipeline: Pipeline, training: Rows, plan: StatisticsPlan, fraction_bits: int
) -> Sums:
    """1, of joined rows: owners do not know which of theirs these are, so that the sums are over
    shares. Products and sums without communication, exact. 2 to 3 rounds.

    training: the training rows. Numbers of scaled terms are `Affine.public`, of two words of
    `plan.bits`, of which the coarse one counts.
    """
    values, present, scaled = training.values, training.present, list(pipeline.scaled)
    first: dict[int, Masked] = {}
    role, none = values.role, np.zeros(0, np.int64)
    second = number = public(role, none)
    if scaled:
        coarse = values.select((slice(None), scaled))
        total = noisy(coarse.sum(axis=0).shares(), plan.variance(plan.bits))
        squares = noisy(multiply(coarse, coarse).sum(axis=0), plan.variance(2 * plan.bits))
        whole, second = remask(total), remask(squares)
        first |= {place: whole.select(slice(k, k + 1)) for k, place in enumerate(scaled)}
    if present is not None:
        counts = present.sum(axis=0).scale(1 << plan.bits)
        number = remask(noisy(counts.shares(), plan.variance(plan.bits)))
    for place in pipeline.filled:
        if place not in first:
            bits = fraction_bits + pipeline.terms[place].reach
            cells = values.select((slice(None), [place])).sum(axis=0)
            found = remask(noisy(cells.shares(), plan.variance(bits)))
            less = bits - plan.bits
            first[place] = exactly(found.shares(), less) if less > 0 else found.scale(1 << -less)
    return Sums(number, concatenate([first[place] for place in pipeline.secret]), second)


def noisy_parameters(
    pipeline: Pipeline,
    sums: Sums,
    plan: StatisticsPlan,
    fraction_bits: int,
    number_bits: int = CELL_BITS,
    word: int = WORD_BITS,
) -> Parameters:
    """2: the secret parameters, as in `combined.parameters`.

    number_bits: bits of a term's numbers as they are shared in rows; word: of their fine words.
    """
    rows, role = plan.rows, sums.first.role
    filled, scaled = _filled(pipeline), _scaled(pipeline)
    count = Count.known(role, len(pipeline.secret), rows)
    if len(filled):
        whole = exactly(sums.number.shares(), plan.bits).narrowed(64)
        present = remask(clamped(whole, plan.least, rows)[0]) if plan.least < rows else None
        if present is not None:
            count = Count.secret(_put(count.number, present, filled), rows)
    first = _within(sums.first, count.number.scale(1 << plan.bits))
    mean = count.mean(first.scale(1 << UNIT_BITS - plan.bits), UNIT_BITS)
    fitted = centers = None
    if len(scaled):
        second = remask(clamped(sums.second, 0, rows << 2 * plan.bits)[0])
        squares = exactly(second.shares(), 2 * plan.bits - UNIT_BITS)
        every = Count.known(role, len(scaled), rows)
        center = mean.select(scaled)
        square = exactly(multiply(center, center), UNIT_BITS)
        if len(filled):
            lifted = count.number.select(scaled).scale(1 << UNIT_BITS)
            part = every.mean(lifted, UNIT_BITS)
            square = exactly(multiply(part, square), UNIT_BITS)
        variance = every.mean(squares, UNIT_BITS) - square
        fitted = _fitted(variance, center, plan, number_bits, word)
        centers = center.scale(1 << number_bits - UNIT_BITS)
    means = between = None
    if len(filled):
        found = mean.select(filled)
        means = found.scale(1 << CELL_BITS - UNIT_BITS)
        both, _ = filled_places(pipeline)
        if both:
            between = found.select(np.array(both)).scale(1 << number_bits - UNIT_BITS)
    return finished(pipeline, fitted, centers, means, between, None, plan.least, fraction_bits)


def _fitted(
    variance: Masked, center: Masked, plan: StatisticsPlan, number_bits: int, word: int
) -> Fitted:
    """The inverse root of a variance, by its octave, and the factors of numbers."""
    least = ceil(Fraction(plan.least_deviation) ** 2 * (1 << UNIT_BITS))
    bounded = remask(clamped(variance.narrowed(64), least, 1 << UNIT_BITS)[0])
    levels = range((least.bit_length() - 1) // 2, TOP_LEVEL + 1)
    # 4^level <= bounded < 4^(level + 1)
    size = magnitude(bounded, [1 << 2 * level for level in levels[1:]])
    power = remask(size.chosen([1 << 2 * (TOP_LEVEL - level) for level in levels]))
    root = inverse_root(exactly(multiply(bounded, power), UNIT_BITS - MANTISSA_BITS))
    exponents = [TOP_LEVEL - level for level in levels]
    factors = with_factors(
        root,
        MANTISSA_BITS + 1,
        size,
        [exponent - number_bits for exponent in exponents],
        word,
        input_bits(plan.rows),
    )
    # No input is too far away: the range, and so the distance from the center, is bounded.
    near = remask(public(center.role, np.zeros(center.shape, np.int64)).shares())
    cells = center.scale(1 << CELL_BITS - UNIT_BITS)
    return Fitted(factors, cells, root, remask(size.chosen(exponents)), near)


def _within(x: Masked, bound: Masked) -> Masked:
    """x, moved into −bound … bound. 8 rounds."""
    above = relu((x + bound).narrowed(64))[0] - bound
    return bound - relu((bound - above).narrowed(64))[0]


def _filled(pipeline: Pipeline) -> np.ndarray:
    """Places of the filled terms among the secret ones."""
    return np.array([pipeline.secret.index(place) for place in pipeline.filled], np.int64)


def _scaled(pipeline: Pipeline) -> np.ndarray:
    """Places of the scaled terms among the secret ones."""
    return np.array([pipeline.secret.index(place) for place in pipeline.scaled], np.int64)


def _put(base: Masked, part: Masked, places: np.ndarray) -> Masked:
    """`base` with the elements of `part` at `places`."""
    order = np.arange(base.shape[0])
    order[places] = base.shape[0] + np.arange(len(places))
    return concatenate([base, part]).select(order)
