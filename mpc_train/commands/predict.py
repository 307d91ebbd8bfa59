"""`mpc-train predict`: apply an opened model to raw records, on this machine alone."""

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

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
    source_like,
)
from mpc_train.errors import ConfigError
from parties.files import atomic_file


def predict_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The folder that mpc-train open wrote."),
    ],
    table: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="Records: CSV, Excel, Parquet, Arrow or npz."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file: .csv or .json (one object per line); default: standard output."
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="A column to keep with the predictions; may be given several times.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A node's own file: read TABLE as this file describes the job's table."),
    ] = None,
    delimiter: DelimiterOption = "",
    encoding: EncodingOption = "",
    decimal: DecimalOption = "",
    date_format: DateFormatOption = "",
    date_pivot: DatePivotOption = 0,
    read: ReadOption = None,
    array_folder: Annotated[
        str, typer.Option(help="Folder of the files of arrays; default: that of the table.")
    ] = "",
    output: FormatOption = Format.text,
) -> None:
    """Predict the label of each record. The table has the columns of the job's schema in their own
    units; the label may be missing, and other columns are ignored."""
    with reporting(output):
        from mpc_train.results.predicting import ENDINGS, Form, load_predictor, write_records
        from mpc_train.tables.spelling import name_of

        form: Form = "json" if output is Format.json else "csv"
        if out is not None:
            if out.suffix.lower() not in ENDINGS:
                raise ConfigError(
                    f"{out}: predictions are written as {', '.join(ENDINGS)}; change the ending"
                )
            if out.absolute() == table.absolute():
                raise ConfigError(f"{out}: is the table itself; choose another file")
            form = ENDINGS[out.suffix.lower()]
        named: dict[str, str | int] = {
            "delimiter": delimiter,
            "encoding": encoding,
            "decimal": decimal,
            "date_format": date_format,
            "date_pivot": date_pivot,
            "array_folder": array_folder,
        }
        if config is not None and (
            read or any(named[key] for key in named.keys() - {"array_folder"})
        ):
            raise ConfigError("--config says how the table is written; leave the other options out")
        # Faults of the options are reported before a model is read.
        source = given_source(table, read, **named)
        predictor = load_predictor(model)
        if config is not None:
            source = source_like(config, predictor.job, source)
        kept = tuple(map(name_of, ids or ()))
        predictor.check_ids(kept)
        if out is None:
            # Readers take every line for a prediction, so nothing is written before all rows are
            # checked.
            with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as waiting:
                rows = write_records(predictor, source, waiting, form, kept)
                waiting.seek(0)
                if sys.stdout.isatty():
                    while text := waiting.read(1 << 16):
                        say(text, end="")
                else:
                    shutil.copyfileobj(waiting, sys.stdout)
        else:
            try:
                with atomic_file(out) as stream:
                    file = io.TextIOWrapper(stream, encoding="utf-8", newline="")
                    rows = write_records(predictor, source, file, form, kept)
                    file.detach()  # flushes; the stream is closed by the code that opened it
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": predictor.job.name,
                    "rows": rows,
                    "columns": list(predictor.columns),
                    "out": None if out is None else str(out),
                }
            )
        elif out is not None:
            say(f"{rows} predictions in {out}")
