"""The shares of models that an evaluator keeps in its vault, with what all nodes signed about them.

    shared-model/NAME.3    the share (`share.ModelShare`); NAME is the job's
    model-record/NAME.2    the record of its run; its `job` is the model's digest

A run writes the share before anybody signs the result, and the record once all have signed. A share
without a record is of a run that did not end: it is no model, and the next run of the job that
keeps one destroys it.

A model's version is that of its record, which a refresh leaves as it is: each training under a name
gives the next version. A refresh writes another share of the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from mpc_train.errors import ArtifactError
from mpc_train.shared.share import About, ModelShare
from parties.errors import VaultError
from parties.vault.store import entries_of
from protocols.errors import EnvelopeError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from parties.vault.store import Store

SHARE, RECORD = "shared-model", "model-record"
"""Kinds of objects."""
MAX_HELD = 4
"""The most shares of one model that a session chooses from."""


@dataclass(frozen=True, slots=True)
class Held:
    """A share in a vault. stored: the version of the share's object. created: of this share, UTC.
    version: of the model, here; 0: not all nodes have signed it."""

    about: About
    stored: int
    created: str
    version: int

    @property
    def name(self) -> str:
        return self.about.job.name

    @property
    def is_signed(self) -> bool:
        return self.version > 0


class Library:
    """opened: the vault, while a context lasts."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Store]]) -> None:
        self._opened = opened

    def keep(self, share: ModelShare) -> None:
        """Durable when this returns; shares of runs of this job that did not end are destroyed.

        Raises ArtifactError where it cannot be kept, also for a key service that is away.
        """
        job = share.about.job
        try:
            with self._opened() as store:
                with store.writing(SHARE, job.name, job.digest().hex()) as out:
                    out.write(share.to_bytes())
                for held in held_models(store, job.name):
                    is_mine = held.about.job.digest() == job.digest()
                    if is_mine and not held.is_signed and held.stored != out.info.version:
                        store.destroy(SHARE, job.name, held.stored)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def shares(self, digest: str) -> list[ModelShare]:
        """The shares of the model of this digest, the newest first: more than one while a refresh
        is not over. Raises ArtifactError if there is none, or its run did not end."""
        try:
            with self._opened() as store:
                return shares_by_digest(store, digest)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def settle(self, share: ModelShare) -> None:
        """Destroy all other shares of this model: every evaluator holds what belongs to this one.
        Raises ArtifactError."""
        try:
            with self._opened() as store:
                for held in held_models(store, share.about.job.name):
                    is_its = held.about.digest == share.about.digest
                    if is_its and share_of(store, held).agreed != share.agreed:
                        store.shred(SHARE, held.name, held.stored)
        except VaultError as error:
            raise ArtifactError(str(error)) from error

    def sign(self, name: str, digest: str, record: bytes) -> None:
        """Keep what all nodes signed about the model of this digest. Raises VaultError."""
        with self._opened() as store, store.writing(RECORD, name, digest) as out:
            out.write(record)


def held_models(store: Store, name: str = "") -> Iterator[Held]:
    """The shares in a vault, of all names or of one. Reads no tensor; raises VaultError for one
    that is damaged."""
    entries = [entry.info for entry in store.entries()]
    records = {(one.name, one.job): one.version for one in entries if one.kind == RECORD}
    for info in entries:
        if info.kind == SHARE and name in ("", info.name):
            about = about_of(store, info.name, info.version)
            version = records.get((info.name, about.digest), 0)
            yield Held(about, info.version, info.created, version)


def is_kept(folder: Path, name: str, digest: str) -> bool:
    """Whether a vault has the signed record of the model of this digest, which goes with the share.
    Uses no key."""
    wanted = RECORD, name, digest
    infos = (entry.info for entry in entries_of(folder, []))
    return any((info.kind, info.name, info.job) == wanted for info in infos)


def about_of(store: Store, name: str, version: int = 0) -> About:
    """What a share is of. Raises VaultError."""
    with store.open(SHARE, name, version) as content:
        try:
            return About.read(cast("BinaryIO", content.reader))
        except (ArtifactError, EnvelopeError) as error:
            raise VaultError(f"{content.info.title}: {error}") from error


def find(store: Store, name: str, version: int = 0) -> Held:
    """The newest share of the model of this name and version, 0 for the newest that all nodes
    signed. Raises VaultError."""
    found = [*held_models(store, name)]
    signed = [held for held in found if held.is_signed and version in (0, held.version)]
    if not signed and version:
        raise VaultError(f"there is no version {version} of the model {name} in shares here")
    if not signed:
        why = (
            "its run did not end: start its nodes again"
            if found
            else "see mpc-train model list, and mpc-train vault ls"
        )
        raise VaultError(f"there is no model {name} in shares here; {why}")
    return max(signed, key=_age)


def _age(held: Held) -> tuple[int, int, int]:
    """More for a newer model, and for a newer share of one."""
    return held.version, held.about.public.refreshed, held.stored


def share_of(store: Store, held: Held) -> ModelShare:
    """The share itself. Raises VaultError."""
    with store.open(SHARE, held.name, held.stored) as content:
        try:
            share = ModelShare.from_bytes(content.reader.read())
        except (ArtifactError, EnvelopeError) as error:
            raise VaultError(f"{content.info.title}: {error}") from error
    if share.about != held.about:
        raise VaultError(f"the share of the model {held.name} has changed; try again")
    return share


def record_of(store: Store, held: Held) -> bytes:
    """What all nodes signed about it; not verified. Raises VaultError."""
    if not held.is_signed:
        raise VaultError(
            f"the model {held.name} was not signed by all nodes of its run, which did not end"
        )
    with store.open(RECORD, held.name, held.version) as content:
        return content.reader.read()


def retire(store: Store, held: Held) -> None:
    """Destroy a share, whichever refresh of it there is, and the record of it: no key opens it any
    more, and without it the other evaluators' shares say nothing."""
    for one in [*held_models(store, held.name)]:
        if one.about.digest == held.about.digest:  # a refresh that was not over has left two
            store.shred(SHARE, one.name, one.stored)
    if held.is_signed:
        store.shred(RECORD, held.name, held.version)


def shares_by_digest(store: Store, digest: str) -> list[ModelShare]:
    """The shares of a model that all nodes signed, the newest first, by the digest that all
    evaluators know it by. Raises ArtifactError, also for one that was retired."""
    found = [held for held in held_models(store) if held.about.digest == digest and held.is_signed]
    if found:
        found.sort(key=_age, reverse=True)
        return [share_of(store, held) for held in found[:MAX_HELD]]
    raise ArtifactError(
        f"this node keeps no share of the model {digest[:16]}…: it was retired, its run did not "
        "end, or it is in another vault; see mpc-train model list"
    )
