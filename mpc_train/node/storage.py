"""A node's vault, as its own file describes it."""

import os
from functools import partial

from mpc_train.run.node_config import NodeConfig
from mpc_train.run.place import VaultPlace
from mpc_train.tables.loading.load import Vault as Tables
from parties.keys.passphrase import read_passphrase
from parties.keys.services.by_uri import open_service
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault
from parties.vault.store import Store, entries_of

TABLE, KEY = "table", "key"
TOKENS = "tokens"
"""The name of the key under which identifiers become tokens."""
TOKEN_KEY_BYTES = 32


def open_key(place: VaultPlace, identity: Vault | None) -> KeyService:
    """The key service of a vault, its secret from the file that is named, or asked for."""

    def passphrase() -> bytes:
        return read_passphrase(file=place.passphrase_file, prompt=f"Secret of {place.key}: ")

    return open_service(place.key, identity, passphrase)


def token_key(store: Store) -> bytes:
    """The key of this vault for tokens, which never leaves it; made when it is first needed."""
    if not any((e.info.kind, e.info.name) == (KEY, TOKENS) for e in entries_of(store.folder)):
        with store.writing(KEY, TOKENS) as out:
            out.write(os.urandom(TOKEN_KEY_BYTES))
    # Always the first: a second one, of an import at the same time, would tear tables apart.
    with store.open(KEY, TOKENS, 1) as content:
        return content.reader.read()


def tables_at(config: NodeConfig, keys: KeyService) -> Tables | None:
    """What opens the tables of the vault that the node's file names; None where it names none.

    keys: of the vault (`open_key`). Raises VaultError for one that is not there.
    """
    named = [source.stored for source in config.data.values() if source.stored]
    if not named:
        return None
    store = Store(config.vault.folder, config.place.name, keys)
    for name in named:
        store.newest(TABLE, name)
    return tables_of(store)


def tables_of(store: Store) -> Tables:
    """Opens the tables of a vault by name, the newest version of each."""
    return partial(store.open, TABLE)
