"""Which numbers a client encrypts, and how the server's secret statistics become part of weights.

Scaling and filling by statistics of the training rows are affine in what the client can compute
from its cells alone. With u the client's value of a term (0 if the cell is missing and gets the
secret mean) and g = 1 for such a missing cell,

    input = (u + fill · g - center) · inverse

So the client encrypts u, and g where a term is filled, and for an interaction the products of
those; the server folds fill, center and inverse into its weights and its intercept. It learns no
cell, and the client learns no statistic by itself, only what the folded weights give away.

A column is a product of at most two factors; a factor is (term, whether it is g). All of this
follows from the job, so both sides have the same columns in the same order. Each is divided by a
power of two, so that no number is beyond 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from mpc_train.errors import DataError, ModelError
from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.sealed import CENTER, FILL, INVERSE
from mpc_train.owners.local import Local
from protocols.arrays import Reals

TOLERANCE = 1e-8
"""By how much cells may be beyond their range because of rounding (`owners.local`)."""

Factor = tuple[int, bool]
Column = tuple[Factor, ...]
"""Sorted factors; none for the number 1."""


@dataclass(frozen=True)
class Columns:
    """The columns of a pipeline, in order, and by how many bits each is scaled down."""

    names: tuple[Column, ...]
    bits: tuple[int, ...]
    filled: tuple[int, ...]
    terms: tuple[str, ...]
    """Names of the terms, for errors."""

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Columns":
        unit = dict.fromkeys((CENTER, INVERSE), np.ones(len(pipeline.scaled)))
        unit[FILL] = np.ones(len(pipeline.filled))
        found = dict.fromkeys(
            column for each in _inputs(pipeline, unit) for column in each if column
        )
        names = tuple(found)
        bits = tuple(sum(_bits(pipeline, factor) for factor in column) for column in names)
        return cls(names, bits, pipeline.filled, tuple(term.name for term in pipeline.terms))

    def values(self, local: Local, column: int) -> Reals:
        """The numbers of one column, float64[rows], of magnitude at most 1. Raises DataError."""
        found = np.ones(len(local.values))
        for term, is_gap in self.names[column]:
            if is_gap:
                found = found * (1 - local.present[:, self.filled.index(term)])
            else:
                found = found * local.values[:, term]
        found = found * 2.0 ** -self.bits[column]
        if not (np.abs(found) <= 1 + TOLERANCE).all():
            named = " times ".join(self.terms[term] for term, _ in self.names[column])
            raise DataError(
                f"{named}: a value is beyond the range that the model's schema declares"
            )
        return np.clip(found, -1.0, 1.0)

    def fold(
        self,
        pipeline: Pipeline,
        parameters: Mapping[str, Reals],
        weights: Reals,
        intercepts: Reals,
    ) -> tuple[Reals, Reals]:
        """The weights of the columns and the intercepts that give the same outputs.

        weights: float64[outputs, inputs], intercepts: float64[outputs]; parameters: those of
        `Pipeline.shapes`. Raises ModelError for a statistic that nobody has taught this function:
        without it, predictions would be wrong.
        """
        unknown = sorted({*pipeline.shapes, *parameters} - {CENTER, INVERSE, FILL})
        if unknown:
            raise ModelError(f"{', '.join(unknown)}: cannot be folded into weights")
        place = {column: number for number, column in enumerate(self.names)}
        folded = np.zeros((len(weights), len(self.names)))
        constants = intercepts.astype(np.float64)
        for number, polynomial in enumerate(_inputs(pipeline, parameters)):
            for column, factor in polynomial.items():
                if column:
                    folded[:, place[column]] += factor * weights[:, number]
                else:
                    constants = constants + factor * weights[:, number]
        return folded * 2.0 ** np.array(self.bits, np.float64), constants


Polynomial = dict[Column, float]


def _inputs(pipeline: Pipeline, parameters: Mapping[str, Reals]) -> list[Polynomial]:
    """Each of the model's inputs as a polynomial in the client's numbers."""
    terms = []
    for index in range(len(pipeline.terms)):
        inverse, center = 1.0, None
        if index in pipeline.scaled:
            at = pipeline.scaled.index(index)
            inverse, center = float(parameters[INVERSE][at]), float(parameters[CENTER][at])
        made: Polynomial = {((index, False),): inverse}
        if index in pipeline.filled:
            fill = float(parameters[FILL][pipeline.filled.index(index)])
            made[((index, True),)] = fill * inverse
        if center is not None:
            made[()] = -center * inverse
        terms.append(made)
    products = [_product(terms[left], terms[right]) for left, right in pipeline.interactions]
    return [*terms, *products]


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for first, a in left.items():
        for second, b in right.items():
            column = tuple(sorted((*first, *second)))
            found[column] = found.get(column, 0.0) + a * b
    return found


def _bits(pipeline: Pipeline, factor: Factor) -> int:
    """The power of two that bounds a factor."""
    index, is_gap = factor
    if is_gap:
        return 0
    bound = pipeline.terms[index].bound
    return ceil(log2(bound)) if bound > 0 else 0
