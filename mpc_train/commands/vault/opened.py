"""What the verbs of `mpc-train vault` share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.commands.common import identity_at

if TYPE_CHECKING:
    from parties.audit.log import AuditLog
    from parties.vault.store import Store

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Under which it is kept.")]
VersionOption = Annotated[int, typer.Option(min=0, help="0: the newest.")]


@contextlib.contextmanager
def opened(
    config: Path, passphrase_file: Path | None, passphrase_fd: int | None, verb: str
) -> "Iterator[tuple[Store, AuditLog]]":
    """The vault of a node, and its audit log, which says that it was opened and what for."""
    from mpc_train.node.logbook import logbook
    from mpc_train.node.storage import open_key
    from mpc_train.run.node_config import load_node_config
    from parties.vault.store import Store, using

    node = load_node_config(config)
    # Nobody rotates the keys meanwhile: they are opened under the lock.
    with using(node.vault.folder):
        identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
        keys = open_key(node.vault.key, identity)
        with logbook(node.place, node.audit, identity, keys, verb) as audit:
            yield Store(node.vault.folder, node.place.name, keys), audit
