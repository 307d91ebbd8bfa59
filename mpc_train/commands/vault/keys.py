"""`mpc-train vault key` and `rotate`: the keys that wrap the keys of objects."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    identity_at,
    reporting,
)
from mpc_train.commands.vault.options import exit_if, status_of

if TYPE_CHECKING:
    from mpc_train.run.place import VaultPlace
    from parties.audit.log import AuditLog
    from parties.vault.store import Store


def vault_key(
    place: Annotated[
        str,
        typer.Argument(
            metavar="KEY", help="A file of keys to make, or the URI of a keyring: or pkcs11: key."
        ),
    ],
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Make a key for the vault: a file under a passphrase of its own, or one in a keyring or token.

    A token's PIN is read as a passphrase is.
    """
    with reporting(output):
        from parties.keys.passphrase import read_passphrase
        from parties.keys.services.by_uri import SCHEMES, create_service, scheme_of

        uri = place if scheme_of(place) in SCHEMES else f"file:{Path(place).absolute()}"
        is_file = scheme_of(uri) == "file"

        def secret() -> bytes:
            prompt = f"Passphrase of {place}: " if is_file else f"PIN of {place}: "
            return read_passphrase(
                file=passphrase_file, fd=passphrase_fd, prompt=prompt, confirm=is_file
            )

        service = create_service(uri, secret)
        if output is Format.json:
            emit({"status": "ok", "key": service.uri})
            return
        say(
            f'{place}: made. In this node\'s file: [vault] key = "{service.uri}", or for single '
            f'columns [vault.columns] NAME = {{ key = "{service.uri}" }}'
        )


def vault_rotate(
    config: ConfigOption,
    to: Annotated[
        str, typer.Option(help="The URI of another key service; left out, a new key of this one.")
    ] = "",
    to_passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Read the passphrase, token or PIN of the other service from this file."),
    ] = None,
    column_key: Annotated[
        str,
        typer.Option(
            metavar="KEY", help="Rotate this key of \\[vault.columns], not the vault's own."
        ),
    ] = "",
    if_due: Annotated[
        bool,
        typer.Option(
            "--if-due",
            help="Only if the key is too old or wraps too much (\\[vault] rotate_after_…): for a "
            "daily schedule.",
        ),
    ] = False,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Destroy no key: other vaults use the service, too.")
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Wrap the keys of all objects under a new key; the objects themselves stay as they are.

    Keys that no object needs any more are destroyed, unless --keep-old or --to is given. What was
    interrupted goes on when it is called again: then the key that is current stays so.

    Exit status 5 if an object is damaged: the others are wrapped anew, and no key is destroyed.
    """
    with reporting(output):
        from mpc_train.errors import ConfigError
        from mpc_train.node.logbook import logbook
        from mpc_train.node.storage import column_key as key_of_columns
        from mpc_train.node.storage import open_key
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.place import KeyPlace
        from parties.audit.entries import Kind
        from parties.audit.log import log_folder
        from parties.audit.reading import key_id_of
        from parties.vault.rotation import move, rotate
        from parties.vault.store import Store, using

        node = load_node_config(config)
        if column_key and to in ("identity:", node.vault.key.uri):
            raise ConfigError(f"--to {to}: whoever opens the table could open these columns, too")
        with using(node.vault.folder, alone=True):
            identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
            own = open_key(node.vault.key, identity)
            old = key_of_columns(node, column_key) if column_key else own
            store = Store(node.vault.folder, node.place.name, old, column_key)
            new = open_key(KeyPlace(to, to_passphrase_file), identity) if to else old
            # A rotation that broke off may have moved the log's key, which is the last, already.
            moved = key_id_of(log_folder(node.place.home, node.place.name)) == new.current
            keys = new if to and moved else own
            with logbook(node.place, node.audit, identity, keys, "vault rotate") as audit:
                why = _why_due(node.vault, store, audit, column_key) if if_due else ""
                if if_due and not why:
                    _say_not_due(store, output)
                    return

                def of_the_log() -> frozenset[str]:
                    if column_key:
                        return frozenset()  # the log is under the vault's own key
                    audit.rewrap(keys, new)
                    return frozenset([audit.key_id])

                if to:
                    done = move(store, new, also=of_the_log)
                else:
                    done = rotate(store, keep_old=keep_old, also=of_the_log)
                audit.append(
                    Kind.VAULT_ROTATE,
                    {
                        "key": done.key,
                        "objects": done.rewrapped,
                        "destroyed": done.retired,
                        "column_key": column_key,
                        "due": why,
                        "damaged": len(done.damaged),
                    },
                )
        if output is Format.json:
            emit({**dataclasses.asdict(done), **status_of(done.damaged)})
            exit_if(done.damaged)
            return
        say(
            f"{done.rewrapped} objects were wrapped under {done.key}"
            + ("" if done.made or to else ", which was current already")
            + f"; keys retired: {len(done.retired)}"
        )
        if to:
            where = f"vault.columns.{column_key}" if column_key else "vault"
            say(f'in this node\'s file write [{where}] key = "{to}" now')
        exit_if(done.damaged)


def _why_due(place: "VaultPlace", store: "Store", audit: "AuditLog", column_key: str) -> str:
    """Why a key is to be rotated now. The audit log says when it was last; before that, when the
    node began."""
    from datetime import UTC, datetime

    from parties.audit.entries import Kind
    from parties.vault.rotation import why_due

    since = ""
    for _, entry in audit.entries():
        rotated = entry.kind == Kind.VAULT_ROTATE
        if not since or (rotated and entry.fields.get("column_key", "") == column_key):
            since = entry.time
    return why_due(
        store,
        datetime.fromisoformat(since),
        datetime.now(UTC),
        most_days=place.most_days,
        most_objects=place.most_objects,
    )


def _say_not_due(store: "Store", output: Format) -> None:
    if output is Format.json:
        emit({"status": "ok", "due": False, "key": store.keys.current})
        return
    say(f"{store.keys.current}: need not be rotated yet")
