"""How a vault's key is changed: at each moment every object opens with a key that still exists.

1. A new key becomes the current one, unless objects are wrapped by older keys already: then an
   earlier rotation broke off, or somebody rotated the key where it is kept; this one finishes it.
2. Every file key is wrapped under the current key, and the wrapping is tried, before a header is
   replaced (`Store.rewrap`).
3. Keys that no header names any more are destroyed, in the vault's own service only; none while a
   header is damaged, because nobody can tell which key its copy in a backup needs.

Damaged objects are named, and keep no other object from being wrapped anew. A service that is lost
at any call leaves the headers as they are; the next rotation goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from parties.errors import VaultError
from parties.keys.services.service import KeyService
from parties.vault.store import Entry, Store


@dataclass(frozen=True)
class Rotation:
    """key: the current key's id. made: whether it is new. rewrapped: how many objects were changed.
    retired: ids of the keys that were destroyed. damaged: why objects were passed over, by path."""

    key: str
    made: bool
    rewrapped: int
    retired: tuple[str, ...]
    damaged: tuple[str, ...] = ()


def rotate(
    store: Store,
    *,
    keep_old: bool = False,
    told: Callable[[Entry], None] | None = None,
    also: Callable[[], frozenset[str]] = frozenset,
) -> Rotation:
    """Give the vault a new key of its service. keep_old: destroy none; others use them, too.

    also: wraps what else the service's keys wrap under the current one, once the objects are, and
    returns the ids of keys that it still needs.
    """
    keys, damaged = store.keys, list[VaultError]()
    made = all(entry.key_id == keys.current for entry in store.entries(damaged))
    if made:
        keys.rotate()  # 1
    count = store.rewrap(keys, told, damaged)  # 2
    others = also()
    needed = others.union(entry.key_id for entry in store.entries(damaged))
    retired = () if keep_old or damaged else keys.retire(needed)  # 3
    return Rotation(keys.current, made, count, retired, _named(damaged))


def why_due(
    store: Store, since: datetime, now: datetime, *, most_days: int, most_objects: int
) -> str:
    """Why the key of a vault has to be rotated, in words; nothing if it need not be.

    since: when it was last rotated. most_days, most_objects: how old it may get, and how many
    objects it may wrap. A clock that went back makes no key younger: then it is due.
    """
    entries = store.entries([])  # of what is damaged nobody can tell
    if any(entry.key_id != store.keys.current for entry in entries):
        return "an earlier rotation is not finished, or the key was rotated where it is kept"
    if len(entries) > most_objects:
        return f"it wraps {len(entries):,} objects, and may wrap {most_objects:,}"
    age = now - since
    if age < timedelta(0):
        return "the clock says that it was rotated in the future"
    if age > timedelta(days=most_days):
        return f"it is {age.days} days old, and may be {most_days}"
    return ""


def move(
    store: Store,
    to: KeyService,
    told: Callable[[Entry], None] | None = None,
    also: Callable[[], object] = frozenset,
) -> Rotation:
    """Wrap every file key under the current key of another service. No key is destroyed: the old
    service's may be in use elsewhere, and so may the other's. also: as for `rotate`."""
    damaged = list[VaultError]()
    count = store.rewrap(to, told, damaged)
    also()
    return Rotation(to.current, False, count, (), _named(damaged))


def _named(damaged: list[VaultError]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, damaged)))
