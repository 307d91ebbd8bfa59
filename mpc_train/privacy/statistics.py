"""The noise of secret statistics of `[prepare]`: what a row changes in their sums, and σ.

Of a term whose declared range is −1 … 1, a training row adds its cell v, its square v² if the term
is scaled, and, if missing cells are filled, 1 if the cell is there. All sums of all terms together
are one vector, and one Gaussian mechanism with the same σ in each. By how much a row changes it,
squared, for each term:

    zeroed: against nothing         v² + v⁴ + 1 <= 3      filled and scaled
                                    v² + v⁴     <= 2      scaled
                                    v²      + 1 <= 2      filled
    replaced: v against w           (v − w)² (1 + (v + w)²) <= 4      at v = −w = 1
              v against none        at most as zeroed

A cell is rounded to a multiple of 2^-bits before it is squared, so that these bounds are exact. The
sums are exact in the ring, and noise has their grid (`mpc_train.privacy.accounting`).

The owner of a row bounds its cells. One that runs other software makes its own rows count more, and
so says more about them; nobody else's bound depends on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import split_sizes
from mpc_train.privacy.accounting import privacy_of, statistics_multiplier

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MOST_BITS = 16
"""Cells are rounded to at least 2^-16 of half their range, and to no less."""
SUM_BITS = 58
"""Sums of squares are below 2^58 without their noise."""


@dataclass(frozen=True, slots=True)
class StatisticsPlan:
    """Public numbers, the same at every node. bits: of a cell; square: σ² in the units of v; rows:
    that train; least: fewer cells count as so many; least_deviation: as the job declares it."""

    bits: int
    square: Fraction
    rows: int
    least: int
    least_deviation: Fraction

    def variance(self, bits: int) -> Fraction:
        """σ² in words at scale 2^bits."""
        return self.square * (1 << 2 * bits)


def statistics_bits(rows: int) -> int:
    """The fractional bits of cells, so that sums of squares over these rows fit."""
    return min(MOST_BITS, (SUM_BITS - rows.bit_length()) // 2)


def square_of_row(job: Job) -> int:
    """The square of what a row changes in all sums together, at most."""
    found = 0
    for index in job.pipeline.secret:
        term = job.pipeline.terms[index]
        alone = 1 + term.scaled + term.filled
        found += 4 if privacy_of(job).neighbours == "replaced" else alone
    return found


def statistics_square(job: Job) -> Fraction:
    """σ², in the units of v: the noise that the strongest coalition does not know. A unit changes
    the sums by what all its rows do together."""
    multiplier = statistics_multiplier(job) * privacy_of(job).rows_of_unit
    return multiplier**2 * square_of_row(job)


def statistics_plan(job: Job) -> StatisticsPlan:
    """The plan of a job that `has_noisy_statistics`. ConfigError without the library."""
    rows = split_sizes(job)[0]
    return StatisticsPlan(
        bits=statistics_bits(rows),
        square=statistics_square(job),
        rows=rows,
        least=min(job.reveal.least_group, rows),
        least_deviation=Fraction(privacy_of(job).of_statistics.least_deviation),
    )
