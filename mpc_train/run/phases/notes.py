"""What a node notes in its vault of a run that goes on: the newest note of each job counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from parties.errors import VaultError
from protocols.errors import EnvelopeError

if TYPE_CHECKING:
    from parties.vault.store import Store

RUN = "run"
"""The kind of these objects in a vault."""
N = TypeVar("N", bound=msgspec.Struct)


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node must know of a run that goes on. table: a mark of the rows that it shares, empty
    without any. leaving: results may have left, so that the run may not begin anew. opened: the
    last round of a federated run that may have been opened, so that it is not computed again."""

    table: str
    leaving: bool = False
    opened: int = 0
    version: Literal[1] = 1


class NoteKept(Generic[N]):
    """The newest note of one job's run in a vault. digest: of the job, in hexadecimal; notes of
    another job of its name do not count. kind: of the note. advice: what to do about a damaged
    one."""

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Store]],
        job: str,
        digest: str,
        kind: type[N],
        advice: str,
    ) -> None:
        self._opened, self._job, self._digest = opened, job, digest
        self._kind, self._advice = kind, advice

    def read(self) -> N | None:
        """None: no run of the job has begun. Raises VaultError for a damaged note."""
        with self._opened() as store:
            versions = store.versions(RUN, self._job)
            if not versions:
                return None
            with store.open(RUN, self._job, versions[-1]) as content:
                if content.info.job != self._digest:
                    return None
                try:
                    return msgspec.json.decode(content.reader.read(), type=self._kind)
                except (msgspec.MsgspecError, ValueError, EnvelopeError) as error:
                    raise VaultError(
                        f"the note of the run {self._job} cannot be read ({error}); {self._advice}"
                    ) from error

    def write(self, note: N) -> None:
        """Durable when this returns; the older one is gone then."""
        with self._opened() as store:
            with store.writing(RUN, self._job, self._digest) as out:
                out.write(msgspec.json.encode(note))
            store.keep_only(RUN, self._job, [out.info.version])

    def clear(self) -> None:
        with self._opened() as store:
            store.keep_only(RUN, self._job, ())


class RunNote(NoteKept[Note]):
    """The note of one run at any of its nodes: that it takes part. Without one that is damaged
    nobody knows whether results have left."""

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Store]], job: str, digest: str
    ) -> None:
        super().__init__(opened, job, digest, Note, "begin anew with --fresh at all nodes")
