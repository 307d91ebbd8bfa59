"""A query to SQLite or PostgreSQL as a table, read only and streamed.

SQLite is opened read-only. PostgreSQL sends the rows by COPY in one read-only transaction, as CSV
text, so that neither side holds them all; columns of booleans, floating-point numbers, dates or
times keep their types, as from files with types. A URL or an argument never contains a password:
libpq reads it from a file (`password_file`, or its own PGPASSFILE). A connection to another machine
requires TLS with a check of the server's certificate, and only the URL (`postgres_url`) determines
the connection: libpq's environment variables are hidden.

A database's messages may quote rows, so only SQLSTATE and the kind of an error are passed on.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import polars

from mpc_train.errors import DataError
from mpc_train.tables.postgres_url import CHECKED_TLS, UrlError, parse_url
from mpc_train.tables.readers.csv_text import BLOCK_BYTES, CsvText
from mpc_train.tables.reading import Chunk, Place, Table, Unit
from mpc_train.tables.source import SQLITE, Source, label_of
from mpc_train.tables.spelling import name_of

CHUNK_ROWS = 10_000
MAX_CELL_BYTES = 1 << 20
"""SQLite refuses a longer text or blob."""
CONNECT_TIMEOUT_S = 20
EXACT_INTEGERS = 1 << 53
"""Beyond these, different whole numbers may become the same floating-point number."""


@contextlib.contextmanager
def open_query(source: Source) -> Iterator[Table]:
    """The rows of the source's query; raises DataError."""
    label = label_of(source)
    opened = _sqlite(source, label) if source.url.startswith(SQLITE) else _postgres(source, label)
    with opened as table:
        yield table


class _Result:
    """What a `Table` says of itself where it is the result of a query."""

    unknown: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] | None = None
    header_place = ""
    place: Place = "row"
    unit: Unit = "rows"
    total: int | None = None


class _Rows(_Result):
    """A `Table` of SQLite's rows."""

    def __init__(self, cursor: sqlite3.Cursor, label: str) -> None:
        self._cursor, self._label = cursor, label
        self.names = tuple(name_of(column[0]) for column in cursor.description)

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        positions = [self.names.index(name) for name in wanted]
        done = 0
        while rows := self._cursor.fetchmany(CHUNK_ROWS):
            columns = list(zip(*rows, strict=True))
            series = [
                self._series(name, columns[position])
                for name, position in zip(wanted, positions, strict=True)
            ]
            places = np.arange(done + 1, done + len(rows) + 1)
            done += len(rows)
            yield Chunk(polars.DataFrame(series), places, done)

    def _series(self, name: str, cells: Sequence[Any]) -> polars.Series:
        """SQLite types each cell separately; a column of several types is read as text."""
        kinds = {type(cell) for cell in cells} - {type(None)}
        if bytes in kinds:
            raise DataError(
                f"{self._label}: column {name!r}: contains binary data, which is not a cell"
            )
        if kinds <= {int}:
            return polars.Series(name, cells, dtype=polars.Int64)
        if kinds <= {int, float} and not any(
            isinstance(cell, int) and abs(cell) > EXACT_INTEGERS for cell in cells
        ):
            return polars.Series(name, [None if cell is None else float(cell) for cell in cells])
        return polars.Series(name, [None if cell is None else str(cell) for cell in cells])


@contextlib.contextmanager
def _sqlite(source: Source, label: str) -> Iterator[Table]:
    path = Path(source.url.removeprefix(SQLITE))
    if not path.exists():
        raise DataError(f"{label}: there is no such database file")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
        try:
            cursor = connection.execute(source.query)
            if cursor.description is None:
                raise DataError(f"{label}: the query does not give a table; one SELECT is needed")
            yield _Rows(cursor, label)
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise DataError(
            f"{label}: SQLite refused ({name}); try the query in its own shell, read-only"
        ) from error


@contextlib.contextmanager
def _postgres(source: Source, label: str) -> Iterator[Table]:
    try:
        import psycopg
        from psycopg import conninfo, sql
    except ImportError as error:
        raise DataError(
            f"{label}: needs the PostgreSQL driver; install it: pip install 'mpc-train[postgres]'"
        ) from error
    parameters = connection_parameters(source, label)
    try:
        information = conninfo.make_conninfo("", **parameters)
        with _without_environment():
            connection = psycopg.connect(information, connect_timeout=CONNECT_TIMEOUT_S)
    except psycopg.Error as error:
        # libpq's message about a connection names host, user and reason, but not the password.
        raise DataError(f"{label}: cannot connect: {' '.join(str(error).split())}") from error
    # The server writes the form that CsvText reads: UTF-8, commas, ISO dates, points in numbers.
    spelling = msgspec.structs.replace(
        source, delimiter=",", quote='"', encoding="utf-8", header=True, decimal="."
    )
    copy_out = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER true)")
    query: Any = source.query.strip().removesuffix(";")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SET LOCAL datestyle = 'ISO, YMD'")
            types = _types(connection, query)
            with cursor.copy(copy_out.format(sql.SQL(query))) as copy:
                text = CsvText(_blocks(copy), spelling, label, unit="rows", total=None, place="row")
                yield _Typed(text, types, label)
    except psycopg.Error as error:
        raise DataError(
            f"{label}: PostgreSQL refused (SQLSTATE {error.sqlstate}, {type(error).__name__}); try "
            "the query in psql, in a read-only transaction"
        ) from error


@contextlib.contextmanager
def _without_environment() -> Iterator[None]:
    """Hide every variable that libpq reads: PGHOSTADDR, PGSERVICE, PGSSLMODE and so on."""
    hidden = {key: value for key, value in os.environ.items() if key.startswith("PG")}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _types(connection: Any, query: str) -> list[int]:
    """The type number in PostgreSQL of each of the query's columns; nothing is executed."""
    from psycopg import errors, pq

    raw = connection.pgconn
    for result in (raw.prepare(b"", query.encode()), raw.describe_prepared(b"")):
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise errors.error_from_result(result)
    return [result.ftype(column) for column in range(result.nfields)]


_BOOLEAN, _BYTES, _DATE, _TIMESTAMP = 16, 17, 1082, 1114
_FLOATS = {700: polars.Float32(), 701: polars.Float64()}


class _Typed(_Result):
    """A `Table` of the server's text, in which columns of some types are converted."""

    def __init__(self, text: CsvText, types: Sequence[int], label: str) -> None:
        self._text, self._label = text, label
        self.names = text.names
        self._types: Mapping[str, int] = dict(zip(text.names, types, strict=True))

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        for chunk in self._text.chunks(wanted):
            frame = chunk.frame
            for name in wanted:
                frame = frame.with_columns(self._typed(name, frame[name], chunk))
            yield Chunk(frame, chunk.places, chunk.done)

    def _typed(self, name: str, cells: polars.Series, chunk: Chunk) -> polars.Series:
        kind = self._types[name]
        if kind == _BYTES:
            raise DataError(
                f"{self._label}: column {name!r}: contains binary data, which is not a cell"
            )
        if kind == _BOOLEAN:
            return cells.replace({"t": "true", "f": "false"})
        if kind in _FLOATS:
            return cells.cast(_FLOATS[kind], strict=False)
        if kind not in (_DATE, _TIMESTAMP):
            return cells
        found: polars.Series = (
            cells.str.to_date("%Y-%m-%d", strict=False)
            if kind == _DATE
            else cells.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
        )
        # Infinity and years before 1 or after 9999, which the server has but columns here do not.
        plain = cells.str.contains(r"^([0-9]{4}-[0-9-]{5}( [0-9:.]+)?)?$")
        bad = (~plain | (found.is_null() & (cells != ""))).to_numpy()
        if bad.any():
            row = chunk.places[int(np.argmax(bad))]
            raise DataError(
                f"{self._label}: row {row}: column {name!r}: a date beyond the years 1 to 9999"
            )
        return found


def _blocks(copy: Iterable[Any]) -> Iterator[bytes]:
    """The server sends single rows; parsing needs blocks."""
    block = bytearray()
    for part in copy:
        block += part
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def connection_parameters(source: Source, label: str) -> dict[str, str]:
    """The parameters for libpq; raises DataError for a refused URL, or for a password file that
    others can read."""
    try:
        url = parse_url(source.url)
    except UrlError as error:
        raise DataError(f"{label}: url: {error}") from error
    parameters = {
        **url.parameters,
        "host": url.host,
        "port": str(url.port or ""),
        "dbname": url.database,
        "user": url.user,
        # Encryption by Kerberos would replace TLS, and with it the check of the certificate.
        "gssencmode": "disable",
    }
    if not url.is_local:
        parameters["sslmode"] = CHECKED_TLS
        parameters.setdefault("sslrootcert", "system")
    passwords = source.password_file or os.environ.get("PGPASSFILE", "")
    if passwords:
        path = Path(passwords)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if stat.S_IMODE(mode) & 0o077:
            raise DataError(f"{path}: others may read this password; chmod 600 {path.name}")
        parameters["passfile"] = os.fspath(path)
    return {key: value for key, value in parameters.items() if value}
