"""A node's own checkpoints of one job in its vault, encrypted and bound to the job and the node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Literal

import msgspec

from mpc_train.checkpoints.keeper import place_of
from mpc_train.errors import ArtifactError
from parties.errors import KeyServiceError, RetiredKeyError, VaultError, WrappedKeyError
from protocols.errors import EnvelopeError

if TYPE_CHECKING:
    from parties.vault.store import Store

CHECKPOINT = "checkpoint"
"""The kind of these objects in a vault."""
RUN = "run"
"""The kind of the notes beside them."""
_LENGTH = Struct(">B")
_PIECE = 1 << 20


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node must know of a run that goes on. table: a mark of the rows that it shares, empty
    without any. leaving: results may have left, so that the run may not begin anew."""

    table: str
    leaving: bool = False
    version: Literal[1] = 1


class RunNote:
    """The note of one run at any of its nodes, in its vault: that it takes part."""

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Store]], job: str, digest: str
    ) -> None:
        self._opened, self._job, self._digest = opened, job, digest

    def read(self) -> Note | None:
        """None: this node has not begun a run of the job. Raises VaultError for a damaged note:
        without it nobody knows whether results have left."""
        with self._opened() as store:
            versions = store.versions(RUN, self._job)
            if not versions:
                return None
            with store.open(RUN, self._job, versions[-1]) as content:
                if content.info.job != self._digest:
                    return None
                try:
                    return msgspec.json.decode(content.reader.read(), type=Note)
                except (msgspec.MsgspecError, ValueError, EnvelopeError) as error:
                    raise VaultError(
                        f"the note of the run {self._job} cannot be read ({error}); begin anew "
                        "with --fresh at all nodes"
                    ) from error

    def write(self, note: Note) -> None:
        """Durable when this returns; the older one is gone then."""
        with self._opened() as store:
            with store.writing(RUN, self._job, self._digest) as out:
                out.write(msgspec.json.encode(note))
            store.keep_only(RUN, self._job, [out.info.version])

    def clear(self) -> None:
        with self._opened() as store:
            store.keep_only(RUN, self._job, ())


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
        with self._opened() as store:
            return tuple(sorted(self._listed(store)))

    def write(self, token: bytes, data: bytes) -> None:
        """Raises ArtifactError, also for a key service that is away; nothing is kept then."""
        try:
            with self._opened() as store, store.writing(CHECKPOINT, self._job, self._digest) as out:
                out.write(_LENGTH.pack(len(token)) + token)
                out.write(data)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def read(self, token: bytes) -> bytes:
        with self._opened() as store:
            version = self._listed(store).get(token)
            if version is None:
                raise ArtifactError(f"the vault has no checkpoint of {self._job} of this name")
            with store.open(CHECKPOINT, self._job, version) as content:
                return content.reader.read()[_LENGTH.size + len(token) :]

    def discard(self, token: bytes) -> None:
        """Destroy one. Raises ArtifactError."""
        try:
            with self._opened() as store:
                version = self._listed(store).get(token)
                if version is not None:
                    store.destroy(CHECKPOINT, self._job, version)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def prune(self, newest: int) -> None:
        """Destroy all but the newest, and what another job of this name has left; without a look
        into them if none is kept. Raises ArtifactError; nothing is destroyed where nobody can tell
        which is the newest."""
        try:
            with self._opened() as store:
                listed = self._listed(store) if newest else {}
                newest_first = sorted(listed, reverse=True)
                kept = [listed[token] for token in newest_first[:newest]]
                store.keep_only(CHECKPOINT, self._job, kept)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def _listed(self, store: Store) -> dict[bytes, int]:
        """Versions by name; one that is damaged is not there, because an older one may do.

        Raises VaultError for one that is there and cannot be read now: a run that took it for lost
        would begin anew, and destroy it.
        """
        found: dict[bytes, int] = {}
        for version in store.versions(CHECKPOINT, self._job):
            try:
                if (token := self._token(store, version)) is not None:
                    found[token] = version
            except VaultError as error:
                if not _is_damage(error):
                    raise
            except (EnvelopeError, ArtifactError, StructError):
                continue
            except OSError as error:
                raise VaultError(f"a checkpoint of {self._job}: {error.strerror}") from error
        return found

    def _token(self, store: Store, version: int) -> bytes | None:
        with store.open(CHECKPOINT, self._job, version) as content:
            if content.info.job != self._digest:
                return None
            (length,) = _LENGTH.unpack(content.reader.read(_LENGTH.size))
            token = content.reader.read(length)
            place_of(token)
            # Each chunk is verified now: what is damaged must not be signed for.
            while content.reader.read(_PIECE):
                pass
            return token
