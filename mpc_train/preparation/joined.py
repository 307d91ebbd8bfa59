"""Statistics of joined rows, of which no owner knows which are its own: over shares alone.

They take the place of what owners bring where they hold rows (`local.partials`), as if one owner
had them all; nobody learns a mean, a variance or an extreme. Cost: as many products and truncations
as there are elements with secret statistics, for minmax besides about as many comparisons.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from mpc_train.jobs.bounds import bit_length
from mpc_train.preparation.pipeline import MOST_COARSE, Pipeline
from protocols.arithmetic import multiply, remask, truncate
from protocols.comparison import relu
from protocols.functions import divide
from protocols.masked import Masked, concatenate, public
from protocols.rational import mantissa
from protocols.scaling import VARIANCE_BITS

SUM_BITS = 60
"""Sums over all rows stay below 2^60."""
SQUARE_BITS = 30
"""Most fractional bits of a squared deviation."""


def joined_statistics(
    pipeline: Pipeline, values: Masked, present: Masked | None, fraction_bits: int
) -> tuple[Masked, Masked]:
    """What `combined.parameters` takes of one owner, from the training rows of all.

    values: [rows, terms] at scale 2^f; present: words 0 and 1, [rows, filled terms], None where
    there are none. Returns weight, mean, least and largest value at scale 2^f, [4, secret terms],
    and squared deviations at scale 2^36, [secret terms].
    """
    f, rows, secret = fraction_bits, values.shape[0], pipeline.secret
    role = values.role
    places = {index: number for number, index in enumerate(secret)}
    filled = [places[index] for index in pipeline.filled]
    scaled = [places[index] for index in pipeline.scaled]
    minmax = [places[i] for i in pipeline.scaled if pipeline.terms[i].shared == "minmax"]
    bounds = [Fraction(pipeline.terms[index].bound) for index in secret]
    reach = np.array([round(bound * (1 << f)) for bound in bounds], np.int64)
    u = values.select((slice(None), list(secret)))
    mean = _mean(u.sum(axis=0), rows, f, f, f + bit_length(max(bounds)))
    weight = public(role, np.full(len(secret), 1 << f, np.int64))
    low = high = u
    if filled and present is not None:
        there = _mean(present.sum(axis=0).scale(1 << f), rows, f, f, f)
        weight = _put(weight, there, filled)
        known = divide(mean.select(np.array(filled)), there, f)
        mean = _put(mean, known, filled)
        # What is missing is put where it is never the extreme.
        beyond = (-present).shift(1).scale(reach[filled])
        low = _put(u, u.select((slice(None), filled)) + beyond, filled, axis=1)
        high = _put(u, u.select((slice(None), filled)) - beyond, filled, axis=1)
    least, largest = public(role, reach), public(role, -reach)
    if minmax:
        columns = (slice(None), minmax)
        least = _put(least, -_largest(-low.select(columns)), minmax)
        largest = _put(largest, _largest(high.select(columns)), minmax)
    moments = public(role, np.zeros(len(secret), np.int64))
    if scaled:
        away = u - mean.reshape(1, len(secret))
        if filled and present is not None:
            # u is 0 where the cell is missing, and so is its distance from the mean to be.
            product = multiply(present, known.reshape(1, len(filled)))
            cells = u.select((slice(None), filled)).shares() - product
            away = _put(away, remask(cells), filled, axis=1)
        away = away.select((slice(None), scaled))
        # |u - mean| is at most 2 · MOST_COARSE.
        reach_bits = bit_length(Fraction(4 * MOST_COARSE**2))
        bits = min(SQUARE_BITS, 2 * f - 1, SUM_BITS - reach_bits - rows.bit_length())
        squares = truncate(multiply(away, away), 2 * f - bits).sum(axis=0)
        moments = _put(
            moments, _mean(squares, rows, bits, VARIANCE_BITS, bits + reach_bits), scaled
        )
    four = concatenate([one.reshape(1, len(secret)) for one in (weight, mean, least, largest)])
    return four, moments


def _mean(total: Masked, rows: int, bits: int, target: int, reach_bits: int) -> Masked:
    """total / rows at scale 2^target, of a sum at scale 2^bits of summands below 2^reach_bits as
    words: to about 2^(reach_bits - 60), at best 2^-30, of itself and two units."""
    cut = rows.bit_length() - 1
    short = truncate(total.shares(), cut) if cut else total
    factor = Fraction(1 << cut, rows) * Fraction(2) ** (target - bits)
    whole, shift = mantissa(factor, min(30, SUM_BITS - reach_bits))
    scaled = short.scale(whole)
    return truncate(scaled.shares(), shift) if shift else scaled


def _put(base: Masked, part: Masked, places: list[int], axis: int = 0) -> Masked:
    """`base` with the elements of `part` at `places` of `axis`."""
    joined = concatenate([base, part], axis)
    order = np.arange(base.shape[axis])
    order[places] = base.shape[axis] + np.arange(len(places))
    return joined.select(order if axis == 0 else (slice(None), order))


def _largest(x: Masked) -> Masked:
    """The largest along the first axis, which goes: by pairs, 5 rounds a level."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        left, right = x.select(slice(0, half)), x.select(slice(half, 2 * half))
        top = left + relu(right - left)[0]
        x = top if x.shape[0] == 2 * half else concatenate([top, x.select(slice(2 * half, None))])
    return x.reshape(*x.shape[1:])
