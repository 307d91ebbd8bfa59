"""`mpc-train vault ls` and `shred`: all that is kept."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    ask_to_destroy,
    emit,
    opened_vault,
    reporting,
)
from mpc_train.commands.vault.options import NameArgument, VersionOption, exit_if, status_of

if TYPE_CHECKING:
    from parties.vault.store import Entry


def vault_ls(config: ConfigOption, output: FormatOption = Format.text) -> None:
    """List what is kept; needs no key.

    Exit status 5 if an object is damaged; the others are listed all the same.
    """
    with reporting(output):
        from mpc_train.results.report import size
        from mpc_train.run.node_config import load_node_config
        from parties.errors import VaultError
        from parties.vault.store import entries_of

        place, damaged = load_node_config(config).vault, list[VaultError]()
        found = entries_of(place.folder, damaged)
        if output is Format.json:
            objects = [_record(entry) for entry in found]
            emit({**status_of(damaged), "objects": objects})
            exit_if(damaged)
            return
        kinds, names = (
            max((len(getattr(entry.info, each)) for entry in found), default=0)
            for each in ("kind", "name")
        )
        for entry in found:
            info = entry.info
            of = f"  of {info.job[:16]}" if info.job else ""
            say(
                f"{info.kind:{kinds}}  {info.name:{names}} {info.version:>4}  "
                f"{size(entry.size):>10}  {info.created}  {entry.key_id}{of}"
            )
        if not found and not damaged:
            say(f"the vault {place.folder} is empty", aside=True)
        exit_if(damaged)


def vault_shred(
    name: NameArgument,
    config: ConfigOption,
    kind: Annotated[str, typer.Option(help="The kind of object.")] = "table",
    version: VersionOption = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Destroy a version for good: without its key, what lies on the disk says nothing.

    Who has a copy of the header still needs the vault's key: rotate it afterwards.
    """
    with reporting(output):
        from mpc_train.node.storage import shred
        from parties.audit.entries import Kind

        opening = opened_vault(config, passphrase_file, passphrase_fd, "vault shred")
        with opening as (store, audit, *_):
            info = store.newest(kind, name, version)
            if not yes:
                ask_to_destroy(f"Destroy {info.title}, of {info.created}?", output)
            audit.append(Kind.VAULT_SHRED, {"object": info.title})
            shred(store, info)
        if output is Format.json:
            emit({"status": "ok", "kind": kind, "name": name, "version": info.version})
            return
        say(f"{info.title}: destroyed")


def _record(entry: "Entry") -> dict[str, Any]:
    return {**dataclasses.asdict(entry.info), "bytes": entry.size, "key": entry.key_id}
