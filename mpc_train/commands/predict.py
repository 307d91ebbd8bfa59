"""`mpc-train predict`: apply an opened model to raw records, on this machine alone."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpc_train.commands.common import Format, FormatOption, emit, reporting
from mpc_train.errors import ConfigError
from mpc_train.printing import say
from parties.files import atomic_file


def predict_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="The folder that mpc-train open wrote."),
    ],
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Raw records: CSV, Parquet, Arrow or npz.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where predictions go: .csv or .json (an object a line); default: here."),
    ] = None,
    delimiter: Annotated[str, typer.Option(help="CSV: the sign between cells.")] = "",
    encoding: Annotated[str, typer.Option(help="CSV: how the file is encoded.")] = "utf-8",
    decimal: Annotated[str, typer.Option(help="CSV: point or comma in numbers.")] = ".",
    date_format: Annotated[str, typer.Option(help="How dates are written.")] = "%Y-%m-%d",
    date_pivot: Annotated[
        int, typer.Option(help="The first of the hundred years that %y may mean, like 1930.")
    ] = 0,
    output: FormatOption = Format.text,
) -> None:
    """Predict the label of each record. The table has the columns of the job's schema in their own
    units; the label may be missing, other columns are left alone."""
    with reporting(output):
        import msgspec

        from mpc_train.predicting import load_predictor, write_records
        from mpc_train.tables.source import Source, SourceProblem, check_source

        given = {
            "file": str(table),
            "delimiter": delimiter,
            "encoding": encoding,
            "decimal": decimal,
            "date_format": date_format,
            "date_pivot": date_pivot,
        }
        try:
            source = msgspec.convert(given, Source)
            check_source(source)
        except (msgspec.ValidationError, SourceProblem) as error:
            raise ConfigError(f"{table}: {error}") from error
        predictor = load_predictor(model)
        if out is None:
            form = "json" if output is Format.json else "csv"
            rows = write_records(predictor, source, sys.stdout, form)
        else:
            form = "json" if out.suffix in (".json", ".jsonl") else "csv"
            try:
                with atomic_file(out) as stream:
                    file = io.TextIOWrapper(stream, encoding="utf-8", newline="")
                    rows = write_records(predictor, source, file, form)
                    file.detach()  # flushes; the stream is closed by whoever opened it
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
