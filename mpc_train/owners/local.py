"""What an owner does alone, with its own cells and public declarations; in float64.

Clip, logarithm, public center and scale, powers, one bit per level, one bit for a missing cell, and
sums over its own training rows. All of this is secret-shared afterwards, and leaves the owner in no
other form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.jobs.schedule import split_sizes, training_of
from mpc_train.owners.cells import CELL_BITS, WORD_BITS
from mpc_train.tables.faults import CellError
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.tables.typed import TypedTable

Mask = NDArray[np.bool_]

STATISTICS = ("count", "there", "root", "low", "high", "above", "deviation", "least", "most")
"""Rows of `partials`: see there."""
LOW_WORD = (1 << WORD_BITS) - 1
ROOT_BITS = 30
"""Fractional bits of its roots."""


@dataclass(frozen=True, repr=False)
class Local:
    """An owner's rows as terms. values: float64[B, terms], 0 where a cell is missing and will get
    the secret mean; present: float64[B, filled terms] of 0 and 1."""

    values: Reals
    present: Reals

    def __repr__(self) -> str:
        return f"Local(rows={len(self.values)}, terms={self.values.shape[1]})"


def local_terms(pipeline: Pipeline, table: TypedTable) -> Local:
    """The owner's part of every term. If each column is one term, this uses the table's own memory,
    which must not be read afterwards."""
    place_of = {name: place for place, name in enumerate(table.names)}
    places = [place_of[term.column] for term in pipeline.terms]
    in_place = places == list(range(len(places)))
    values = table.values if in_place else np.empty((table.rows, len(places)))
    present = np.ones((table.rows, len(pipeline.filled)))
    for index, (term, place) in enumerate(zip(pipeline.terms, places, strict=True)):
        values[:, index] = term_values(term, table.values[:, place], table.missing[:, place])
    for number, index in enumerate(pipeline.filled):
        present[:, number] = ~table.missing[:, places[index]]
    return Local(values[:, : len(places)], present)


def term_values(term: Term, values: Reals, missing: Mask) -> Reals:
    """One term of one column, float64[B]."""
    if term.part == "missing":
        return missing.astype(np.float64)
    if term.part == "level":
        return ((values == term.level) & ~missing).astype(np.float64)
    if term.part == "index":
        return np.where(missing, 0.0 if term.fill is None else term.fill, values)
    found = np.where(missing, _a_value(term), values)
    if term.clip is not None:
        found = np.clip(found, *term.clip)
    if term.log is not None:
        found = np.log(found) if term.log == "log" else np.log1p(found)
    coarse: Reals = ((found - term.center) / term.scale) ** term.power
    return np.where(missing, 0.0 if term.fill is None else term.fill, coarse)


def _a_value(term: Term) -> float:
    """A number that has a logarithm."""
    return 1.0 if term.clip is None else term.clip[0]


def least_filled(job: Job) -> int:
    """The fewest training rows with a value whose mean may fill missing cells: recipients get that
    mean, so it must be over a group. If there are fewer rows in all, the model is not over more
    either."""
    return min(job.reveal.least_group, split_sizes(job)[0])


def check_filled(job: Job, owner: str, present: Reals) -> None:
    """Raise DataError if few of an owner's training rows have a value of a column whose mean
    recipients get: somebody who knows the other owners' values could subtract them.

    present: float64[B, filled terms] of 0 and 1, of the owner's rows in the job's order.
    """
    if not job.pipeline.filled or job.data.partition == "columns" or not job.has_own_statistics:
        return
    if job.has_noisy_statistics:
        return  # which hides whose values a mean is of
    mine = training_of(job, owner) - job.first_row(owner)
    least = min(least_filled(job), len(mine))
    counts = present[mine].sum(axis=0).astype(int)
    few = {
        job.pipeline.terms[index].column: count
        for index, count in zip(job.pipeline.filled, counts.tolist(), strict=True)
        if 0 < count < least
    }
    if few:
        raise DataError(
            f"column {', '.join(map(repr, few))}: only {', '.join(map(str, few.values()))} of this "
            "table's training rows have a value, and recipients learn the mean that fills "
            f'missing cells (missing = "mean"); it must be over at least {least} rows, or over '
            "none (reveal.least_group). Remove the column from the job, give a constant "
            "(prepare.columns.NAME.fill), or leave the column empty at this owner"
        )


def check_cells(job: Job, name: str, values: Reals, missing: Mask) -> None:
    """Raise CellError at cells of a column that the job's steps cannot take.

    values, missing: float64[n] and bool[n], of a feature, the label or the weight.
    """
    if name == job.label.name:
        if missing.any():
            raise CellError(missing, "the label is missing; remove such rows")
        # With a logarithmic link the declared range bounds the label, and the ring is sized for
        # that.
        if not job.classes and job.model.kind not in LOGARITHMIC:
            scaled = (values - float(job.label.center)) / float(job.label.scale)
            _refuse_beyond(scaled, float(job.data.limit), f"±{job.data.limit} (data.limit)")
        return
    if name == job.weight and missing.any():
        raise CellError(missing, "the weight is missing; remove such rows")
    terms = job.pipeline.by_column.get(name, ())
    refused = missing & any(not term.takes_missing for term in terms)
    if refused.any():
        raise CellError(
            refused,
            'the cell is missing, and the job does not say how to fill it; write missing = "mean" '
            f"or columns.{name}.fill under [prepare]",
        )
    for term in terms:
        if term.part == "number":
            what = "the declared range" if term.scaled else f"±{job.data.limit} (data.limit)"
            most = term.bound if term.scaled else float(job.data.limit)
            found = term_values(term, values, missing)
            _refuse_beyond(found, most, what)
            if name in job.looked_up:
                _refuse_fractions(found)


def _refuse_fractions(values: Reals) -> None:
    """Refuse numbers that are not whole: over shares the nearest row would be chosen, in PyTorch
    the one below."""
    between = values != np.rint(values)
    if between.any():
        raise CellError(
            between,
            "chooses a row of an Embedding's table but is not a whole number after centring and "
            "scaling; correct the cell, or the job's center and scale",
        )


def _refuse_beyond(values: Reals, most: float, what: str) -> None:
    outside = ~(np.abs(values) <= most * (1 + 1e-9))
    if outside.any():
        raise CellError(
            outside,
            f"after centring and scaling beyond {what}; correct the cell, or the job's center and "
            "scale",
        )


SUMS = ("count", "first", "high", "low")
"""Rows of `sums`: see there."""


def sums(pipeline: Pipeline, local: Local, rows: NDArray[np.int64], bits: int) -> Reals:
    """Sums over an owner's training `rows` for each secret term: whole numbers, float64[4, secret
    terms].

    Of the cells that are present: their number; the sum of h, the cell as a whole number of 2^-bits
    of its term's reach, at most 2^bits in magnitude, whatever the cell is; the sum of h² as high ·
    2^28 + low.
    """
    found = np.zeros((len(SUMS), len(pipeline.secret)))
    place = {index: number for number, index in enumerate(pipeline.filled)}
    for number, index in enumerate(pipeline.secret):
        there = np.ones(len(rows), bool)
        if index in place:
            there = local.present[rows, place[index]] == 1
        cells = local.values[rows, index][there] * 2.0 ** -pipeline.terms[index].reach
        whole = np.rint(np.clip(cells, -1, 1) * 2.0**bits).astype(np.int64)
        second = int(whole @ whole)
        found[:, number] = len(whole), whole.sum(), second >> WORD_BITS, second & LOW_WORD
    return found


def partials(pipeline: Pipeline, local: Local, rows: NDArray[np.int64], total: int) -> Reals:
    """The statistics of an owner's training `rows` for each secret term: whole numbers, float64[9,
    secret terms].

    Of the cells that are present: their number and whether there is one; √(number / total) at scale
    2^30, for `total` training rows of all owners; in cell units the smallest, the largest, by how
    much the mean is above the smallest, and √(sum of squared deviations from the mean / total).
    Without cells: 0, 0, 0, one end of the term's range, the other end, 0, 0. Last the smallest and
    the largest over all the owner's rows, including held-out ones, in the same way.
    """
    found = np.zeros((len(STATISTICS), len(pipeline.secret)))
    place = {index: number for number, index in enumerate(pipeline.filled)}
    for number, index in enumerate(pipeline.secret):
        every, there = local.values[:, index], np.ones(len(local.values), bool)
        if index in place:
            there = local.present[:, place[index]] == 1
        unit = 2.0 ** (CELL_BITS - pipeline.terms[index].reach)
        ends = 2.0**CELL_BITS, -(2.0**CELL_BITS)
        whole = (every[there].min() * unit, every[there].max() * unit) if there.any() else ends
        cells = every[rows][there[rows]]
        if not len(cells):
            found[:, number] = 0, 0, 0, *ends, 0, 0, *whole
            continue
        # Relative to the smallest: the mean itself would lose its digits in a narrow column.
        low = cells.min()
        above = (cells - low).mean()
        apart = cells - low - above
        found[:, number] = (
            len(cells),
            1,
            sqrt(len(cells) / total) * 2.0**ROOT_BITS,
            low * unit,
            cells.max() * unit,
            above * unit,
            sqrt(apart @ apart / total) * unit,
            *whole,
        )
    return np.rint(found)
