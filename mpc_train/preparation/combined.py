"""Statistics of all owners' rows together, over shares: nobody learns a mean, a variance or an
extreme.

1. Owners provide counts, means, extremes and deviations of each term over their own training rows,
   in cell units, and the extremes of all their rows (`local.partials`).
2. Together they compute the extremes, and a power of two that makes the spread between them about 1
   and stays secret. Everything else is computed from values that it multiplied, whatever part of
   the declared range they lie in:

       mean = Σ n·m / Σ n,    variance = Σ (s² + w·(m − mean)²),    w = n / rows, s with √w in it.

   A variance is at least (spread² / 2) / rows, so it keeps its digits as well. If the spread is
   below 2^10 cell units the column counts as constant: its scale is 0, and the recipients are told
   (`sealed`).
Then every row becomes (number − center) · inverse, as in `fitted`, and the interactions follow
(`rows`). The cost of this module grows with the number of columns only.

Precision: a mean is within 2^-27 of the spread; an inverse has a relative error within 2^-26 and
2^-29 · √(8 · rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.owners.cells import CELL_BITS, MIN_SPREAD_BITS, WORD_BITS
from mpc_train.preparation.fitted import (
    Count,
    Fitted,
    Parameters,
    beyond,
    filled_places,
    finished,
    input_bits,
    nonzero,
    with_factors,
)
from protocols.functions.magnitude import (
    Magnitude,
    exactly,
    inverse_root,
    magnitude,
    reciprocal,
    shifted,
)
from protocols.functions.scaling import extremes
from protocols.ring.rational import MANTISSA_BITS
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.masked import Masked, concatenate

UNIT_BITS = 30
"""Fractional bits of values relative to the spread; squares have twice as many."""
MAX_SPREAD_BITS = CELL_BITS + 2
"""The spread is below 2^58 cell units."""
TOPS = range(MIN_SPREAD_BITS, MAX_SPREAD_BITS + 1)
"""For each level of a spread: it is below 2^top, and from the second level on at least half of
that."""


def parameters(
    pipeline: Pipeline, brought: Sequence[Masked], rows: int, least: int, fraction_bits: int
) -> Parameters:
    """The secret parameters from each owner's partials, [STATISTICS, secret terms] in whole words.

    rows: training rows of all owners; least: the fewest rows in a mean. Rounds: at most 60, for
    minmax only 34.
    """
    if not pipeline.secret:
        return Parameters()
    pooled = _Pooled.of(brought, rows, bool(pipeline.filled))
    place = {index: number for number, index in enumerate(pipeline.secret)}
    fitted = centers = filled = between = number = None
    if pipeline.scaled:
        found, order = [], []
        for kind, of in (("standard", _standard), ("minmax", _minmax)):
            mine = [i for i in pipeline.scaled if pipeline.terms[i].shared == kind]
            if mine:
                found.append(of(pooled.select([place[i] for i in mine])))
                order += mine
        back = np.argsort(np.array(order))
        centers, relative, mantissa, exponent = (
            concatenate(parts).select(back) for parts in zip(*found, strict=True)
        )
        scaled = pooled.select([place[i] for i in pipeline.scaled])
        size = scaled.size
        # For a constant column these numbers have no meaning.
        stacked = concatenate([x.reshape(1, -1) for x in (relative, mantissa, exponent)])
        stacked = nonzero(remask(size.lowest.negate().shares()), stacked)
        bits, lowered = _relative_bits(rows), [-top for top in TOPS]
        factors = with_factors(stacked.select(0), bits, size, lowered, WORD_BITS, input_bits(rows))
        exponent = stacked.select(2)
        far = beyond(scaled.least, scaled.most, centers, exponent)
        fitted = Fitted(factors, centers, stacked.select(1), exponent, far)
    if pipeline.filled:
        places = np.array([place[index] for index in pipeline.filled])
        filled, number = pooled.mean.select(places), pooled.number.select(places)
        both, _ = filled_places(pipeline)
        between = filled.select(np.array(both)) if both else None
    return finished(pipeline, fitted, centers, filled, between, number, least, fraction_bits)


@dataclass(frozen=True, slots=True, repr=False)
class _Pooled:
    """Step 2, for each secret term. rows: training rows of all owners; number: how many have a
    value.

    low, mean, least, most: in cell units, the last two of all rows, held-out ones included. size,
    spread: the spread's level among TOPS, and the spread as a number in [2^57, 2^58) by the power
    that follows. deviations, roots, apart: for each owner, by the same power, [terms, owners] at
    scale 2^30: its own deviation, √w, and m − mean.
    """

    rows: int
    number: Masked
    low: Masked
    mean: Masked
    least: Masked
    most: Masked
    size: Magnitude
    spread: Masked
    deviations: Masked
    roots: Masked
    apart: Masked

    @classmethod
    def of(cls, brought: Sequence[Masked], rows: int, gaps: bool) -> _Pooled:
        whole = concatenate([one.reshape(*one.shape, 1) for one in brought], 2)
        counts, there, roots, lows, highs, above, deviations, least, most = (
            whole.select(place) for place in range(whole.shape[0])
        )
        low, high = extremes(concatenate([lows, least]), concatenate([highs, most]))
        training, every = slice(0, counts.shape[0]), slice(counts.shape[0], None)
        least, most = low.select(every), high.select(every)
        low, high = low.select(training), high.select(training)
        size = magnitude(high - low, [1 << top for top in TOPS[:-1]])
        power = remask(size.chosen([1 << MAX_SPREAD_BITS - top for top in TOPS]))
        # An owner without a cell has no mean: the number in its place may be anything.
        away = remask(multiply(there, lows + above - low.reshape(-1, 1)))
        both = concatenate([one.reshape(1, *one.shape) for one in (away, deviations)])
        both = exactly(multiply(both, power.reshape(-1, 1)), MAX_SPREAD_BITS - UNIT_BITS)
        away, deviations = both.select(0), both.select(1)
        number = counts.sum(axis=1)
        count = Count.secret(number, rows) if gaps else Count.known(whole.role, number.size, rows)
        relative = count.mean(remask(multiply(counts, away).sum(axis=1)), UNIT_BITS)
        lifted = shifted(relative, UNIT_BITS + 1, size, [top - UNIT_BITS for top in TOPS])
        mean = remask(low.shares() + lifted)
        spread = remask(multiply(high - low, power))
        apart = away - relative.reshape(-1, 1)
        return cls(
            rows,
            number,
            low,
            mean,
            least,
            most,
            size,
            spread,
            deviations,
            roots,
            apart,
        )

    def select(self, index: Sequence[int]) -> _Pooled:
        """The values for some of the terms."""
        places = np.array(index, np.int64)
        return _Pooled(
            self.rows,
            self.number.select(places),
            self.low.select(places),
            self.mean.select(places),
            self.least.select(places),
            self.most.select(places),
            self.size.select(places),
            self.spread.select(places),
            self.deviations.select(places),
            self.roots.select(places),
            self.apart.select(places),
        )


Found = tuple[Masked, Masked, Masked, Masked]
"""For some terms: the center, in cells; the inverse for a spread of about 1, at scale 2^28;
mantissa and exponent of the inverse."""


def _standard(pooled: _Pooled) -> Found:
    own, rows, size = pooled.deviations, pooled.rows, pooled.size
    between = exactly(multiply(pooled.roots, pooled.apart), UNIT_BITS)
    variance = remask((multiply(own, own) + multiply(between, between)).sum(axis=1))
    levels = range(_least_level(rows), UNIT_BITS)  # 4^level <= variance < 4^(level + 1)
    deep = magnitude(variance, [1 << 2 * level for level in levels[1:]])
    power = remask(deep.chosen([1 << 2 * (UNIT_BITS - 1 - level) for level in levels]))
    root = inverse_root(exactly(multiply(variance, power), 2 * UNIT_BITS - 2 - MANTISSA_BITS))
    relative = remask(multiply(root, remask(deep.chosen([1 << UNIT_BITS - k for k in levels]))))
    exponent = deep.chosen([CELL_BITS + UNIT_BITS - level for level in levels])
    return pooled.mean, relative, root, remask(exponent + size.chosen([-top for top in TOPS]))


def _least_level(rows: int) -> int:
    """The lowest level of the variance of this many rows with a spread of at least 1/2, at scale
    2^60: it is at least 4^level."""
    return (2 * UNIT_BITS - 3 - rows.bit_length()) // 2


def _relative_bits(rows: int) -> int:
    """1 / deviation, relative to the spread, is below 2^this at scale 2^28."""
    return MANTISSA_BITS + UNIT_BITS - _least_level(rows) + 1


def _minmax(pooled: _Pooled) -> Found:
    excess = MAX_SPREAD_BITS - 1 - MANTISSA_BITS
    inverse = reciprocal(exactly(pooled.spread.shares(), excess))
    exponent = pooled.size.chosen([CELL_BITS + 1 - top for top in TOPS])
    return pooled.low, inverse.scale(2), inverse, remask(exponent)
