"""`mpc-train schema`: drafts schemas of tables, and compares them among owners."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import Format, FormatOption, emit, reporting
from mpc_train.commands.table_options import (
    DateFormatOption,
    DatePivotOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    ReadOption,
    given_source,
)
from mpc_train.errors import ConfigError, JobError

if TYPE_CHECKING:
    from mpc_train.tables.source import Source

schema = typer.Typer(no_args_is_help=True, help="What the columns of tables mean.")

FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="SCHEMA…", help="Schema files, or digests of them (.json).")
]


@schema.command("infer")
def schema_infer(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="CSV, Excel, Parquet, Arrow or npz.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Instead of FILE: a node's own file, which describes tables."),
    ] = None,
    job: Annotated[
        str, typer.Option(help="With --config: use the table for the job of this name.")
    ] = "",
    delimiter: DelimiterOption = "",
    encoding: EncodingOption = "",
    decimal: DecimalOption = "",
    date_format: DateFormatOption = "",
    date_pivot: DatePivotOption = 0,
    read: ReadOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Print a first draft of a table's schema. It contains statistics of the table: review it
    before others get it."""
    with reporting(output):
        from mpc_train.run.progress import ProgressView
        from mpc_train.tables.drafts.infer import infer

        if config is not None:
            source = _declared(config, job)
        elif file is None:
            raise ConfigError("name a file, or a node's own file with --config")
        else:
            source = given_source(
                file,
                read,
                delimiter=delimiter,
                encoding=encoding,
                decimal=decimal,
                date_format=date_format,
                date_pivot=date_pivot,
            )
        view = ProgressView(enabled=output is Format.text)
        with view.shown():
            draft = infer(source, lambda news: view.event("reading", dataclasses.asdict(news)))
        for warning in draft.warnings:
            say(f"review: {warning}", aside=True)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "schema": draft.text,
                    "warnings": list(draft.warnings),
                    "ignore": list(draft.source.ignore),
                    "date_formats": draft.source.date_formats,
                }
            )
        else:
            say(draft.text, end="")


@schema.command("digest")
def schema_digest(
    file: Annotated[Path, typer.Argument(metavar="SCHEMA.toml", help="The schema file.")],
    output: FormatOption = Format.text,
) -> None:
    """Print digests of a schema, its columns and their fields as one line of JSON, to compare
    schemas without sending them."""
    with reporting(output):
        import msgspec

        from mpc_train.tables.drafts.compare import digest_of
        from mpc_train.tables.schema import load_schema

        say(msgspec.json.encode(digest_of(load_schema(file))).decode())


@schema.command("check")
def schema_check(files: FilesArgument, output: FormatOption = Format.text) -> None:
    """Validate a schema. With several, say whether all are the same, and name the columns and
    fields that differ."""
    with reporting(output):
        from mpc_train.tables.drafts.compare import differences, read_digest

        digests = {str(path): read_digest(path) for path in files}
        found = differences(digests)
        if found:
            raise JobError("; ".join(found))
        (first, *_) = digests.values()
        if output is Format.json:
            emit({"status": "ok", "digest": first.schema, "columns": len(first.columns)})
            return
        same = f"{len(files)} files, the same schema" if len(files) > 1 else "schema"
        say(f"{same}: {len(first.columns)} columns, digest {first.schema}")


def _declared(config: Path, job: str) -> "Source":
    from mpc_train.run.node_config import load_node_config

    loaded = load_node_config(config)
    if not job and len(loaded.data) == 1:
        (job,) = loaded.data
    return loaded.source(job)
