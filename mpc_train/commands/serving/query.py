"""`mpc-train query`: predictions for a table by a model in shares, which nobody holds.

Evaluators never see a record, the client never sees the model: `mpc_train/docs/serving.md`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    OpenedNode,
    PassphraseFdOption,
    PassphraseFileOption,
    VerboseOption,
    configure_logging,
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
from mpc_train.errors import (
    ConfigError,
    DataError,
    QueryError,
    QueryRefusedError,
    UnansweredError,
    classify,
    explain,
)
from parties.errors import PartiesError
from parties.files import move
from protocols.errors import ProtocolError

if TYPE_CHECKING:
    from mpc_train.asking.predictions import SharedPredictor
    from mpc_train.serving.offered import Offered, Service
    from mpc_train.tables.source import Source

PROGRESS_S = 5.0


def query_command(
    config: ConfigOption,
    table: Annotated[
        Path | None,
        typer.Argument(metavar="TABLE", help="Records: CSV, Excel, Parquet, Arrow or npz."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model, as --list names it.")] = "",
    version: Annotated[
        int, typer.Option(min=0, help="The model's version, as --list shows it; 0: the newest.")
    ] = 0,
    out: Annotated[
        str,
        typer.Option(help="Output file: .csv or .json (one object per line), or vault:NAME."),
    ] = "",
    listed: Annotated[
        bool, typer.Option("--list", help="Ask nothing: show the models that may be asked.")
    ] = False,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="A column to keep with the predictions; may be given several times.",
        ),
    ] = None,
    from_row: Annotated[
        int, typer.Option(min=1, help="The first row to ask; rows are counted from 1.")
    ] = 1,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to ask; 0: all.")] = 0,
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
    verbose: VerboseOption = False,
) -> None:
    """Predict the label of each record with a model in shares. The table has the columns of the
    job's schema in their own units; the label may be missing, and other columns are ignored."""
    with reporting(output):
        from mpc_train.commands.predict import form_of, named_in_vault

        configure_logging(verbose)
        if listed:
            if table is not None or model or out:
                raise ConfigError("--list shows what may be asked; give it no table")
            with _asking(config, passphrase_file, passphrase_fd) as (_, service):
                _show(service, output)
            return
        if table is None or not model or not out:
            raise ConfigError(
                "give a table, --model NAME and --out FILE, or --list to see what may be asked"
            )
        if named_in_vault(out) is None:
            form_of(out, table)
        source = given_source(
            table,
            read,
            delimiter=delimiter,
            encoding=encoding,
            decimal=decimal,
            date_format=date_format,
            date_pivot=date_pivot,
            array_folder=array_folder,
        )
        _check_readable(table)
        from mpc_train.asking.predictions import SharedPredictor
        from mpc_train.serving.offers import find, left_words

        with _asking(config, passphrase_file, passphrase_fd) as (node, service):
            predictor = SharedPredictor(
                service, find(service.models, model, version), from_row, rows
            )
            asked = _ask(predictor, source, out, tuple(ids or ()), node, output)
            left = _left(service, predictor.model)
        if output is Format.json:
            offered = predictor.model
            emit(
                {
                    "status": "ok",
                    "model": offered.name,
                    "version": offered.version,
                    "digest": offered.digest,
                    "rows": asked,
                    "columns": list(predictor.columns),
                    "out": out,
                    "rows_left": left,
                }
            )
        else:
            say(f"{asked} predictions in {out}")
            if left is not None:
                words = left_words(predictor.model, left)
                say(f"{words[0].upper()}{words[1:]}.")
        if not asked:
            say(f"warning: {table} has columns and no row: nothing was asked", aside=True)


def _check_readable(table: Path) -> None:
    """Raise DataError for a file that is not there, before anybody is asked anything."""
    from mpc_train.tables.source import unreadable

    try:
        with table.open("rb"):
            pass
    except OSError as error:
        raise unreadable(table, error) from error


@contextlib.contextmanager
def _asking(
    config: Path, passphrase_file: Path | None, passphrase_fd: int | None
) -> "Iterator[tuple[OpenedNode, Service]]":
    """This client's node, and its connection to the service."""
    from mpc_train.commands.serving.service import connected
    from mpc_train.serving.offered import CONNECT_S
    from parties.keys.roster import Roster

    with opened_vault(config, passphrase_file, passphrase_fd, "query") as node:
        roster = Roster.load(node.config.place.roster)
        join_s = float(node.config.timeouts.join_s)
        with connected(
            node.config, node.identity, roster, node.audit, CONNECT_S, join_s
        ) as service:
            yield node, service


def _ask(
    predictor: "SharedPredictor",
    source: "Source",
    out: str,
    ids: tuple[str, ...],
    node: OpenedNode,
    output: Format,
) -> int:
    """Write the predictions; how many there are.

    Rows that were answered count for the day, so that they are not thrown away if a later one is
    not: they stay in a file with another name than `out`, which always holds all that was asked.
    """
    from mpc_train.commands.predict import form_of, into_file, named_in_vault
    from mpc_train.node.storage import PREDICTIONS, text_into
    from mpc_train.results.predictions import write_records
    from mpc_train.tables.source import label_of
    from mpc_train.tables.spelling import name_of

    kept, first = tuple(map(name_of, ids)), predictor.first
    chunks = predictor.rows_of(source, kept)
    total = sum(chunks)
    if not total and first > 1:
        raise DataError(f"{label_of(source)}: has no row {first}; correct --from-row")
    _check_day(predictor, chunks)
    into = named_in_vault(out)
    form = "csv" if into is not None else form_of(out, Path(source.file))
    progress = _Progress(total, output)

    def write_to(file: TextIO, report: Callable[[int], None]) -> int:
        return write_records(predictor, source, file, form, kept, first, report)

    if into is not None:
        try:
            with text_into(node.store, PREDICTIONS, into, predictor.job.digest().hex()) as file:
                return write_to(file, progress)
        except BaseException as error:
            count = predictor.counted.rows
            raise _unanswered(error, first, progress.done, "", count) from error
    path = Path(out)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    failed: list[BaseException] = []
    whole = 0, 0
    """Rows that are written, and where they end in the file."""

    def write_all_or_some(file: TextIO) -> int:
        def report(rows: int) -> None:
            nonlocal whole
            whole = rows, file.tell()
            progress(rows)

        try:
            return write_to(file, report)
        except BaseException as error:
            done, end = whole
            if not done or classify(error)[1] == "internal":
                raise _unanswered(error, first, 0, "", predictor.counted.rows) from error
            failed.append(error)
            # Ctrl-C comes in the middle of an answer, too: what is begun would be asked again.
            file.seek(end)
            file.truncate()
            return done

    asked = into_file(staged, write_all_or_some)
    named = path
    if failed:
        named = path.with_name(f"{path.stem}.rows-{first}-{first + asked - 1}{path.suffix}")
    try:
        move(staged, named)
    except OSError as error:
        raise ConfigError(
            f"{named}: cannot be written ({error.strerror}); the predictions are in {staged}"
        ) from error
    if failed:
        why, count = failed[0], predictor.counted.rows
        raise _unanswered(why, first, asked, str(named), count) from why
    return asked


def _left(service: "Service", model: "Offered") -> int | None:
    """The rows that are left of today; None if that cannot be had now."""
    try:
        return service.left(model)
    except (QueryError, PartiesError, ProtocolError):
        return None


def _check_day(predictor: "SharedPredictor", chunks: list[int]) -> None:
    """Raise QueryRefusedError if the whole table counts for more rows than are left of the day."""
    from mpc_train.asking.predictions import counts_for, fitting
    from mpc_train.serving.offers import allowed, left_words

    count, left = sum(map(counts_for, chunks)), _left(predictor.service, predictor.model)
    if left is None:
        left = allowed(predictor.model).rows_a_day
    if count <= left:
        return
    total, fits = sum(chunks), fitting(chunks, left)
    padded = f", which count as {count:,} since questions are padded" if count > total else ""
    some = f"; ask some of them: --from-row {predictor.first} --rows {fits}" if fits else ""
    raise QueryRefusedError(
        f"{total:,} rows would be asked{padded}, but {left_words(predictor.model, left)}{some}",
        "quota",
    )


def _unanswered(
    error: BaseException, first: int, done: int, kept: str, counted: int
) -> BaseException:
    """The error for a table that was not answered to its end; the error itself if no row was
    answered, or counted. counted: how many rows of the day may have been."""
    if not (done or counted) or classify(error)[1] == "internal":
        return error
    why = "interrupted" if isinstance(error, KeyboardInterrupt) else explain(error)
    rows = f"rows {first:,} to {first + done - 1:,}"
    where = f"the predictions of {rows} are in {kept}" if kept else f"{rows} were not kept"
    left_out = f"rows from {first + done:,} on were not answered; {where}; ask the others"
    if not done:
        left_out = "no row was answered, and nothing was written; ask again"
    after = first + done if kept else first
    return UnansweredError(
        f"{why}; this has counted for up to {counted:,} rows of today; {left_out} with "
        f"--from-row {after} when it can be answered"
    )


class _Progress:
    """Tells from time to time how many rows were answered."""

    def __init__(self, total: int, output: Format, now: Callable[[], float] = time.monotonic):
        self._total, self._output, self._now = total, output, now
        self._began = self._told = now()
        self.done = 0

    def __call__(self, done: int) -> None:
        self.done, now = done, self._now()
        if now - self._told < PROGRESS_S:
            return
        self._told = now
        left_s = (now - self._began) * (self._total - done) / done
        if self._output is Format.json:
            emit(
                {
                    "event": "progress",
                    "rows": done,
                    "total": self._total,
                    "left_s": round(left_s, 1),
                }
            )
        else:
            say(f"{done:,} of {self._total:,} rows, about {left_s:.0f} s left", aside=True)


def _show(service: "Service", output: Format) -> None:
    from mpc_train.serving.offers import allowed, answers_with, counted_words, described

    offered = [one for models in service.models.values() for one in models]
    found = [described(one) | {"rows_left": _left(service, one)} for one in offered]
    if output is Format.json:
        emit({"status": "ok", "models": found})
        return
    if not found:
        say("No model may be asked by this client.")
    for model, one in zip(offered, found, strict=True):
        say(f"{one['model']} {one['version']}: {one['kind']} model of {one['label']}")
        say(f"  digest {one['digest']}")
        left = one["rows_left"]
        more = "" if left is None else f", of which {left:,} are left today (until 00:00 UTC)"
        say(f"  answers with the {answers_with(allowed(model))}{more}")
        if said := counted_words(model.job):
            say(f"  {said}")
        for column in one["columns"]:
            more = column.get("unit") or "×".join(map(str, column.get("shape", ())))
            say(f"  {column['name']} ({column['kind']}{', ' + more if more else ''})")
