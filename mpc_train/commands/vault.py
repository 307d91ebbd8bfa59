"""`mpc-train vault`: what a node keeps, encrypted under its own key from the moment it comes in."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from mpc_train.commands.table_options import (
    DateFormatOption,
    DatePivotOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    ReadOption,
    given_source,
)
from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.run.place import VaultPlace
    from parties.audit.log import AuditLog
    from parties.vault.store import Entry, Store

vault = typer.Typer(no_args_is_help=True, help="What this node keeps, encrypted.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Under which it is kept.")]
KindOption = Annotated[str, typer.Option(help="The kind of object.")]
VersionOption = Annotated[int, typer.Option(min=0, help="0: the newest.")]


@vault.command("import")
def vault_import(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV, Excel, Parquet, Arrow, npz.")
    ],
    name: NameArgument,
    config: ConfigOption,
    delimiter: DelimiterOption = "",
    encoding: EncodingOption = "",
    decimal: DecimalOption = "",
    date_format: DateFormatOption = "",
    date_pivot: DatePivotOption = 0,
    read: ReadOption = None,
    tokenise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Replace this column's identifiers by tokens; may be repeated."
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Read a table and keep it encrypted; a node's file then names vault:NAME in place of a path.

    The table itself stays where it is: delete it, and its copies, yourself.
    """
    with reporting(output):
        from mpc_train.errors import DataError
        from mpc_train.node.storage import TABLE, token_key
        from mpc_train.run.progress import ProgressView
        from mpc_train.tables.loading.load import header_faults, open_table
        from mpc_train.tables.loading.load import reporting as paced
        from mpc_train.tables.readers.staged import stage
        from mpc_train.tables.readers.tokenised import Tokenised
        from mpc_train.tables.source import Source
        from parties.audit.entries import Kind

        source = given_source(
            table,
            read,
            delimiter=delimiter,
            encoding=encoding,
            decimal=decimal,
            date_format=date_format,
            date_pivot=date_pivot,
        )
        for key in ("rename", "recode", "drop_rows", "array_folder"):
            if getattr(source, key) != getattr(Source(), key):
                raise ConfigError(f"--read {key}=…: belongs into [data] of the node's file")
        view = ProgressView(enabled=output is Format.text)
        with _opened(config, passphrase_file, passphrase_fd, "vault import") as (store, audit):
            # The table is closed, and compared with what was read, before the object is there.
            with view.shown(), store.writing(TABLE, name) as out, open_table(source) as opened:
                if faults := header_faults(opened, source.ignore):
                    raise DataError("\n  ".join(f"{table}: {fault}" for fault in faults))
                columns = [column for column in opened.names if column not in source.ignore]
                if not columns:
                    raise DataError(f"{table}: no column is left; ignore fewer")
                report = paced(opened, lambda news: view.event("reading", dataclasses.asdict(news)))
                try:
                    named = Tokenised(opened, tokenise, token_key(store)) if tokenise else opened
                    rows = stage(named, source, out, report)
                except DataError as error:
                    raise DataError(f"{table}: {str(error).removeprefix(f'{table}: ')}") from error
            kept = store.newest(TABLE, name)
            audit.append(
                Kind.VAULT_IMPORT, {"object": kept.title, "rows": rows, "columns": len(columns)}
            )
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": name,
                    "version": kept.version,
                    "rows": rows,
                    "columns": columns,
                }
            )
            return
        say(
            f"{kept.title}: {rows:,} rows, {len(columns)} columns, encrypted. In this node's file: "
            f'[data] JOB = "vault:{name}". {table} itself was left as it is'
        )


@vault.command("ls")
def vault_ls(config: ConfigOption, output: FormatOption = Format.text) -> None:
    """List what is kept; needs no key."""
    with reporting(output):
        from mpc_train.results.report import size
        from parties.vault.store import entries_of

        place = _place(config)
        found = entries_of(place.folder)
        if output is Format.json:
            emit({"status": "ok", "objects": [_record(entry) for entry in found]})
            return
        for entry in found:
            info = entry.info
            of = f"  of {info.job}" if info.job else ""
            say(
                f"{info.kind:10} {info.name:24} {info.version:>4}  {size(entry.size):>10}  "
                f"{info.created}  {entry.key_id[:20]}{of}"
            )
        if not found:
            say(f"the vault {place.folder} is empty", aside=True)


@vault.command("show")
def vault_show(
    name: NameArgument,
    config: ConfigOption,
    version: VersionOption = 0,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Say what a table of the vault is: its columns and how they are written. Opens it."""
    with reporting(output):
        from mpc_train.node.storage import TABLE
        from mpc_train.tables.readers.staged import StagedTable

        opened = _opened(config, passphrase_file, passphrase_fd, "vault show")
        with opened as (store, _), store.open(TABLE, name, version) as content:
            table = StagedTable(content.reader, content.size, f"vault:{name}")
            rows = sum(len(chunk.places) for chunk in table.chunks(()))
            info = content.info
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    **dataclasses.asdict(info),
                    "rows": rows,
                    "columns": list(table.names),
                }
            )
            return
        say(f"{info.title}, kept on {info.created}: {rows:,} rows, {len(table.names)} columns")
        for column in table.names:
            say(f"  {column}")


@vault.command("export")
def vault_export(
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="The CSV file to write; never replaced.")],
    config: ConfigOption,
    version: VersionOption = 0,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write a table of the vault as CSV, in the clear, its cells as they were imported."""
    with reporting(output):
        import polars

        from mpc_train.errors import DataError
        from mpc_train.node.storage import TABLE
        from mpc_train.tables.cells import is_cell
        from mpc_train.tables.readers.staged import StagedTable
        from parties.audit.entries import Kind
        from parties.files import atomic_file

        rows, title = 0, f"vault:{name}"
        opened = _opened(config, passphrase_file, passphrase_fd, "vault export")
        with opened as (store, audit), store.open(TABLE, name, version) as content:
            # In the clear: it is in the log before it is on the disk.
            audit.append(Kind.VAULT_EXPORT, {"object": content.info.title})
            table = StagedTable(content.reader, content.size, title)
            try:
                with atomic_file(out, replace=False) as stream:
                    polars.DataFrame(schema=list(table.names)).write_csv(stream)
                    for chunk in table.chunks(table.names):
                        for column, kind in chunk.frame.schema.items():
                            if not is_cell(kind):
                                raise DataError(
                                    f"{title}: column {column!r} is of type {kind}, which CSV "
                                    "cannot hold; a job reads it from the vault as it is"
                                )
                        chunk.frame.write_csv(stream, include_header=False)
                        rows += chunk.frame.height
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
        if output is Format.json:
            emit({"status": "ok", "file": str(out), "rows": rows})
            return
        say(f"{out}: {rows:,} rows, in the clear; delete it when it has served")


@vault.command("key")
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
        say(f'{place}: made. In this node\'s file: [vault] key = "{service.uri}"')


@vault.command("rotate")
def vault_rotate(
    config: ConfigOption,
    to: Annotated[
        str, typer.Option(help="The URI of another key service; left out, a new key of this one.")
    ] = "",
    to_passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Read the passphrase, token or PIN of the other service from this file."),
    ] = None,
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
    """
    with reporting(output):
        from mpc_train.node.logbook import logbook
        from mpc_train.node.storage import open_key
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.place import VaultPlace
        from parties.audit.entries import Kind
        from parties.audit.log import log_folder
        from parties.audit.reading import key_id_of
        from parties.vault.rotation import move, rotate
        from parties.vault.store import Store, using

        node = load_node_config(config)
        with using(node.vault.folder, alone=True):
            identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
            old = open_key(node.vault, identity)
            store = Store(node.vault.folder, node.place.name, old)
            other = VaultPlace(node.vault.folder, to, to_passphrase_file)
            new = open_key(other, identity) if to else old
            # A rotation that broke off may have moved the log's key, which is the last, already.
            moved = key_id_of(log_folder(node.place.home, node.place.name)) == new.current
            keys = new if to and moved else old
            with logbook(node.place, node.audit, identity, keys, "vault rotate") as audit:

                def of_the_log() -> frozenset[str]:
                    audit.rewrap(keys, new)
                    return frozenset([audit.key_id])

                if to:
                    done = move(store, new, also=of_the_log)
                else:
                    done = rotate(store, keep_old=keep_old, also=of_the_log)
                audit.append(
                    Kind.VAULT_ROTATE,
                    {"key": done.key, "objects": done.rewrapped, "destroyed": done.retired},
                )
        if output is Format.json:
            emit({"status": "ok", **dataclasses.asdict(done)})
            return
        say(
            f"{done.rewrapped} objects were wrapped under {done.key}"
            + ("" if done.made or to else ", which was current already")
            + f"; keys retired: {len(done.retired)}"
        )
        if to:
            say(f'in this node\'s file write [vault] key = "{to}" now')


@vault.command("shred")
def vault_shred(
    name: NameArgument,
    config: ConfigOption,
    kind: KindOption = "table",
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
        from parties.audit.entries import Kind

        opened = _opened(config, passphrase_file, passphrase_fd, "vault shred")
        with opened as (store, audit):
            info = store.newest(kind, name, version)
            if not yes and not typer.confirm(f"Destroy {info.title}, of {info.created}?", err=True):
                raise typer.Abort
            audit.append(Kind.VAULT_SHRED, {"object": info.title})
            store.shred(kind, name, info.version)
        if output is Format.json:
            emit({"status": "ok", "kind": kind, "name": name, "version": info.version})
            return
        say(f"{info.title}: destroyed")


def _place(config: Path) -> "VaultPlace":
    from mpc_train.run.node_config import load_node_config

    return load_node_config(config).vault


@contextlib.contextmanager
def _opened(
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
        keys = open_key(node.vault, identity)
        with logbook(node.place, node.audit, identity, keys, verb) as audit:
            yield Store(node.vault.folder, node.place.name, keys), audit


def _record(entry: "Entry") -> dict[str, Any]:
    return {**dataclasses.asdict(entry.info), "bytes": entry.size, "key": entry.key_id}
