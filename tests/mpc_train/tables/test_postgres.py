"""A query to a PostgreSQL server that the test starts: streamed, read-only, no password shown."""

import datetime
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.loading.load import load
from mpc_train.tables.readers.database import connection_parameters
from mpc_train.tables.reading import Progress
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source, check_source
from tests.mpc_train.tables.conftest import PASSWORD, Server
from tests.support.tables import NAMES, ROWS, SCHEMA, expected, frame

SECRET = "77x125"


@pytest.fixture(scope="module")
def people(postgres: Server) -> Server:
    def literal(cell: object) -> str:
        if cell is None:
            return "null"
        if isinstance(cell, (str, datetime.date)):
            return "'" + str(cell).replace("'", "''") + "'"
        return repr(cell)

    rows = ", ".join(f"({', '.join(map(literal, row))})" for row in frame().rows())
    postgres.psql(
        "create table people (customer text, age int, income double precision, region text, "
        "member boolean, since date); create table broken (x text);"
    )
    postgres.psql(f"insert into people values {rows}")  # noqa: S608 - the test's own rows
    postgres.psql(f"insert into broken values ('1'), ('{SECRET}')")  # noqa: S608
    postgres.psql("grant select on people to reader; grant select on broken to reader")
    return postgres


def source(server: Server, folder: Path, query: str = "select * from people") -> Source:
    found = Source(url=server.url, query=query, password_file=str(server.password_file(folder)))
    check_source(found)
    return found


def test_the_rows_of_a_query_are_those_of_a_file(people: Server, tmp_path: Path) -> None:
    news: list[Progress] = []
    table = load(
        source(people, tmp_path, "select * from people order by since nulls first, customer;"),
        SCHEMA,
        names=NAMES,
        identifiers=("customer",),
        progress=news.append,
    )
    values, missing = expected()
    customers = frame()["customer"].to_list()
    order = [customers.index(name) for name in table.identifiers["customer"]]
    assert sorted(order) == list(range(ROWS))
    assert np.array_equal(table.values, values[order])
    assert np.array_equal(table.missing, missing[order])
    assert (news[-1].done, news[-1].unit) == (ROWS, "rows")
    assert table.where(4) == "row 5"


def test_many_rows_stream(people: Server, tmp_path: Path) -> None:
    query = "select n, n / 7.0 as x from generate_series(1, 300000) n"
    schema = Schema((Column("n", "number"), Column("x", "number")))
    news: list[Progress] = []
    asked = source(people, tmp_path, query)
    table = load(asked, schema, names=("n", "x"), progress=news.append)
    assert table.values[:, 0].sum() == 300000 * 300001 / 2
    assert np.allclose(table.values[:, 1], table.values[:, 0] / 7)


def test_a_password_may_come_from_libpqs_own_file(
    people: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = people.password_file(tmp_path)
    monkeypatch.setenv("PGPASSFILE", str(path))
    asked = Source(url=people.url, query="select age, customer from people where age is not null")
    schema = Schema((SCHEMA["age"], SCHEMA["customer"]))
    assert load(asked, schema, names=("age",)).rows == expected()[1][:, 0].tolist().count(False)


def test_the_environment_leads_nowhere_else(
    people: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOSTADDR", "PGHOST", "PGPORT", "PGSERVICE", "PGSSLMODE", "PGOPTIONS", "PGUSER"):
        monkeypatch.setenv(name, "203.0.113.1")
    assert load(source(people, tmp_path), SCHEMA, names=NAMES).rows == ROWS
    # A URL without a host is this machine's own socket, whatever PGHOST says.
    monkeypatch.setenv("PGHOST", str(people.folder))
    monkeypatch.setenv("PGPORT", str(people.port))
    with pytest.raises(DataError, match="cannot connect"):
        load(Source(url="postgresql://admin@/study", query="select 1"), SCHEMA, names=NAMES)
    path = people.password_file(tmp_path)
    path.chmod(0o640)
    monkeypatch.setenv("PGPASSFILE", str(path))
    with pytest.raises(DataError, match="others may read this password"):
        load(Source(url=people.url, query="select 1"), SCHEMA, names=NAMES)


def test_columns_come_with_their_types(people: Server, tmp_path: Path) -> None:
    """As from a file with types: what is a date there needs no form, what is no cell is refused."""
    query = (
        "select '1949-03-12'::date as a, timestamp '1949-03-12' as b, true as c, 7::float8 as d, "
        "1234567890.50::numeric as e union all select null, null, null, null, null order by a"
    )
    schema = Schema(
        (
            Column("a", "date", missing=("",), constant=True),
            Column("b", "date", missing=("",), constant=True),
            Column("c", "category", levels=("false", "true"), missing=("",), constant=True),
            Column("d", "category", levels=("1", "7"), missing=("",), constant=True),
            Column("e", "category", levels=("1", "1234567890.5"), missing=("",), constant=True),
        )
    )
    asked = msgspec.structs.replace(source(people, tmp_path, query), date_format="%d.%m.%Y")
    table = load(asked, schema, names=schema.names)
    assert table.values.tolist() == [[-7600, -7600, 1, 1, 1], [0] * 5]
    assert table.missing.tolist() == [[False] * 5, [True] * 5]
    only = Schema((Column("x", "date"),))
    for what, says in (
        ("timestamp '1949-03-12 00:00:01'", "row 1: column 'x': a time of day beside the date"),
        ("'infinity'::date", "row 1: column 'x': a date beyond the years 1 to 9999"),
        ("'0044-03-15 BC'::date", "row 1: column 'x': a date beyond"),
        ("'12000-01-01'::timestamp", "row 1: column 'x': a date beyond"),
        ("'x'::bytea", "column 'x': contains binary data"),
    ):
        asked = source(people, tmp_path, f"select {what} as x")
        assert says in refused(asked, only, ("x",))
    keys = Schema((Column("x", "identifier"), Column("y", "number", constant=True)))
    asked = source(people, tmp_path, "select 7::float8 as x, 1 as y")
    assert load(asked, keys, names=("y",), identifiers=("x",)).identifiers["x"] == ["7"]
    asked = source(people, tmp_path, "select 7.5::float8 as x, 1 as y")
    with pytest.raises(DataError, match="a number with a fraction is not an identifier"):
        load(asked, keys, names=("y",), identifiers=("x",))


def refused(asked: Source, schema: Schema = SCHEMA, names: tuple[str, ...] = NAMES) -> str:
    with pytest.raises(DataError) as caught:
        load(asked, schema, names=names)
    message = str(caught.value)
    assert message.startswith("postgresql://127.0.0.1/study: ")
    assert PASSWORD not in message
    assert SECRET not in message
    return message


def test_faults_name_row_and_column(people: Server, tmp_path: Path) -> None:
    schema = Schema((Column("x", "number"),))

    def says(query: str) -> str:
        return refused(source(people, tmp_path, query), schema, ("x",))

    assert "row 2: column 'x': not a number" in says("select x from broken")
    # The server's own message would quote the cell.
    assert "SQLSTATE 22P02" in says("select x::int as x from broken")
    assert "SQLSTATE 42P01" in says("select x from nowhere")
    assert "SQLSTATE 42501" in says("select rolpassword as x from pg_authid")
    assert "missing column 'x'; not in the schema: 'y'" in says("select x as y from broken")
    assert "row 1: column 'x': the cell is empty" in says("select null as x")
    assert "row 2: column 'x': the cell is empty" in says(
        "select * from (values (1), (null)) t (x)"
    )
    assert "columns but no row" in says("select x from broken where false")


def test_nothing_can_be_written(people: Server, tmp_path: Path) -> None:
    schema = Schema((Column("x", "number"),))
    for query, state in (
        ("insert into people values ('z') returning age as x", "25006"),
        ("select nextval('counter') as x", "25006"),
        ("select 1 as x) to stdout; drop table people; copy (select 1 as x", ""),
    ):
        people.psql("create sequence if not exists counter; grant all on counter to reader")
        people.psql("grant insert on people to reader")
        assert f"SQLSTATE {state}" in refused(source(people, tmp_path, query), schema, ("x",))
    assert load(source(people, tmp_path), SCHEMA, names=NAMES).rows == ROWS


def test_who_may_not_connect_is_told_why(people: Server, tmp_path: Path) -> None:
    asked = source(people, tmp_path)
    people.password_file(tmp_path, "wrong")
    assert "password authentication failed" in refused(asked)
    Path(asked.password_file).chmod(0o644)
    with pytest.raises(DataError, match="pgpass: others may read this password; chmod 600"):
        load(asked, SCHEMA, names=NAMES)
    Path(asked.password_file).unlink()
    with pytest.raises(DataError, match="pgpass: cannot be read"):
        load(asked, SCHEMA, names=NAMES)
    closed = Source(url="postgresql://reader@127.0.0.1:1/study", query="select 1")
    assert "cannot connect" in refused(closed)


def test_the_server_never_saw_the_password(people: Server, tmp_path: Path) -> None:
    load(source(people, tmp_path), SCHEMA, names=NAMES)
    with Path(f"/proc/{os.getpid()}/cmdline").open("rb") as arguments:
        assert PASSWORD.encode() not in arguments.read()


def test_another_machine_needs_checked_tls() -> None:
    def parameters(url: str) -> dict[str, str]:
        return connection_parameters(Source(url=url, query="select 1"), "t")

    remote = parameters("postgresql://me@db.example.org/study")
    assert (remote["sslmode"], remote["sslrootcert"]) == ("verify-full", "system")
    own = parameters("postgresql://db.example.org/study?sslrootcert=/ca.pem")
    assert (own["sslmode"], own["sslrootcert"]) == ("verify-full", "/ca.pem")
    for mode in ("disable", "prefer", "require", "verify-ca"):
        with pytest.raises(DataError, match="sslmode = verify-full is required"):
            parameters(f"postgresql://db.example.org/study?sslmode={mode}")
    with pytest.raises(DataError, match="required"):
        parameters("postgresql:///study?host=db.example.org&sslmode=disable")
    assert "sslmode" not in parameters("postgresql:///study?host=/var/run/postgresql")
    assert "sslmode" not in parameters("postgresql://127.0.0.1/study")
