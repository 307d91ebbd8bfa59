"""Secret centers and scales of columns, and their application to rows.

A scaled input is z = (number − center) · inverse, where `number` is a cell as it was shared: whole,
in a coarse and a fine word (`cells`). Its magnitude is secret, as is that of inverse, so no single
fixed point suits both; but the magnitude of z is known, and modulo 2^64 only z has to fit:

    z · 2^bits = coarse · (inverse · 2^(bits + word)) + fine · (inverse · 2^bits) − offset

is exact with both factors rounded to whole numbers modulo 2^64: if inverse is small, the first
factor holds its digits; if it is large, the second factor is exact and the first one 2^word times
as large. offset is the same sum for the center. The factors' rounding changes z by less than 2^-21.
One truncation follows, as after any product.

Precondition: |z| < 2^(62 − bits), which is at least 2^12 and above the root of the number of
training rows, hence holds for all of them. A held-out value farther from the center than 2^12
deviations comes out wrong. The trained model does not depend on it, but metrics do, and the
recipients are told that there may be one (`beyond`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.sealed import BEYOND, CENTER, EXPONENT, FILL, MANTISSA
from mpc_train.owners.cells import CELL_BITS
from protocols.functions.magnitude import Magnitude, exactly, magnitude, reciprocal, shifted
from protocols.ring.rational import HEADROOM_BITS, MANTISSA_BITS
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.masked import Additive, Masked, MaskedBit, concatenate, public

MIN_INPUT_BITS = 12
"""Inputs have at least this many bits before the point."""
MEAN_BITS = 30
"""Bits of a mean that one step computes."""


@dataclass(frozen=True, slots=True, repr=False)
class Factors:
    """For each scaled term, secret: the factors of the two words of a number, as in the module's
    docstring. word: bits of the fine word; bits: fractional bits of the sum."""

    coarse: Masked
    fine: Masked
    word: int
    bits: int

    def select(self, index: Sequence[int]) -> Factors:
        places = np.array(index, np.int64)
        return Factors(self.coarse.select(places), self.fine.select(places), self.word, self.bits)

    def times(self, coarse: Masked, fine: Masked) -> Additive:
        """Summands of number · inverse · 2^bits, from its two words; exact except for the
        factors."""
        return multiply(coarse, self.coarse) + multiply(fine, self.fine)

    def of(self, number: Masked) -> Masked:
        """The same for numbers in one word, |number| < 2^62; 3 rounds."""
        high = exactly(number.shares(), self.word)
        return remask(self.times(high, number - high.scale(1 << self.word)))


@dataclass(frozen=True, slots=True, repr=False)
class Fitted:
    """For the scaled terms, in order. center: in cells. mantissa, exponent: of the inverse, as in
    `sealed`; beyond: the result of the function of this name."""

    factors: Factors
    center: Masked
    mantissa: Masked
    exponent: Masked
    beyond: Masked


@dataclass(frozen=True, slots=True, repr=False)
class Parameters:
    """Secret. factors, offset: of the scaled terms; instead: what a missing cell of a filled one of
    these adds in place of its words; fill: of the filled terms that are not scaled, at scale 2^f;
    some: for all filled terms, whether enough training rows have a value. None if there are no such
    terms. sealed: by the names of `sealed.preparation_shapes`."""

    factors: Factors | None = None
    offset: Masked | None = None
    instead: Masked | None = None
    fill: Masked | None = None
    some: MaskedBit | None = None
    sealed: dict[str, Masked] = field(default_factory=dict)


def input_bits(rows: int) -> int:
    """Fractional bits of a scaled input before its truncation: training rows' inputs are at most
    the square root of the number of rows."""
    return HEADROOM_BITS - max(MIN_INPUT_BITS, (rows.bit_length() + 1) // 2)


def with_factors(
    mantissa: Masked, bits: int, size: Magnitude, exponents: Sequence[int], word: int, input: int
) -> Factors:
    """The factors for inverse = mantissa / 2^28 · 2^exponents[level] per unit of the numbers, where
    |mantissa| < 2^bits. 4 rounds."""
    up = input - MANTISSA_BITS
    coarse, fine = (
        remask(shifted(mantissa, bits, size, [e + up + more for e in exponents]))
        for more in (word, 0)
    )
    return Factors(coarse, fine, word, input)


def beyond(least: Masked, most: Masked, center: Masked, exponent: Masked) -> Masked:
    """Words 0 and 1: whether an input of some row may not fit the ring. 8 rounds.

    least, most, center: in cells, of all rows; exponent: as in `Fitted`. 1 for all inputs of 2^12
    and more, and for some from 2^10 on, because only powers of two are compared.
    """
    far = concatenate([one.reshape(1, -1) for one in (center - least, most - center)])
    tops = range(1, CELL_BITS + 2)  # far < 2^top
    size = magnitude(far, [1 << top for top in tops[:-1]])
    reach = remask(size.chosen(tops) + exponent.reshape(1, -1).shares())
    over = magnitude(reach, [CELL_BITS + MIN_INPUT_BITS + 1]).lowest.negate()
    either = magnitude(remask(over.shares().sum(axis=0)), [1]).lowest.negate()
    return remask(either.shares())


def nonzero(keep: Masked, values: Masked) -> Masked:
    """The values [n, k] where the word `keep` [k] is 1, and 0 where it is 0. 1 round."""
    return remask(multiply(values, keep.reshape(1, -1)))


@dataclass(frozen=True, slots=True, repr=False)
class Count:
    """How many cells of each term are present, at most `rows`: public if none can be missing.

    scale: the power of two that brings the count into [2^(L − 1), 2^L), L the bits of rows;
    inverse: of the count times scale / 2^(L − 1), at scale 2^28. For a count of 0, which ends the
    run (`gaps`), they have no meaning.
    """

    rows: int
    number: Masked
    scale: Masked
    inverse: Masked

    @classmethod
    def known(cls, role: Role, terms: int, rows: int) -> Count:
        """The count if all rows have the cell, for this many terms."""
        inverse = round(Fraction(1 << rows.bit_length() - 1 + MANTISSA_BITS, rows))
        number, scale, inverted = (
            public(role, np.full(terms, value, np.int64)) for value in (rows, 1, inverse)
        )
        return cls(rows, number, scale, inverted)

    @classmethod
    def secret(cls, number: Masked, rows: int) -> Count:
        """From secret counts, 0 … rows. 21 rounds."""
        length = rows.bit_length()
        size = magnitude(number, [1 << level for level in range(length)])
        scale = remask(size.chosen([1 << length - max(level, 1) for level in range(length + 1)]))
        one = _over(multiply(number, scale), length - 1 - MANTISSA_BITS)
        return cls(rows, number, scale, reciprocal(one))

    def select(self, index: Any) -> Count:
        """The counts of some terms, by any NumPy index."""
        number, scale, inverse = (x.select(index) for x in (self.number, self.scale, self.inverse))
        return Count(self.rows, number, scale, inverse)

    def mean(self, total: Masked, bits: int) -> Masked:
        """total / count for |total| <= count · 2^bits, count · 2^bits < 2^61: within 2^-27 of
        2^bits plus a unit. 4 rounds."""
        scaled = _over(multiply(total, self.scale), self.rows.bit_length() - 1 + bits - MEAN_BITS)
        return _over(multiply(scaled, self.inverse), MANTISSA_BITS + MEAN_BITS - bits)


def _over(z: Additive, bits: int) -> Masked:
    """z / 2^bits, also for negative bits."""
    return exactly(z, bits) if bits > 0 else remask(z.scale(1 << -bits))


def finished(
    pipeline: Pipeline,
    fitted: Fitted | None,
    centers: Masked | None,
    filled: Masked | None,
    between: Masked | None,
    number: Masked | None,
    least: int,
    fraction_bits: int,
) -> Parameters:
    """The parameters from centers and means, None if there are none. 5 rounds.

    centers: of the scaled terms, in the units of the rows' numbers; filled: means of the filled
    terms, in cells; between: means of the filled terms that are scaled, in the units of the rows'
    numbers; number: how many training rows have a value of each filled term; least: the fewest rows
    in a mean.
    """
    factors = offset = instead = fill = None
    sealed: dict[str, Masked] = {}
    both, declared = filled_places(pipeline)
    if fitted is not None and centers is not None:
        factors, offset = fitted.factors, fitted.factors.of(centers)
        sealed = {
            CENTER: fitted.center,
            MANTISSA: fitted.mantissa,
            EXPONENT: fitted.exponent,
            BEYOND: fitted.beyond,
        }
        if between is not None:
            scaled = [pipeline.scaled.index(pipeline.filled[place]) for place in both]
            instead = factors.select(scaled).of(between)
    if filled is not None:
        sealed[FILL] = filled
        if declared:
            fill = _declared(pipeline, filled, declared, fraction_bits)
    some = None if number is None else magnitude(number, [least]).lowest.negate()
    return Parameters(factors, offset, instead, fill, some, sealed)


def filled_places(pipeline: Pipeline) -> tuple[list[int], list[int]]:
    """Which of the filled terms are scaled and which are not: places among the filled terms."""
    both = [k for k, index in enumerate(pipeline.filled) if pipeline.terms[index].scaled]
    return both, [k for k in range(len(pipeline.filled)) if k not in both]


def _declared(pipeline: Pipeline, filled: Masked, places: list[int], f: int) -> Masked:
    """The means at `places`, converted from cells to scale 2^f."""
    reach = [pipeline.terms[pipeline.filled[place]].reach for place in places]
    parts, order = [], []
    for one in sorted(set(reach)):
        mine = [number for number, of in enumerate(reach) if of == one]
        cells = filled.select(np.array([places[number] for number in mine]))
        parts.append(exactly(cells.shares(), CELL_BITS - f - one))
        order += mine
    return concatenate(parts).select(np.argsort(np.array(order)))
