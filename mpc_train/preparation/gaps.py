"""Whether the mean that stands in for missing cells exists: said by the run, and by nobody alone.

An owner that never measured a column is nothing unusual: the mean of the others' training rows
stands in its cells. Where no owner has a value, or hardly any, there is no mean. Which cells are
there is secret, so that nobody could tell; one bit says it, right after rows are shared in and
before training: whether some column with `missing = "mean"` has no value. It is what an owner's
loader says of a table that nobody else adds to, and ends the run in the same way. Only then a
second output tells which columns these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_train.errors import DataError
from mpc_train.preparation.combined import LEAST_SHARE_BITS
from protocols.arithmetic import remask
from protocols.comparison import all_of
from protocols.masked import MaskedBit
from protocols.reveal import Output, RevealGate

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

EMPTY, WHICH = "empty_columns", "which_columns_are_empty"
BEFORE = 0
"""The step after which they leave: before the first one."""


def gap_outputs(job: Job) -> frozenset[Output]:
    """All that `check_gaps` may disclose."""
    names = (EMPTY, WHICH) if job.pipeline.filled else ()
    return frozenset(Output(name, BEFORE) for name in names)


def check_gaps(job: Job, gate: RevealGate, some: MaskedBit | None) -> None:
    """End the run where a mean does not exist; at every computing node, in about 4 rounds.

    some: [filled terms], whether the training rows hold values enough; None: no cell is filled.
    Every node learns whether all of them do, nothing else where that is so. Raises DataError that
    names the columns.
    """
    if some is None:
        return
    if not gate.decide(EMPTY, BEFORE, remask(all_of(some).negate().shares())):
        return
    empty = gate.decide_each(WHICH, BEFORE, remask(some.negate().shares()))
    filled = (job.pipeline.terms[index].column for index in job.pipeline.filled)
    names = dict.fromkeys(name for name, is_empty in zip(filled, empty, strict=True) if is_empty)
    raise DataError(
        f"column {', '.join(map(repr, names))}: no owner has a value in its training rows, or "
        f"fewer than one in {1 << LEAST_SHARE_BITS} of all of them have one, so that there is no "
        'mean to put in place of missing cells (missing = "mean"); take the column out of the job, '
        "or name a constant (prepare.columns.NAME.fill). Training has not begun"
    )
