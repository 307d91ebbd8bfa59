"""From a node's source to a typed table, checked against the schema before anything is shared.

1. The source is opened; its columns are compared with the required ones.
2. Chunk by chunk, without the rows that the node drops (`dropping`), cells become numbers in arrays
   that contain the whole table once (`filling`).
3. Properties of the whole table are checked: the number of rows, columns without a value or with
   only one value, identifiers that appear twice.
4. A file is checked for changes since before it was read.

The source is read and never changed. An error reports all faults (`faults`): file, line (the header
is line 1), column and kind; it never repeats a cell, because messages go into logs.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from polars import DataFrame

from mpc_train.base.strict_toml import quoted
from mpc_train.errors import DataError
from mpc_train.tables.faults import Faults
from mpc_train.tables.loading.dropping import Dropping
from mpc_train.tables.loading.filling import FIRST_ROWS, Check, Filling
from mpc_train.tables.readers import columnar, packed
from mpc_train.tables.readers.arrays import Arrays, with_arrays
from mpc_train.tables.readers.csv_text import BLOCK_BYTES, CsvText
from mpc_train.tables.readers.database import open_query
from mpc_train.tables.readers.excel import excel
from mpc_train.tables.readers.fingerprint import Fingerprint
from mpc_train.tables.readers.renamed import in_words_of_the_job
from mpc_train.tables.readers.staged import Content, StagedTable, as_written, read_head
from mpc_train.tables.reading import Progress, Table
from mpc_train.tables.schema import Schema
from mpc_train.tables.source import Source, SourceProblem, check_texts, label_of, unreadable
from mpc_train.tables.spelling import name_of
from mpc_train.tables.typed import TypedTable

MAX_TIMES = 4
"""A table is read to its end, to report all its faults, unless it has this many times the expected
rows."""

Report = Callable[[Progress], None]
Vault = Callable[[str], AbstractContextManager[Content]]
"""Opens the table of a name in the node's vault."""


def load(
    source: Source,
    schema: Schema,
    *,
    names: Sequence[str],
    identifiers: Sequence[str] = (),
    unique: bool = True,
    alone: bool = True,
    rows: int | None = None,
    check: Check | None = None,
    progress: Report | None = None,
    arrays: Arrays | None = None,
    label: str = "",
    fillable: frozenset[str] = frozenset(),
    vault: Vault | None = None,
) -> TypedTable:
    """Read the columns `names` of the schema, in this order, and the requested identifiers.

    unique: each record appears once, by its identifiers. alone: nobody else has these columns, so a
    column without a value, or with only one, is an error; if others have them too, the table's
    owner is warned (`TypedTable.warnings`). rows: the required number; None: any. check: what cells
    must satisfy beyond the schema, called while lines are known. arrays: a column of arrays, read
    as columns of numbers. label: the label's column, for the source's rules for dropping rows.
    fillable: columns that may be missing or completely empty, because the job fills them. vault:
    opens tables of the node's vault. A column of the source that the schema does not know is an
    error unless `source.ignore` lists it. Raises DataError, with all faults.
    """
    title = label_of(source)
    faults = Faults(title, source.titles)
    dropping = Dropping(source, identifiers, schema[label] if label in names else None)
    wanted = (*names, *identifiers)
    with open_table(source, faults, vault) as opened:
        table = with_arrays(opened, arrays, title)
        faults.place = table.place
        dropping.check(faults)
        absent = _check_names(table, faults, schema, source, wanted, fillable)
        there = [name for name in wanted if name not in absent]
        filling = Filling(faults, len(names), rows, fillable - absent)
        report = reporting(table, progress, rows)
        most = None if rows is None else MAX_TIMES * rows + FIRST_ROWS
        total = table.total if table.unit == "rows" else None
        try:
            if most is not None and total is not None and total > most:
                raise DataError(_other_rows(total, rows, dropping))
            for whole in table.chunks(there):
                chunk, kept = dropping.kept(whole)
                filling.begin(chunk.places, kept)
                for index, name in enumerate(names):
                    if name in absent:
                        filling.absent(index)
                    else:
                        filling.take(index, chunk.frame[name], schema[name], source, check)
                for name in identifiers:
                    if name not in absent:
                        filling.identify(name, chunk.frame[name])
                report(chunk.done)
                if most is not None and filling.read > most:
                    break  # a query may never end
        except DataError as error:
            faults.whole(str(error).removeprefix(f"{title}: "))
        else:
            _check_rows(filling.read + faults.unread, rows, dropping, faults)
        found = filling.table(tuple(names))
    warnings = _check_whole(found, schema, faults, alone, absent)
    if unique and not faults.faulty.intersection(identifiers):
        _check_duplicates(found, faults)
    faults.check()
    said = [dropping.said] if any(dropping.dropped.values()) else []
    return replace(found, warnings=tuple(f"{title}: {each}" for each in (*said, *warnings)))


def _check_rows(found: int, rows: int | None, dropping: Dropping, faults: Faults) -> None:
    if not found:
        if not faults:
            faults.whole(f"there are columns but no row{_left_out(dropping)}")
    elif rows is not None and found != rows:
        faults.whole(_other_rows(found, rows, dropping))


def _other_rows(found: int, rows: int | None, dropping: Dropping) -> str:
    said = _left_out(dropping)
    left = "remaining rows are" if said else "rows are"
    return (
        f"the table's {left} {found}, but the job says {rows}; use the right table or correct "
        f"data.rows in the job{said}"
    )


def _left_out(dropping: Dropping) -> str:
    return f"; {dropping.said}" if any(dropping.dropped.values()) else ""


def stream(
    records: Source | DataFrame | columnar.FrameTable,
    schema: Schema,
    *,
    names: Sequence[str],
    keep: Sequence[str] = (),
    check: Check | None = None,
    arrays: Arrays | None = None,
) -> Iterator[TypedTable]:
    """The columns `names` chunk by chunk, in bounded memory; other columns are ignored.

    records: their source, or all of them in memory; a `FrameTable` says what errors call them, and
    may have faults already, which are reported with those of the cells.
    keep: columns whose text is returned unchanged for each row, as `TypedTable.identifiers`.
    Properties of the whole table are not checked. Raises DataError, with all faults of the chunk.
    """
    opened: AbstractContextManager[Table]
    if isinstance(records, Source):
        source, title = records, label_of(records)
        opened = open_table(records)
    else:
        if isinstance(records, DataFrame):
            records = columnar.FrameTable(records, "the data frame")
        source, title = Source(), records.label
        opened = contextlib.nullcontext(records)
    noted = None if isinstance(records, Source) else records.faults
    faults = Faults(title, source.titles) if noted is None else noted
    columns = tuple(dict.fromkeys((*names, *keep)))
    with opened as plain:
        table = with_arrays(plain, arrays, title, kept=True)
        faults.place = table.place
        ignored = msgspec.structs.replace(source, ignore=tuple(map(source.own, table.names)))
        _check_names(table, faults, schema, ignored, columns)
        if noted is None:
            faults.check()
        for chunk in table.chunks(columns):
            filling = Filling(faults, len(names), None)
            filling.begin(chunk.places)
            for index, name in enumerate(names):
                filling.take(index, chunk.frame[name], schema[name], source, check)
            for name in keep:
                filling.keep(name, chunk.frame[name])
            faults.check()
            yield filling.table(tuple(names))


@contextlib.contextmanager
def open_table(
    source: Source, faults: Faults | None = None, vault: Vault | None = None
) -> Iterator[Table]:
    """The source as a table of its format, with the job's names for its columns; a file is checked
    for changes when it is closed.

    faults: collects faults of single records; None: the first such fault is an error.
    """
    if source.url:
        with open_query(source) as table:
            yield in_words_of_the_job(table, source)
        return
    if source.stored:
        with _content(source, vault) as content:
            table = StagedTable(content, source.file)
            yield in_words_of_the_job(table, source)
        return
    path = Path(source.file)
    try:
        before = Fingerprint.of(path)
        with path.open("rb") as file:
            opened = _opened(source, path, file, before.size, faults)
            yield in_words_of_the_job(opened, source)
    except DataError:
        # A change explains all other faults.
        before.check(path)
        raise
    except BrokenPipeError:
        raise  # from the code that shows the progress, not from the file
    except OSError as error:
        raise unreadable(path, error) from error
    before.check(path)


def as_stored(source: Source, vault: Vault | None) -> tuple[Source, frozenset[str]]:
    """The source with what its table in the vault says of how cells are written, and the columns of
    tokens, under the job's names; raises DataError where the two do not go together."""
    if not source.stored:
        return source, frozenset()
    with _content(source, vault) as content:
        head = read_head(content.reader, source.file)[0]
    written = as_written(source, head)
    try:
        check_texts(written)  # 1,0 and 1 are one cell only where the comma is the decimal sign
    except SourceProblem as problem:
        said = "\n  ".join(f"{key}: {message}" for key, message in problem.faults)
        raise DataError(f"{source.file}: {said}") from problem
    names = {name_of(ours): name_of(theirs) for ours, theirs in source.rename.items()}
    return written, frozenset(names.get(name, name) for name in head.tokenised)


def _content(source: Source, vault: Vault | None) -> AbstractContextManager[Content]:
    if vault is None:
        raise DataError(f"{source.file}: this command does not open the vault; export the table")
    return vault(source.stored)


def _opened(source: Source, path: Path, file: BinaryIO, size: int, faults: Faults | None) -> Table:
    label = str(path)
    if source.file_format == "csv":
        blocks, total = _blocks(file, size), None if source.packing else size
        if source.packing:
            blocks = packed.blocks(file, source.packing, label, BLOCK_BYTES)
        return CsvText(blocks, source, label, unit="bytes", total=total, faults=faults)
    if not size:
        raise DataError(f"{path}: the file is empty")
    if source.file_format == "excel":
        return excel(path, label, source)
    return _COLUMNAR[source.file_format](path, label)


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first `size` bytes: a file to which others append might otherwise never end."""
    while size > 0 and (block := file.read(min(BLOCK_BYTES, size))):
        size -= len(block)
        yield block


_COLUMNAR = {"parquet": columnar.parquet, "arrow": columnar.arrow, "npz": columnar.npz}


def _check_names(
    table: Table,
    faults: Faults,
    schema: Schema,
    source: Source,
    wanted: Sequence[str],
    fillable: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Note faults of the columns' names; return the required ones that are missing or appear
    twice."""
    where = table.header_place
    ignored = {source_name for source_name in source.ignore if source_name not in source.rename}
    names = set(table.names)
    missing = [name for name in wanted if name not in names and name not in fillable]
    sign = _other_delimiter(table.names, source)
    if missing and sign:
        # All other faults, of renames or of the fields of a line, follow from this.
        faults.header(
            f"{where}missing {_columns(missing)}; there is only one column, with {sign} in its "
            f'name: is that the delimiter (delimiter = "{sign}")?'
        )
        faults.check()
    for fault in header_faults(table, ignored, wanted):
        faults.header(fault)
    extra = [name for name in table.names if name not in schema and name not in ignored]
    if missing:
        hint = f"; not in the schema: {_list(extra)}" if extra else ""
        faults.header(f"{where}missing {_columns(missing)}{hint}")
    elif extra:
        named = list(dict.fromkeys(extra))
        verb, them = ("is", "it") if len(named) == 1 else ("are", "them")
        faults.header(
            f"{where}{_columns(named)} {verb} not in the schema; remove {them} from the table, "
            f"or list {them} in this node's configuration: ignore = {_toml(extra)}"
            + (' ("" is a column without a name)' if "" in extra else "")
        )
    times = Counter(table.names)
    return frozenset(name for name in wanted if times[name] != 1)


def header_faults(
    table: Table, ignored: Collection[str], wanted: Collection[str] = ()
) -> list[str]:
    """Faults of a header by itself: names that appear twice, unless they are ignored, and names to
    be replaced that do not appear."""
    twice = [name for name, count in Counter(table.names).items() if count > 1]
    found = [
        _twice(name, name in wanted) for name in twice if name in wanted or name not in ignored
    ]
    return [table.header_place + fault for fault in (*found, *table.unknown)]


def _other_delimiter(names: Sequence[str], source: Source) -> str:
    """Which other delimiter a table of one column suggests; or ""."""
    if len(names) != 1 or source.file_format != "csv":
        return ""
    found = [sign for sign in ";\t,|" if sign in names[0] and sign != source.separator]
    return found[0].replace("\t", "\\t") if found else ""


def _twice(name: str, is_wanted: bool) -> str:
    if is_wanted:
        return (
            f"column {name!r} appears twice, but the job uses it; rename one in the file, or "
            'name all columns in this node\'s configuration (header = ["…"], skip_lines = 1)'
        )
    return (
        f"column {name!r} appears twice; rename one, or list the name under ignore in this "
        "node's configuration"
    )


def _toml(names: Sequence[str]) -> str:
    """The names in the form of a node's file, if there are few."""
    if len(names) > 5:
        return "[…]"
    return quoted(names)


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {_list(names)}"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_ADVICE = "no other owner has values of it; remove the column from the job"


def _check_whole(
    table: TypedTable, schema: Schema, faults: Faults, alone: bool, absent: frozenset[str]
) -> list[str]:
    """Columns about which these rows say nothing: warnings, or faults if nobody else has the
    columns."""
    found = []
    for index, name in enumerate(table.names):
        if name in faults.faulty or not table.rows:
            continue
        values, present = table.values[:, index], ~table.missing[:, index]
        first = int(np.argmax(present))
        if name in absent:
            what = "is not in the table, so that every cell is missing"
        elif not present[first]:
            what = "every cell is missing"
        elif (
            table.rows > 1
            and not schema[name].constant
            and not np.any((values != values[first]) & present)
        ):
            what = (
                "every row has the same value, which explains nothing (constant = true in the "
                "schema, if that is intended)"
            )
        else:
            continue
        if alone and name not in absent:
            faults.whole(f"{faults.titled(name)}: {what}; {_ADVICE}")
        elif not alone:
            found.append(f"{faults.titled(name)}: {what}")
    return found


def _check_duplicates(table: TypedTable, faults: Faults) -> None:
    """Note records that appear twice, by their identifiers."""
    if not table.identifiers:
        return
    seen: dict[tuple[str, ...], int] = {}
    again: list[int] = []
    for row, key in enumerate(zip(*table.identifiers.values(), strict=True)):
        if seen.setdefault(key, row) != row:
            again.append(row)
    if not again or table.places is None:
        return
    keys = list(table.identifiers.values())
    before = seen[tuple(texts[again[0]] for texts in keys)]
    names = " and ".join(repr(name) for name in table.identifiers)
    faults.records(
        table.places[again],
        f"column {names}: identifies the same record as {table.where(before)}; each record may "
        "appear once",
    )


def reporting(
    table: Table, progress: Report | None, rows: int | None = None
) -> Callable[[int], None]:
    """Gets how much is done, and calls `progress` with the remaining time.

    rows: the expected number, for tables that do not know theirs.
    """
    started = time.monotonic()
    total = rows if table.total is None and table.unit == "rows" else table.total

    def report(done: int) -> None:
        if progress is None:
            return
        left = None
        if total and done:
            left = (time.monotonic() - started) * max(total - done, 0) / done
        progress(Progress(done, total, table.unit, left))

    return report
