"""Whether the mean that fills missing cells exists: only the run as a whole can tell.

An owner may never have measured a column: the mean of the others' training rows then fills its
cells. If no owner has a value there is no mean, and if few training rows have one (`least_filled`)
the mean, which recipients get, would be about these. Which cells are missing is secret, so nobody
alone can tell; one bit reveals it for each column with `missing = "mean"`, after rows are shared
and before training. A bit of 1 says what a single owner's loader would report, and ends the run in
the same way. If the run continues, nothing else is revealed.

With `[privacy]` there is no bit: a mean over few rows is hidden by its noise (`noisy`).
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
"""The step after which the bits are revealed: before the first one."""


def gap_outputs(job: Job) -> frozenset[Output]:
    """The outputs that `check_gaps` may disclose."""
    asks = job.pipeline.filled and job.has_own_statistics and not job.has_noisy_statistics
    return frozenset({Output(EMPTY, BEFORE)} if asks else ())


def check_gaps(job: Job, gate: RevealGate, some: MaskedBit | None) -> None:
    """End the run if a mean does not exist; at every computing node. 3 rounds.

    some: [filled terms], whether enough training rows have a value; None: no cell is filled. Every
    node learns which terms do not have enough. Raises DataError that names the columns.
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
        f"of them together in fewer than {least_filled(job)} (reveal.least_group), so there is no "
        'mean to fill missing cells (missing = "mean"); remove the column from the job, '
        "or give a constant (prepare.columns.NAME.fill). Training has not begun"
    )
