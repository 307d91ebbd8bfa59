"""`mpc-train predict`: apply an opened model to raw records, on this machine alone."""

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
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
    source_like,
)
from mpc_train.errors import ConfigError
from parties.files import atomic_file

if TYPE_CHECKING:
    from mpc_train.results.predictions import Form

VAULT = "vault:"


def predict_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The folder that mpc-train open wrote, or vault:NAME."
        ),
    ],
    table: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="Records: CSV, Excel, Parquet, Arrow or npz."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Output file: .csv or .json (one object per line), or vault:NAME; default: "
            "standard output."
        ),
    ] = None,
    vault: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file of the node that vault:NAME is kept by."),
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
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Predict the label of each record. The table has the columns of the job's schema in their own
    units; the label may be missing, and other columns are ignored."""
    with reporting(output):
        from mpc_train.node.storage import PREDICTIONS, kept_model, text_into
        from mpc_train.results.predicting import load_predictor
        from mpc_train.results.predictions import write_records
        from mpc_train.tables.spelling import name_of

        into, from_vault = named_in_vault(out), named_in_vault(model)
        form: Form = "json" if output is Format.json and into is None else "csv"
        if (vault is None) != (into is None and from_vault is None):
            raise ConfigError("vault:NAME and --vault FILE, the file of its node, belong together")
        if out is not None and into is None:
            form = form_of(out, table)
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
        with contextlib.ExitStack() as held:
            store = None
            if vault is not None:
                opening = opened_vault(vault, passphrase_file, passphrase_fd, "predict")
                store = held.enter_context(opening).store
            predictor = load_predictor(
                Path(model)
                if store is None or from_vault is None
                else kept_model(store, from_vault)
            )
            if config is not None:
                source = source_like(config, predictor.job, source)
            kept = tuple(map(name_of, ids or ()))
            predictor.check_ids(kept)

            def write_to(file: TextIO) -> int:
                return write_records(predictor, source, file, form, kept)

            if store is not None and into is not None:
                digest = predictor.job.digest().hex()
                with text_into(store, PREDICTIONS, into, digest) as file:
                    rows = write_to(file)
            elif out is not None:
                rows = into_file(Path(out), write_to)
            else:
                rows = _to_output(write_to)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": predictor.job.name,
                    "rows": rows,
                    "columns": list(predictor.columns),
                    "out": out,
                }
            )
        elif out is not None:
            say(f"{rows} predictions in {out}")
        if not rows:
            say(f"warning: {table} has columns and no row: nothing was predicted", aside=True)


def named_in_vault(text: str | None) -> str | None:
    """The name of an object of the vault; None for a path."""
    return text.removeprefix(VAULT) if text is not None and text.startswith(VAULT) else None


def form_of(out: str, table: Path) -> "Form":
    """The format of an output file, by its ending. Raises ConfigError."""
    from mpc_train.results.predictions import ENDINGS

    if Path(out).suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"{out}: predictions are written as {', '.join(ENDINGS)}; change the ending"
        )
    if Path(out).absolute() == table.absolute():
        raise ConfigError(f"{out}: is the table itself; choose another file")
    return ENDINGS[Path(out).suffix.lower()]


def into_file(out: Path, write_to: Callable[[TextIO], int]) -> int:
    """Write to a file that is complete or absent; what `write_to` returns. Raises ConfigError."""
    try:
        with atomic_file(out) as stream:
            file = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            rows = write_to(file)
            file.detach()  # flushes; the stream is closed by the code that opened it
            return rows
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error


def _to_output(write_to: Callable[[TextIO], int]) -> int:
    """Readers take every line for a prediction, so nothing is written before all rows are
    checked."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as waiting:
        rows = write_to(waiting)
        waiting.seek(0)
        if sys.stdout.isatty():
            while text := waiting.read(1 << 16):
                say(text, end="")
        else:
            shutil.copyfileobj(waiting, sys.stdout)
        return rows
