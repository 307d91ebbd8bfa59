"""A node's vault, as its own file describes it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from mpc_train.errors import ConfigError, DataError
from mpc_train.results.kept import KeptModel
from mpc_train.run.node_config import NodeConfig
from mpc_train.run.place import KeyPlace, VaultPlace
from parties.errors import PassphraseError, VaultError
from parties.keys.passphrase import read_passphrase
from parties.keys.services.by_uri import open_service
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault
from parties.vault import store as kept
from parties.vault.store import PART, Store, using
from protocols.sealing.stored import ObjectInfo

if TYPE_CHECKING:
    from mpc_train.tables.loading.load import Vault as Tables

TABLE, KEY, METRICS, HISTORY = "table", "key", "metrics", "history"
MODEL, PREDICTIONS = "model", "predictions"
"""Kinds of objects: imported tables, keys, metrics of the node's own rows, what was revealed,
opened models and what they predict."""
EXPORTED = (METRICS, HISTORY, PREDICTIONS, MODEL)
"""What may be written in the clear besides tables; never keys."""
TOKENS = "tokens"
"""The name of the key under which identifiers become tokens."""
TOKEN_KEY_BYTES = 32


class NodeVault:
    """The vault of a node, for as long as the node runs.

    Each use opens the key anew, while nobody rotates it: what was current when the node started may
    have been destroyed since, and what is wrapped by it could never be opened. A secret that is
    asked for is asked for once.
    """

    def __init__(self, place: VaultPlace, node: str, identity: Vault) -> None:
        self.folder, self._columns = place.folder, place.columns
        self._uri, self._node, self._identity = place.key.uri, node, identity
        self._secret = cache(partial(_secret_of, place.key))

    def keys(self) -> KeyService:
        """The key of the vault, as it is now; raises KeyServiceError and PassphraseError."""
        return open_service(self._uri, self._identity, self._secret)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        """The objects, while no rotation begins. Raises VaultError and PassphraseError."""
        with using(self.folder):
            yield Store(self.folder, self._node, self.keys())

    def tables(self, named: Iterable[str]) -> Tables | None:
        """Opens tables by name, the newest version of each; None where none is `named`.

        Raises VaultError for one that is not there now.
        """
        wanted = [*named]
        if not wanted:
            return None
        with self.opened() as store:
            for name in wanted:
                store.newest(TABLE, name)

        @contextlib.contextmanager
        def table(name: str) -> Iterator[StoredTable]:
            with self.opened() as store, store.open(TABLE, name) as content:
                yield StoredTable(content, store, self._columns)

        return table


def open_key(place: KeyPlace, identity: Vault | None) -> KeyService:
    """A key service, its secret from the file that is named, or asked for."""
    return open_service(place.uri, identity, partial(_secret_of, place))


def _secret_of(place: KeyPlace) -> bytes:
    return read_passphrase(file=place.passphrase_file, prompt=f"Secret of {place.uri}: ")


def column_key(config: NodeConfig, name: str) -> KeyService:
    """The key of this name for single columns; raises ConfigError where the file names none."""
    try:
        place = config.vault.columns[name]
    except KeyError:
        known = ", ".join(config.vault.columns) or "none"
        raise ConfigError(
            f"{config.path}: there is no key {name!r} under [vault.columns], only {known}"
        ) from None
    return open_key(place, None)


def token_key(store: Store) -> bytes:
    """The key of this vault for tokens, which never leaves it; made when it is first needed."""
    if not store.versions(KEY, TOKENS):
        with store.writing(KEY, TOKENS) as out:
            out.write(os.urandom(TOKEN_KEY_BYTES))
    # Always the oldest: a second one, of an import at the same time, would tear tables apart.
    with store.open(KEY, TOKENS, store.versions(KEY, TOKENS)[0]) as content:
        return content.reader.read()


def kept_model(store: Store, name: str, version: int = 0) -> KeptModel:
    """An opened model of the vault; raises VaultError and ArtifactError."""
    with store.open(MODEL, name, version) as content:
        return KeptModel.of(f"vault:{name}", content.reader.read())


@contextlib.contextmanager
def text_into(store: Store, kind: str, name: str, job: str) -> Iterator[TextIO]:
    """Keep the text that is written as the newest version of `name`; job: the digest of its job."""
    with store.writing(kind, name, job) as out:
        raw = io.BufferedWriter(cast("io.FileIO", _Sink(out)), 1 << 20)
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        yield text
        text.flush()


class _Sink(io.RawIOBase):
    """An object that is being written, as a file."""

    def __init__(self, out: kept.Writing) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        written = bytes(data)
        self._out.write(written)
        return len(written)


def shred(store: Store, info: ObjectInfo) -> None:
    """Destroy an object, and a table's protected columns before it: a table whose columns were left
    behind could not be shredded again."""
    if info.kind == TABLE:
        store.shred_parts(info)
    store.shred(info.kind, info.name, info.version)


@dataclass(frozen=True)
class StoredTable:
    """An opened table of the vault, which opens its protected columns when they are needed."""

    _content: kept.Content
    _store: Store
    _keys: Mapping[str, KeyPlace]

    @property
    def reader(self) -> BinaryIO:
        return self._content.reader

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def info(self) -> ObjectInfo:
        return self._content.info

    @contextlib.contextmanager
    def part(self, key: str, columns: Sequence[str]) -> Iterator[kept.Content]:
        """The columns under the key of this name; raises DataError, which names `columns`."""
        info = self.info
        which = f"vault:{info.name}: {_listed(columns)} under the key {key!r}, which"
        if key not in self._keys:
            raise DataError(
                f"{which} this node's file does not name under [vault.columns]; a job that uses "
                "such a column cannot run here"
            )
        try:
            store = self._store.under(open_key(self._keys[key], None), key)
            content = store.open(PART + key, info.name, info.version)
        except (VaultError, PassphraseError) as error:
            raise DataError(f"{which} cannot be used here: {error}") from error
        with content:
            yield content


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in columns[:5])
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f"column {shown} is" if len(columns) == 1 else f"columns {shown}{more} are"
