"""`mpc-train vault import`, `show` and `export`: tables come into the vault, and out of it."""

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    opened_vault,
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
from mpc_train.commands.vault.options import NameArgument, VersionOption
from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.results.kept import KeptModel
    from mpc_train.tables.readers.staged import StagedTable


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
    protect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=KEY",
            help="Keep this column under a key of \\[vault.columns]; may be repeated.",
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
        from mpc_train.node.imports import import_table
        from mpc_train.node.storage import column_key
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.progress import ProgressView
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
        view, node = ProgressView(enabled=output is Format.text), load_node_config(config)
        with opened_vault(config, passphrase_file, passphrase_fd, "vault import") as (
            store,
            audit,
            *_,
        ):
            with view.shown():
                kept = import_table(
                    store,
                    name,
                    source,
                    tokenise=tokenise or (),
                    protect=protect or (),
                    key_of=partial(column_key, node),
                    progress=lambda news: view.event("reading", dataclasses.asdict(news)),
                )
            said: dict[str, Any] = {"object": kept.info.title, "rows": kept.rows}
            said["columns"] = len(kept.columns)
            if kept.protected:
                said["keys"] = tuple(kept.protected)
            audit.append(Kind.VAULT_IMPORT, said)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": name,
                    "version": kept.info.version,
                    "rows": kept.rows,
                    "columns": list(kept.columns),
                    "protected": kept.protected,
                }
            )
            return
        say(
            f"{kept.info.title}: {kept.rows:,} rows, {len(kept.columns)} columns, encrypted. In "
            "this node's file: "
            f'[data] JOB = "vault:{name}". {table} itself was left as it is'
        )


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
        from mpc_train.node.storage import TABLE, StoredTable
        from mpc_train.tables.readers.staged import StagedTable

        opening = opened_vault(config, passphrase_file, passphrase_fd, "vault show")
        with opening as (store, *_), store.open(TABLE, name, version) as content:
            table = StagedTable(StoredTable(content, store, {}), f"vault:{name}")
            rows = sum(len(chunk.places) for chunk in table.chunks(()))
            info, head = content.info, table.head
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    **dataclasses.asdict(info),
                    "rows": rows,
                    "columns": list(table.names),
                    "protected": head.protected,
                    "tokenised": list(head.tokenised),
                }
            )
            return
        say(f"{info.title}, kept on {info.created}: {rows:,} rows, {len(table.names)} columns")
        key_of = {name: key for key, names in head.protected.items() for name in names}
        for column in table.names:
            key = f"  under the key {key_of[column]}" if column in key_of else ""
            say(f"  {column}{key}{'  (tokens)' if column in head.tokenised else ''}")


def vault_export(
    name: NameArgument,
    out: Annotated[
        Path, typer.Option(help="The file to write, or folder of a model; never replaced.")
    ],
    config: ConfigOption,
    kind: Annotated[str, typer.Option(help="The kind of object.")] = "table",
    version: VersionOption = 0,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Do not write this column; may be repeated."),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write a table of the vault as CSV, in the clear, its cells as they were imported.

    An object of another kind is written as it is, and a model as a folder of its files.
    """
    with reporting(output):
        from mpc_train.node.storage import EXPORTED, MODEL, TABLE, StoredTable
        from mpc_train.results.kept import KeptModel
        from mpc_train.run.node_config import load_node_config
        from mpc_train.tables.readers.staged import StagedTable
        from parties.audit.entries import Kind
        from parties.files import atomic_file

        if kind not in (TABLE, *EXPORTED):
            known = ", ".join((TABLE, *EXPORTED))
            raise ConfigError(f"--kind {kind}: only these are ever written in the clear: {known}")
        if leave_out and kind != TABLE:
            raise ConfigError("--leave-out is for tables")
        opening = opened_vault(config, passphrase_file, passphrase_fd, "vault export")
        with opening as (store, audit, *_), store.open(kind, name, version) as content:
            said: dict[str, Any] = {"object": content.info.title}
            if kind == TABLE:
                keys = load_node_config(config).vault.columns
                table = StagedTable(StoredTable(content, store, keys), f"vault:{name}")
                if unknown := [each for each in leave_out or () if each not in table.names]:
                    raise ConfigError(f"--leave-out: vault:{name} has no column {unknown[0]!r}")
                names = [each for each in table.names if each not in (leave_out or ())]
                said["columns"] = len(names)
            # In the clear: it is in the log before it is on the disk.
            audit.append(Kind.VAULT_EXPORT, said)
            found: dict[str, Any] = {"status": "ok", "file": str(out)}
            try:
                if kind == MODEL:
                    _write_folder(KeptModel.of(f"vault:{name}", content.reader.read()), out)
                else:
                    with atomic_file(out, replace=False) as stream:
                        if kind == TABLE:
                            found["rows"] = _write_csv(table, names, f"vault:{name}", stream)
                        else:
                            shutil.copyfileobj(content.reader, stream)
            except FileExistsError as error:
                raise ConfigError(
                    f"{out}: exists, and an export replaces nothing; give another --out, or delete "
                    "it first"
                ) from error
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
        if output is Format.json:
            emit(found)
            return
        rows = f"{found['rows']:,} rows, " if kind == TABLE else ""
        say(f"{out}: {rows}in the clear; delete it when it has served")


def _write_folder(model: "KeptModel", out: Path) -> None:
    """Write the files of a model into a new folder; the manifest, which describes them, last."""
    from mpc_train.results.opening import MANIFEST_FILE
    from parties.files import private_directory, write_atomic

    if out.exists():
        raise ConfigError(f"{out}: exists; nothing is replaced")
    private_directory(out)
    for name in sorted(model.files, key=MANIFEST_FILE.__eq__):
        write_atomic(out / name, model.files[name])


def _write_csv(table: "StagedTable", names: list[str], title: str, stream: BinaryIO) -> int:
    """Write these columns; return how many rows there are. Raises DataError for what CSV cannot
    hold."""
    import polars

    from mpc_train.errors import DataError
    from mpc_train.tables.cells import is_cell

    rows = 0
    polars.DataFrame(schema=names).write_csv(stream)
    for chunk in table.chunks(names):
        for column, kind in chunk.frame.schema.items():
            if not is_cell(kind):
                raise DataError(
                    f"{title}: column {column!r} is of type {kind}, which CSV cannot hold; a job "
                    "reads it from the vault as it is"
                )
        chunk.frame.write_csv(stream, include_header=False)
        rows += chunk.frame.height
    return rows
