"""Parameters from joined rows, when owners do not know which of their rows were joined: only over
shares.

Owners count cells in their own units (`cells.Affine`), so that the declared range no longer
matters; nobody learns a mean, a variance, an extreme, an origin or a unit. A number is h·2^w + l in
two words; sums are over the training rows that have the cell:

1. Σ h, Σ l, Σ h², Σ h·l, Σ l²: products and sums without communication, exact.
2. mean = Σ (h·2^w + l) / count, in two steps: the second divides the remainder of the first.
3. A, B, C: the last three sums, around the mean, exact modulo 2^64, and from them rows · variance =
   2^2w·A + 2^(w+1)·B + C. If that is above 2^60 its lowest 2w bits are dropped: one secret bit.
4. The inverse root of that, by a power of four that stays secret (`magnitude`).
5. Extremes, only for minmax: about as many comparisons as elements, 5 rounds per level.

A column counts as constant if the deviation is below 2^9, or the spread below 2^10, of the owner's
units: 2^-40 of its own cells' spread (fewer bits beyond two million rows) or, if that is more, cell
units. Precision: a mean is within two such units, an inverse has a relative error within 2^-17.
Except for 5 the cost grows with the number of columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.owners.cells import CELL_BITS, MIN_SPREAD_BITS, SUM_BITS
from mpc_train.preparation.fitted import (
    Count,
    Factors,
    Fitted,
    Parameters,
    beyond,
    filled_places,
    finished,
    input_bits,
    nonzero,
    with_factors,
)
from mpc_train.preparation.rows import Rows
from protocols.comparison.compare import relu
from protocols.functions.magnitude import exactly, inverse_root, magnitude, reciprocal
from protocols.ring.rational import MANTISSA_BITS, root
from protocols.shares.arithmetic import multiply, remask, select
from protocols.shares.masked import Masked, concatenate, public

MIN_DEVIATION_BITS = 9
"""Bits of a deviation of joined rows, in the owner's units."""
TOP_LEVEL = 30
"""rows · variance is below 4^31, by the choice of w."""


def joined_parameters(
    pipeline: Pipeline,
    training: Rows,
    affine: Masked | None,
    word: int,
    least: int,
    fraction_bits: int,
) -> Parameters:
    """The parameters from the training rows of all owners, as in `combined.parameters`.

    word: bits of the fine words; least: the fewest rows in a mean; affine: `Affine.words` of the
    scaled terms, None if there are none. Rounds: at most 75, plus those of the extremes.
    """
    values, fine, present = training.values, training.fine, training.present
    f, rows, role = fraction_bits, values.shape[0], values.role
    both, declared = filled_places(pipeline)
    number = None if present is None else present.sum(axis=0)
    fitted = centers = between = None
    means: dict[int, Masked] = {}
    if fine is not None and affine is not None:
        scaled = list(pipeline.scaled)
        places = [scaled.index(pipeline.filled[place]) for place in both]
        count, there = Count.known(role, len(scaled), rows), None
        if number is not None and present is not None and both:
            some = number.select(np.array(both))
            count = Count.secret(_put(count.number, some, places), rows)
            ones = public(role, np.ones((rows, len(scaled)), np.int64))
            there = _put(ones, present.select((slice(None), both)), places, axis=1)
        numbers = _Numbers.of(values.select((slice(None), scaled)), fine, there, word, count)
        fitted, centers, cells = _fitted(pipeline, numbers, affine)
        between = numbers.mean.select(np.array(places)) if both else None
        means = {
            place: cells.select(slice(k, k + 1)) for place, k in zip(both, places, strict=True)
        }
    if number is not None and declared:
        mine = [pipeline.filled[place] for place in declared]
        count = Count.secret(number.select(np.array(declared)), rows)
        total = values.select((slice(None), mine)).sum(axis=0)
        for k, place in enumerate(declared):
            reach = pipeline.terms[pipeline.filled[place]].reach
            one = slice(k, k + 1)
            # With this many rows the sum times a power of two would not fit.
            over = max(0, rows.bit_length() + f + reach - SUM_BITS)
            cells = exactly(total.select(one).shares(), over)
            mean = _mean(count.select(one), cells, f + reach - over)
            means[place] = mean.scale(1 << CELL_BITS - f - reach + over)
    filled = concatenate([means[place] for place in sorted(means)]) if means else None
    return finished(pipeline, fitted, centers, filled, between, number, least, f)


def _mean(count: Count, total: Masked, bits: int) -> Masked:
    """2: total / count for |total| <= count · 2^bits, within a unit or two."""
    first = count.mean(total, bits)
    left = remask(total.shares() - multiply(first, count.number))
    return first + count.mean(left, max(bits - MANTISSA_BITS + 3, 1)).narrowed(64)


@dataclass(frozen=True, slots=True, repr=False)
class _Numbers:
    """The numbers of the scaled terms, in two words, [rows, terms], and the results of steps 1 to
    3.

    there: words 0 and 1, [rows, terms]; None: all are present. around: A, B and C, [3, terms].
    """

    coarse: Masked
    fine: Masked
    there: Masked | None
    word: int
    count: Count
    mean: Masked
    around: Masked

    @classmethod
    def of(
        cls, coarse: Masked, fine: Masked, there: Masked | None, word: int, count: Count
    ) -> _Numbers:
        # 1
        high, low = coarse.sum(axis=0), fine.sum(axis=0)
        pairs = ((coarse, coarse), (coarse, fine), (fine, fine))
        squares = [multiply(x, y).sum(axis=0) for x, y in pairs]
        # 2
        mean = _mean(count, high.scale(1 << word) + low, 2 * word)
        # 3
        top = exactly(mean.shares(), word)
        rest = mean - top.scale(1 << word)
        both = concatenate([top.reshape(1, -1), rest.reshape(1, -1)])
        product = remask(multiply(both, count.number.reshape(1, -1)))
        tops, rests = product.select(0), product.select(1)
        around = (
            squares[0] - multiply(top, high.scale(2) - tops),
            squares[1] - multiply(top, low - rests) - multiply(rest, high),
            squares[2] - multiply(rest, low.scale(2) - rests),
        )
        stacked = concatenate([remask(one).reshape(1, *one.shape) for one in around])
        return cls(coarse, fine, there, word, count, mean, stacked)

    def select(self, index: Sequence[int]) -> _Numbers:
        columns, terms = (slice(None), list(index)), np.array(index, np.int64)
        there = None if self.there is None else self.there.select(columns)
        return _Numbers(
            self.coarse.select(columns),
            self.fine.select(columns),
            there,
            self.word,
            self.count.select(terms),
            self.mean.select(terms),
            self.around.select(columns),
        )


def _fitted(pipeline: Pipeline, numbers: _Numbers, affine: Masked) -> tuple[Fitted, Masked, Masked]:
    """Also the centers in the owner's units, and the means in cells."""
    rows, word = numbers.coarse.shape[0], numbers.word
    kinds = [pipeline.terms[index].shared for index in pipeline.scaled]
    origin, cut, unit, low, high = (affine.select(k) for k in range(5))
    found, order = [], []
    for kind, of in (("standard", _standard), ("minmax", _minmax)):
        mine = [k for k, one in enumerate(kinds) if one == kind]
        if mine:
            found.append(of(numbers.select(mine), rows, cut.select(np.array(mine))))
            order += mine
    back = np.argsort(np.array(order))
    center, coarse, fine, mantissa, exponent = (
        concatenate(parts).select(back) for parts in zip(*found, strict=True)
    )
    both = concatenate([center.reshape(1, -1), numbers.mean.reshape(1, -1)])
    cells = remask(multiply(both, unit.reshape(1, -1)) + origin.reshape(1, -1).shares())
    factors = Factors(coarse, fine, word, input_bits(rows))
    far = beyond(low, high, cells.select(0), exponent)
    return Fitted(factors, cells.select(0), mantissa, exponent, far), center, cells.select(1)


Found = tuple[Masked, Masked, Masked, Masked, Masked]
"""Centers and both factors for the owner's units, and mantissa and exponent for cells."""


def _standard(numbers: _Numbers, rows: int, cut: Masked) -> Found:
    word, length = numbers.word, rows.bit_length()
    a, b, c = (numbers.around.select(k) for k in range(3))
    high = a + exactly(b.shares(), word - 1).narrowed(64) + exactly(c.shares(), 2 * word)
    low = a.scale(1 << 2 * word) + b.scale(1 << word + 1) + c
    large = magnitude(high, [1 << 2 * TOP_LEVEL - 2 * word]).lowest.negate()
    whole = remask(low.shares() + select(large, high - low))
    # 4^level <= whole < 4^(level + 1)
    constant = (length + 2 * MIN_DEVIATION_BITS + 1) // 2
    levels = range(min(constant, TOP_LEVEL - word) - 1, TOP_LEVEL + 1)
    size = magnitude(whole, [1 << 2 * level for level in levels[1:]])
    power = remask(size.chosen([1 << 2 * (TOP_LEVEL - level) for level in levels]))
    unit = exactly(multiply(whole, power), 2 * TOP_LEVEL - MANTISSA_BITS)
    # The square root of the number of rows is at most 2^up.
    up = (length + 1) // 2
    share = round(root(Fraction(rows)) * Fraction(2) ** (MANTISSA_BITS - up))
    mantissa = exactly(inverse_root(unit).scale(share).shares(), MANTISSA_BITS)
    exponent = remask(
        size.chosen([CELL_BITS + up - level for level in levels])
        - large.shares().scale(word)
        - cut.shares()
    )
    # Small, and not only because its lowest bits were dropped.
    low_bits, under = (
        remask(bit.shares())
        for bit in (large.negate(), size.bits.select(levels.index(constant) - 1))
    )
    keep = remask(-multiply(low_bits, under)).shift(1)
    stacked = concatenate([mantissa.reshape(1, -1), exponent.reshape(1, -1)])
    stacked = nonzero(keep, stacked)
    mantissa = stacked.select(0)
    first, second = (
        with_factors(
            mantissa,
            MANTISSA_BITS + 1,
            size,
            [up - level - less for level in levels],
            word,
            input_bits(rows),
        )
        for less in (0, word)
    )
    coarse, fine = (
        remask(one.shares() + select(large, other - one))
        for one, other in ((first.coarse, second.coarse), (first.fine, second.fine))
    )
    return numbers.mean, coarse, fine, mantissa, stacked.select(1)


def _minmax(numbers: _Numbers, rows: int, cut: Masked) -> Found:
    word, there = numbers.word, numbers.there
    whole = numbers.coarse.scale(1 << word) + numbers.fine
    low = high = whole
    if there is not None:
        # Missing cells get a value that is never the extreme.
        beyond = (-there).shift(1).scale(1 << 2 * word + 1)
        low, high = whole + beyond, whole - beyond
    least = -_largest(-low)
    spread = _largest(high) - least
    tops = range(MIN_SPREAD_BITS, 2 * word + 3)
    size = magnitude(spread, [1 << top for top in tops[:-1]])
    power = remask(size.chosen([1 << tops[-1] - top for top in tops]))
    inverse = reciprocal(exactly(multiply(spread, power), tops[-1] - 1 - MANTISSA_BITS))
    exponent = remask(size.chosen([CELL_BITS + 1 - top for top in tops]) - cut.shares())
    stacked = concatenate([inverse.reshape(1, -1), exponent.reshape(1, -1)])
    stacked = nonzero(remask(size.lowest.negate().shares()), stacked)
    mantissa = stacked.select(0)
    exponents = [1 - top for top in tops]
    factors = with_factors(mantissa, MANTISSA_BITS + 1, size, exponents, word, input_bits(rows))
    return least, factors.coarse, factors.fine, mantissa, stacked.select(1)


def _put(base: Masked, part: Masked, places: list[int], axis: int = 0) -> Masked:
    """`base` with the elements of `part` at `places` of `axis`."""
    joined = concatenate([base, part], axis)
    order = np.arange(base.shape[axis])
    order[places] = base.shape[axis] + np.arange(len(places))
    return joined.select(order if axis == 0 else (slice(None), order))


def _largest(x: Masked) -> Masked:
    """The largest along the first axis, which is removed: by pairs, 5 rounds per level."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        left, right = x.select(slice(0, half)), x.select(slice(half, 2 * half))
        top = left + relu(right - left)[0]
        x = top if x.shape[0] == 2 * half else concatenate([top, x.select(slice(2 * half, None))])
    return x.reshape(*x.shape[1:])
