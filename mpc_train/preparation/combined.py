"""What all owners' rows say together, over shares: nobody learns a mean, a variance or an extreme.

1. Owners bring, of their own training rows, weight, mean, least and largest value and squared
   deviations of each term (`local.partials`).
2. Together: mean = Σ w·m / Σ w, variance = Σ (s + w·(m − mean)²), the extremes. A constant column
   keeps its scale.
3. Every row: (u + [missing]·fill − center)·inverse, then the interactions.

Steps 1 and 2 cost as much as a table has columns; step 3 one product and truncation for an element
that is scaled, in blocks of rows so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpc_train.preparation.pipeline import Pipeline
from protocols.arithmetic import multiply, remask, truncate
from protocols.comparison import below
from protocols.functions import divide
from protocols.masked import Additive, Masked, MaskedBit, concatenate, public
from protocols.scaling import VARIANCE_BITS, extremes, inverse_deviation

BLOCK = 1 << 20
"""Elements that are scaled at a time."""
LEAST_SHARE_BITS = 9
"""A mean is that of at least one training row in 2^9: a smaller divisor is none of `divide`."""
DEVIATION_BITS = 30
"""Fractional bits of a squared deviation of means before it is weighted."""


@dataclass(frozen=True, slots=True, repr=False)
class Parameters:
    """Secret, at scale 2^f. center, inverse: of the scaled terms; fill: of the filled ones; None
    where there are none."""

    center: Masked | None
    inverse: Masked | None
    fill: Masked | None
    some: MaskedBit | None = None
    """Of the filled terms, whether the training rows hold enough values for a mean."""

    def named(self) -> dict[str, Masked]:
        """By the names of `Pipeline.shapes`."""
        found = {
            "prepare.center": self.center,
            "prepare.inverse": self.inverse,
            "prepare.fill": self.fill,
        }
        return {name: value for name, value in found.items() if value is not None}


def parameters(
    pipeline: Pipeline, brought: Sequence[tuple[Masked, Masked]], fraction_bits: int
) -> Parameters:
    """The secret parameters from each owner's partials.

    brought: for each owner the first four rows of `local.partials` at scale 2^f and the last one,
    [secret terms], at scale 2^36. About 60 rounds.
    """
    f, secret = fraction_bits, pipeline.secret
    if not secret:
        return Parameters(None, None, None)
    four = concatenate([first.reshape(*first.shape, 1) for first, _ in brought], 2)
    moments = concatenate([last.reshape(*last.shape, 1) for _, last in brought], 1)
    weight, mean = four.select(0), _means(pipeline, four, f)
    place = {index: number for number, index in enumerate(secret)}
    fill = some = None
    if pipeline.filled:
        filled = np.array([place[index] for index in pipeline.filled])
        fill = mean.select(filled)
        some = below(weight.sum(axis=1).select(filled), [1 << (f - LEAST_SHARE_BITS)])
        some = some.reshape(len(filled)).negate()
    if not pipeline.scaled:
        return Parameters(None, None, fill, some)
    low, high = extremes(four.select(2), four.select(3))
    away = four.select(1) - mean.reshape(len(secret), 1)
    squares = truncate(multiply(away, away), 2 * f - DEVIATION_BITS)
    between = truncate(multiply(squares, weight).sum(axis=1), f + DEVIATION_BITS - VARIANCE_BITS)
    variance = moments.sum(axis=1) + between
    standard = [i for i in pipeline.scaled if pipeline.terms[i].shared == "standard"]
    minmax = [i for i in pipeline.scaled if pipeline.terms[i].shared == "minmax"]
    centers, inverses = [], []
    if standard:
        chosen = np.array([place[index] for index in standard])
        centers.append(mean.select(chosen))
        inverses.append(inverse_deviation(variance.select(chosen), f))
    if minmax:
        chosen = np.array([place[index] for index in minmax])
        spread = (high - low).select(chosen)
        centers.append(low.select(chosen))
        inverses.append(divide(public(spread.role, np.full(len(minmax), 1 << f)), spread, f))
    order = np.argsort(np.array([*standard, *minmax]))
    center, inverse = (concatenate(parts).select(order) for parts in (centers, inverses))
    return Parameters(center, inverse, fill, some)


def _means(pipeline: Pipeline, four: Masked, f: int) -> Masked:
    """The mean of each secret term's cells that are there, over all owners."""
    weight, mean = four.select(0), four.select(1)
    total = truncate(multiply(weight, mean).sum(axis=1), f)
    filled = np.array([pipeline.terms[index].filled for index in pipeline.secret])
    if not filled.any():
        return total
    # Where no cell can be missing the weights are 1 in all.
    some = np.nonzero(filled)[0]
    quotient = divide(total.select(some), weight.sum(axis=1).select(some), f)
    joined = concatenate([total, quotient])
    order = np.arange(len(filled))
    order[some] = len(filled) + np.arange(len(some))
    return joined.select(order)


def prepared(
    pipeline: Pipeline,
    values: Masked,
    present: Masked | None,
    found: Parameters,
    fraction_bits: int,
) -> Masked:
    """The model's inputs, [rows, width] at scale 2^f, from all owners' rows of terms.

    present: words 0 and 1, [rows, filled terms]. 5 rounds for a block of rows, each block for
    itself.
    """
    if pipeline.trivial:
        return values
    rows = values.shape[0]
    size = max(1, BLOCK // max(1, len(pipeline.secret)))
    done = []
    for start in range(0, rows, size):
        block = slice(start, min(start + size, rows))
        there = None if present is None else present.select(block)
        done.append(_prepared(pipeline, values.select(block), there, found, fraction_bits))
        values.role.finish()
    return done[0] if len(done) == 1 else concatenate(done)


def _prepared(
    pipeline: Pipeline, values: Masked, present: Masked | None, found: Parameters, f: int
) -> Masked:
    terms = len(pipeline.terms)
    parts, places = [values], np.arange(terms)

    def put(part: Masked, where: Sequence[int]) -> None:
        places[list(where)] = sum(one.shape[1] for one in parts) + np.arange(len(where))
        parts.append(part)

    if present is not None and found.fill is not None:
        filled = list(pipeline.filled)
        fill = found.fill.reshape(1, len(filled))
        # The mean less its product with 1 where the cell is there; u is 0 where it is not.
        product = multiply(present, fill)
        cells: Additive = values.select((slice(None), filled)).shares() + fill.shares() - product
        put(remask(cells), filled)
    if found.center is not None and found.inverse is not None:
        scaled = list(pipeline.scaled)
        whole = concatenate(parts, 1).select((slice(None), places[scaled]))
        centered = whole - found.center.reshape(1, len(scaled))
        put(truncate(multiply(centered, found.inverse.reshape(1, len(scaled))), f), scaled)
    joined = concatenate(parts, 1).select((slice(None), places))
    if not pipeline.interactions:
        return joined
    left, right = (list(side) for side in zip(*pipeline.interactions, strict=True))
    products = multiply(joined.select((slice(None), left)), joined.select((slice(None), right)))
    return concatenate([joined, truncate(products, f)], 1)
