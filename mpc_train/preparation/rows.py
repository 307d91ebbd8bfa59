"""Owners' rows as shared, and the model's inputs computed from them over shares.

A scaled element costs three local products and one truncation; an unscaled one with filled cells
costs one opening. Blocks of rows follow each other, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.preparation.fitted import Parameters, filled_places
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import Additive, Masked, concatenate

BLOCK = 1 << 20
"""Elements that are scaled at a time."""


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """values: [rows, terms] at scale 2^f, for scaled terms the coarse words (`cells`); fine: their
    fine words, [rows, scaled terms]; present: words 0 and 1, [rows, filled terms]. None if there
    are no such terms."""

    values: Masked
    fine: Masked | None = None
    present: Masked | None = None

    def select(self, rows: Any) -> Rows:
        """Some of them, by any NumPy index."""
        fine, present = (
            None if part is None else part.select(rows) for part in (self.fine, self.present)
        )
        return Rows(self.values.select(rows), fine, present)


def prepared(
    pipeline: Pipeline,
    rows: Rows,
    found: Parameters,
    fraction_bits: int,
) -> Masked:
    """The model's inputs, [rows, width] at scale 2^f, from all owners' rows.

    2 rounds for each block of rows, 2 more with interactions.
    """
    if pipeline.trivial:
        return rows.values
    count = rows.values.shape[0]
    size = max(1, BLOCK // max(1, len(pipeline.secret)))
    done = []
    for start in range(0, count, size):
        block = rows.select(slice(start, min(start + size, count)))
        done.append(_prepared(pipeline, block, found, fraction_bits))
        rows.values.role.finish()
    return done[0] if len(done) == 1 else concatenate(done)


def _prepared(
    pipeline: Pipeline,
    rows: Rows,
    found: Parameters,
    f: int,
) -> Masked:
    values, fine, present = rows.values, rows.fine, rows.present
    terms = len(pipeline.terms)
    parts, places = [values], np.arange(terms)

    def put(part: Masked, where: Sequence[int]) -> None:
        places[list(where)] = sum(one.shape[1] for one in parts) + np.arange(len(where))
        parts.append(part)

    both, declared = filled_places(pipeline)
    if present is not None and found.fill is not None:
        filled = [pipeline.filled[place] for place in declared]
        fill = found.fill.reshape(1, len(filled))
        # The mean minus its product with the presence bit; u is 0 where the cell is missing.
        product = multiply(present.select((slice(None), declared)), fill)
        cells: Additive = values.select((slice(None), filled)).shares() + fill.shares() - product
        put(remask(cells), filled)
    if found.factors is not None and found.offset is not None and fine is not None:
        scaled = list(pipeline.scaled)
        coarse = values.select((slice(None), scaled))
        total = found.factors.times(coarse, fine) - found.offset.shares()
        if present is not None and found.instead is not None:
            missing = (-present.select((slice(None), both))).shift(1)
            added = multiply(missing, found.instead.reshape(1, len(both)))
            total += _spread(added, [scaled.index(pipeline.filled[k]) for k in both], len(scaled))
        put(truncate(total, found.factors.bits - f), scaled)
    joined = concatenate(parts, 1).select((slice(None), places))
    if not pipeline.interactions:
        return joined
    left, right = (list(side) for side in zip(*pipeline.interactions, strict=True))
    products = multiply(joined.select((slice(None), left)), joined.select((slice(None), right)))
    return concatenate([joined, truncate(products, f)], 1)


def _spread(part: Additive, places: Sequence[int], columns: int) -> Additive:
    """The columns of `part` at `places` among `width` columns, zeros elsewhere."""
    shape = (part.shape[0], columns)

    def placed(words: np.ndarray) -> np.ndarray:
        out = np.zeros(shape, np.int64)
        out[:, list(places)] = words
        return out

    return part.linear(shape, placed)
