"""Whether the mean that stands in for missing cells exists: said by the run, and by nobody alone.

An owner that never measured a column is nothing unusual: the mean of the others' training rows
stands in its cells. Where no owner has a value there is no mean, and where few training rows have
one (`least_filled`) the mean, which recipients get, would be about these. Which cells are
there is secret, so that nobody could tell; a bit says it of each column with `missing = "mean"`,
right after rows are shared in and before training. A bit of 1 is what an owner's loader says of a
table that nobody else adds to, and ends the run in the same way; of a run that goes on nothing else
is told than that it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_train.errors import DataError
from mpc_train.owners.local import least_filled
from protocols.shares.arithmetic import remask
from protocols.shares.masked import MaskedBit
from protocols.shares.reveal import Output, RevealGate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

EMPTY = "empty_columns"
BEFORE = 0
"""The step after which they leave: before the first one."""


def gap_outputs(job: Job) -> frozenset[Output]:
    """All that `check_gaps` may disclose."""
    return frozenset({Output(EMPTY, BEFORE)} if job.pipeline.filled else ())


def check_gaps(job: Job, gate: RevealGate, some: MaskedBit | None) -> None:
    """End the run where a mean does not exist; at every computing node. 3 rounds.

    some: [filled terms], whether enough training rows have a value; None: no cell is filled.
    Every node learns of which they do not. Raises DataError that names the columns.
    """
    if some is None:
        return
    empty = gate.decide_each(EMPTY, BEFORE, remask(some.negate().shares()))
    filled = (job.pipeline.terms[index].column for index in job.pipeline.filled)
    names = dict.fromkeys(name for name, is_empty in zip(filled, empty, strict=True) if is_empty)
    if not names:
        return
    raise DataError(
        f"column {', '.join(map(repr, names))}: no owner has a value in its training rows, or all "
        f"together in fewer than {least_filled(job)} (reveal.least_group), so that there is no "
        'mean to put in place of missing cells (missing = "mean"); take the column out of the job, '
        "or name a constant (prepare.columns.NAME.fill). Training has not begun"
    )
