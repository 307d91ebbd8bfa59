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
        with _writing(config, passphrase_file, passphrase_fd) as store, view.shown():
            # The table is closed, and compared with what was read, before the object is there.
            with store.writing(TABLE, name) as out, open_table(source) as opened:
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

        store = _store(config, passphrase_file, passphrase_fd)
        with store.open(TABLE, name, version) as content:
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
        from parties.files import atomic_file

        store, rows = _store(config, passphrase_file, passphrase_fd), 0
        title = f"vault:{name}"
        with store.open(TABLE, name, version) as content:
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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys to make.")],
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Make a file of keys for the vault, under a passphrase of its own."""
    with reporting(output):
        from parties.keys.passphrase import read_passphrase
        from parties.keys.services.file_service import FileService

        passphrase = read_passphrase(
            file=passphrase_file, fd=passphrase_fd, prompt=f"Passphrase of {file}: ", confirm=True
        )
        service = FileService.create(file.absolute(), passphrase)
        if output is Format.json:
            emit({"status": "ok", "key": service.uri})
            return
        say(f'{file}: made. In this node\'s file: [vault] key = "{service.uri}"')


@vault.command("rotate")
def vault_rotate(
    config: ConfigOption,
    to: Annotated[
        str, typer.Option(help="The URI of another key service; left out, a new key of this one.")
    ] = "",
    to_passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the passphrase of the other service from this file.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Wrap the keys of all objects under a new key; the objects themselves stay as they are.

    Keys that no object needs any more are destroyed. What was interrupted goes on when it is called
    again.
    """
    with reporting(output):
        from mpc_train.node.storage import open_key, open_store
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.place import VaultPlace
        from parties.vault.store import entries_of, using

        node = load_node_config(config)
        with using(node.vault.folder, alone=True):
            identity = identity_at(node.place, passphrase_file, passphrase_fd)
            store = open_store(node.vault, identity)
            if to:
                new = open_key(VaultPlace(node.vault.folder, to, to_passphrase_file), identity)
            else:
                new = store.keys
                if not _unfinished(entries_of(node.vault.folder), new.current):
                    new.rotate()
            count = store.rewrap(new)
            retired = new.retire(frozenset(entry.key_id for entry in entries_of(node.vault.folder)))
        if output is Format.json:
            emit({"status": "ok", "key": new.current, "rewrapped": count, "retired": retired})
            return
        say(f"{count} objects are wrapped under {new.current}; keys destroyed: {len(retired)}")
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
        store = _store(config, passphrase_file, passphrase_fd)
        info = store.newest(kind, name, version)
        if not yes and not typer.confirm(f"Destroy {info.title}, of {info.created}?", err=True):
            raise typer.Abort
        store.shred(kind, name, info.version)
        if output is Format.json:
            emit({"status": "ok", "kind": kind, "name": name, "version": info.version})
            return
        say(f"{info.title}: destroyed")


def _unfinished(entries: "list[Entry]", current: str) -> bool:
    """Whether a rotation broke off: some objects have the current key, and some an older one."""
    keys = {entry.key_id for entry in entries}
    return current in keys and len(keys) > 1


def _place(config: Path) -> "VaultPlace":
    from mpc_train.run.node_config import load_node_config

    return load_node_config(config).vault


def _store(config: Path, passphrase_file: Path | None, passphrase_fd: int | None) -> "Store":
    from mpc_train.node.storage import open_store
    from mpc_train.run.node_config import load_node_config

    node = load_node_config(config)
    return open_store(node.vault, identity_at(node.place, passphrase_file, passphrase_fd))


@contextlib.contextmanager
def _writing(
    config: Path, passphrase_file: Path | None, passphrase_fd: int | None
) -> "Iterator[Store]":
    """The vault, whose keys nobody rotates meanwhile; they are opened under the lock."""
    from parties.vault.store import using

    with using(_place(config).folder):
        yield _store(config, passphrase_file, passphrase_fd)


def _record(entry: "Entry") -> dict[str, Any]:
    return {**dataclasses.asdict(entry.info), "bytes": entry.size, "key": entry.key_id}
