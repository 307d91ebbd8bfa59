"""A query to SQLite or PostgreSQL as a table, read only and streamed.

SQLite is opened read-only. From PostgreSQL the rows come by COPY in one read-only transaction, as
CSV text, so that neither side holds them all and there is one way to read text. A password never
stands in a URL or an argument: libpq finds it in a file (`password_file`, or its own PGPASSFILE).
To another machine TLS with the server's certificate checked is required.

Messages of a database may quote rows: only SQLSTATE and the kind of an error are passed on.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec
import numpy as np
import polars

from mpc_train.errors import DataError
from mpc_train.tables.csv_text import BLOCK_BYTES, CsvText
from mpc_train.tables.reading import Chunk, Table, Unit
from mpc_train.tables.source import SQLITE, Source, label_of

CHUNK_ROWS = 10_000
CONNECT_TIMEOUT_S = 20
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
CHECKED_TLS = "verify-full"


@contextlib.contextmanager
def open_query(source: Source) -> Iterator[Table]:
    """The rows that the source's query gives; raises DataError."""
    label = label_of(source)
    opened = _sqlite(source, label) if source.url.startswith(SQLITE) else _postgres(source, label)
    with opened as table:
        yield table


class _Rows:
    """A `Table` of SQLite's rows."""

    header_place = ""
    place: Literal["line", "row"] = "row"
    unit: Unit = "rows"
    total: int | None = None

    def __init__(self, cursor: sqlite3.Cursor, label: str) -> None:
        self._cursor, self._label = cursor, label
        self.names = tuple(column[0] for column in cursor.description)

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
        """SQLite types each cell for itself; a column of several types is taken as text."""
        kinds = {type(cell) for cell in cells} - {type(None)}
        if bytes in kinds:
            raise DataError(f"{self._label}: column {name!r}: holds binary data, which is no cell")
        if kinds <= {int}:
            return polars.Series(name, cells, dtype=polars.Int64)
        if kinds <= {int, float}:
            return polars.Series(name, [None if cell is None else float(cell) for cell in cells])
        return polars.Series(name, [None if cell is None else str(cell) for cell in cells])


@contextlib.contextmanager
def _sqlite(source: Source, label: str) -> Iterator[Table]:
    path = Path(source.url.removeprefix(SQLITE))
    if not path.exists():
        raise DataError(f"{label}: there is no such database file")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            cursor = connection.execute(source.query)
            if cursor.description is None:
                raise DataError(f"{label}: the query gives no table; one SELECT is needed")
            yield _Rows(cursor, label)
        finally:
            connection.close()
    except sqlite3.Error as error:
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
        connection = psycopg.connect(information, connect_timeout=CONNECT_TIMEOUT_S)
    except psycopg.Error as error:
        # What libpq says of a connection names host, user and reason, and no password.
        raise DataError(f"{label}: cannot connect: {' '.join(str(error).split())}") from error
    # The server writes what CsvText reads: UTF-8, commas, ISO dates, points in numbers.
    spelling = msgspec.structs.replace(
        source, delimiter=",", quote='"', encoding="utf-8", header=True, decimal="."
    )
    copy_out = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER true)")
    query: Any = source.query.strip().removesuffix(";")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SET LOCAL datestyle = 'ISO, YMD'")
            with cursor.copy(copy_out.format(sql.SQL(query))) as copy:
                yield CsvText(_blocks(copy), spelling, label, unit="rows", total=None, place="row")
    except psycopg.Error as error:
        raise DataError(
            f"{label}: PostgreSQL refused (SQLSTATE {error.sqlstate}, {type(error).__name__}); try "
            "the query in psql, in a read-only transaction"
        ) from error


def _blocks(copy: Iterable[Any]) -> Iterator[bytes]:
    """The server sends row by row; parsing is by the block."""
    block = bytearray()
    for part in copy:
        block += part
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def connection_parameters(source: Source, label: str) -> dict[str, str]:
    """What libpq is given; raises DataError for a password that can be read by others."""
    parts = urlsplit(source.url)
    parameters = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    host = parameters.get("host") or unquote(parts.hostname or "")
    parameters |= {"dbname": unquote(parts.path.lstrip("/")), "host": host}
    if parts.port is not None:
        parameters["port"] = str(parts.port)
    if parts.username:
        parameters["user"] = unquote(parts.username)
    if host not in LOCAL_HOSTS and not host.startswith("/"):
        if parameters.setdefault("sslmode", CHECKED_TLS) != CHECKED_TLS:
            raise DataError(
                f"{label}: sslmode = {CHECKED_TLS} is required to another machine; a server with a "
                "certificate of your own: add sslrootcert=/path/to/ca.pem to the URL"
            )
        parameters.setdefault("sslrootcert", "system")
    if source.password_file:
        path = Path(source.password_file)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if stat.S_IMODE(mode) & 0o077:
            raise DataError(f"{path}: others may read this password; chmod 600 {path.name}")
        parameters["passfile"] = os.fspath(path)
    return {key: value for key, value in parameters.items() if value}
