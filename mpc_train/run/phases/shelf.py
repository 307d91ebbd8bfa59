"""A node's own checkpoints of one job in its vault, encrypted and bound to the job and the node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from mpc_train.checkpoints.joined import FRONT, Reader
from mpc_train.checkpoints.keeper import place_of
from mpc_train.errors import ArtifactError
from parties.errors import KeyServiceError, RetiredKeyError, VaultError, WrappedKeyError
from protocols.errors import EnvelopeError

if TYPE_CHECKING:
    from parties.vault.store import Store

CHECKPOINT = "checkpoint"
"""The kind of these objects in a vault."""
JOINED = "joined"
"""The kind of the rows to which they refer, if records are joined."""
RUN = "run"
"""The kind of the notes beside them."""
N = TypeVar("N", bound=msgspec.Struct)
_LENGTH = Struct(">B")
_DIGEST_BYTES = 32
_NONE = bytes(_DIGEST_BYTES)
_PIECE = 1 << 20


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


def _is_damage(error: VaultError) -> bool:
    """Whether an object is lost for good; otherwise the key service or the disk is away."""
    if isinstance(error, KeyServiceError):
        return isinstance(error, WrappedKeyError | RetiredKeyError)
    cause = error.__cause__
    return not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError)


class VaultShelf:
    """`keeper.Shelf` over a vault. opened: the vault, while a context lasts. digest: of the job, in
    hexadecimal; what another job of this name has left is not listed."""

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Store]], job: str, digest: str
    ) -> None:
        self._opened, self._job, self._digest = opened, job, digest

    def tokens(self) -> tuple[bytes, ...]:
        """Those that are whole, and whose joined rows are there and whole."""
        with self._opened() as store:
            found = {token: rows for token, rows, _ in self._listed(store)}
            rows = self._whole_rows(store) if set(found.values()) - {_NONE} else _NONE
            return tuple(sorted(token for token, of in found.items() if of in (_NONE, rows)))

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None:
        """Raises ArtifactError, also for a key service that is away; nothing is kept then."""
        try:
            with self._opened() as store, store.writing(CHECKPOINT, self._job, self._digest) as out:
                out.write(_LENGTH.pack(len(token)) + token + (rows or _NONE))
                out.write(data)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def read(self, token: bytes) -> bytes:
        with self._opened() as store:
            for version in store.versions(CHECKPOINT, self._job):
                with suppress(VaultError, EnvelopeError, ArtifactError):
                    name, _ = self._name(store, version)
                    if name == token:
                        with store.open(CHECKPOINT, self._job, version) as content:
                            front = _LENGTH.size + len(token) + _DIGEST_BYTES
                            return content.reader.read()[front:]
        raise ArtifactError(f"the vault has no checkpoint of {self._job} of this name")

    def discard(self, token: bytes) -> None:
        """Destroy one. Raises ArtifactError."""
        try:
            with self._opened() as store:
                for name, _, version in [*self._listed(store)]:
                    if name == token:
                        store.destroy(CHECKPOINT, self._job, version)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def prune(self, newest: int) -> None:
        """Destroy all but the newest, and what another job of this name has left; with 0 the joined
        rows too.

        Newest is what was written last: another session's name may be larger. Raises ArtifactError.
        """
        try:
            with self._opened() as store:
                kept = store.versions(CHECKPOINT, self._job)[-newest:] if newest else ()
                store.keep_only(CHECKPOINT, self._job, kept)
                if not newest:
                    store.keep_only(JOINED, self._job, ())
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def write_rows(self, pieces: Iterable[bytes]) -> None:
        """Raises ArtifactError, also for a full disk; nothing is kept then."""
        try:
            with self._opened() as store, store.writing(JOINED, self._job, self._digest) as out:
                for piece in pieces:
                    out.write(piece)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    @contextmanager
    def rows(self) -> Iterator[Reader]:
        try:
            with self._opened() as store, store.open(JOINED, self._job) as content:
                if content.info.job != self._digest:
                    raise ArtifactError(f"the joined rows are of another job {self._job}")
                yield content.reader
        except (VaultError, EnvelopeError) as error:
            raise ArtifactError(f"the joined rows cannot be read: {error}") from error

    def _whole_rows(self, store: Store) -> bytes | None:
        """The digest of the joined rows; None where there are none, or where they are damaged.
        Raises VaultError as `_listed`."""
        with self._unless_damaged(), store.open(JOINED, self._job) as content:
            if content.info.job == self._digest:
                digest = content.reader.read(FRONT.size)[:_DIGEST_BYTES]
                while content.reader.read(_PIECE):
                    pass
                return digest
        return None

    def _listed(self, store: Store) -> Iterator[tuple[bytes, bytes, int]]:
        """Names, the digests of the joined rows to which they refer, and versions. One that is
        damaged is not there, because an older one may do.

        Raises VaultError for one that is there and cannot be read now: a run that took it for lost
        would begin anew, and destroy it.
        """
        for version in store.versions(CHECKPOINT, self._job):
            with self._unless_damaged():
                yield (*self._name(store, version, whole=True), version)

    @contextmanager
    def _unless_damaged(self) -> Iterator[None]:
        """Passes over what is damaged; raises VaultError for what cannot be read now."""
        try:
            yield
        except VaultError as error:
            if not _is_damage(error):
                raise
        except (EnvelopeError, ArtifactError, StructError):
            pass
        except OSError as error:
            raise VaultError(f"a checkpoint of {self._job}: {error.strerror}") from error

    def _name(self, store: Store, version: int, *, whole: bool = False) -> tuple[bytes, bytes]:
        with store.open(CHECKPOINT, self._job, version) as content:
            if content.info.job != self._digest:
                raise ArtifactError("a checkpoint of another job of this name")
            (length,) = _LENGTH.unpack(content.reader.read(_LENGTH.size))
            token = content.reader.read(length)
            place_of(token)
            rows = content.reader.read(_DIGEST_BYTES)
            # Each chunk is verified: what is damaged must not be signed for.
            while whole and content.reader.read(_PIECE):
                pass
            return token, rows
