"""What an owner that runs no node keeps of a run: so that it counts once against its budgets.

A run counts when the first update is about to leave. It is the same run afterwards, in other
sessions and other processes, as long as the evaluators go on with it. They may also begin anew
(`--fresh`): then sums of other rounds are revealed, and the run counts again. A run is known by the
session that opened its first round. Before that an owner that comes back in another session cannot
know, and counts it again: rather twice than not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import msgspec

from mpc_train.errors import DataError
from mpc_train.run.phases.notes import RUN, NoteKept

if TYPE_CHECKING:
    from parties.vault.store import Store


class Taken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """table: a mark of the rows from which updates come. run: the session by which the run is
    known, in hexadecimal; of the update that left first while no round was opened."""

    table: str
    run: str
    version: Literal[1] = 1


class Begun:
    """The note of one job's run in an owner's vault. digest: of the job, in hexadecimal. table: a
    mark of this owner's rows. spend: records that a run begins, and raises RefusedError if a budget
    forbids it."""

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Store]],
        job: str,
        digest: str,
        table: str,
        spend: Callable[[], None],
    ) -> None:
        advice = (
            f"shred it (vault shred {job} --kind {RUN}) if your organisation accepts that the run "
            "counts once more"
        )
        self._note = NoteKept(opened, job, digest, Taken, advice)
        self._job, self._table, self._spend = job, table, spend

    @property
    def is_there(self) -> bool:
        """Whether a run has begun here. Raises DataError if it did so with another table."""
        found = self._note.read()
        if found is not None and found.table != self._table:
            raise DataError(
                f"a run of {self._job} has begun here with another table; nothing was shared. "
                "Restore the table, or wait until that run is over"
            )
        return found is not None

    def enter(self, sid: bytes, run: bytes) -> None:
        """An update is about to leave, in this session. run: by which the evaluators know the run,
        empty before its first round is opened. Raises RefusedError, before anything is sent."""
        found, known = self._note.read(), (run or sid).hex()
        if found is not None and found.run == known:
            return
        self._spend()
        self._note.write(Taken(self._table, known))

    def clear(self) -> None:
        """The run is over: another one counts anew."""
        self._note.clear()
