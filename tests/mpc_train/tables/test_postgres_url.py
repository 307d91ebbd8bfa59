"""A database's URL: what could lead a connection past the check of a certificate is refused."""

import os

import pytest

from mpc_train.errors import DataError
from mpc_train.tables.postgres_url import PARAMETERS, UrlError, parse_url
from mpc_train.tables.readers.database import connection_parameters
from mpc_train.tables.source import Source, SourceProblem, check_source


@pytest.mark.parametrize(
    ("url", "host", "database", "port", "user", "local"),
    [
        ("postgresql://me@db.example.org:5433/crm", "db.example.org", "crm", 5433, "me", False),
        ("postgres://[2001:db8::1]/crm", "2001:db8::1", "crm", None, "", False),
        ("postgresql://10.0.0.1/a%20b", "10.0.0.1", "a b", None, "", False),
        ("postgresql:///crm", "", "crm", None, "", True),
        ("postgresql://me%40office@localhost/crm", "localhost", "crm", None, "me@office", True),
        ("postgresql://127.0.0.1/crm", "127.0.0.1", "crm", None, "", True),
        ("postgresql://[::1]/crm", "::1", "crm", None, "", True),
        ("postgresql://%2Fvar%2FRun/crm", "/var/Run", "crm", None, "", True),
        ("postgresql:///crm?host=/var/Run", "/var/Run", "crm", None, "", True),
        ("postgresql:///crm?host=db.example.org", "db.example.org", "crm", None, "", False),
        ("postgresql://127.0.0.1.example.org/crm", "127.0.0.1.example.org", "crm", None, "", False),
        ("postgresql://localhost.example.org/crm", "localhost.example.org", "crm", None, "", False),
        ("postgresql://0/crm", "0", "crm", None, "", False),
    ],
)
def test_what_a_url_says(
    url: str, host: str, database: str, port: int | None, user: str, local: bool
) -> None:
    found = parse_url(url)
    assert (found.host, found.database, found.port, found.user) == (host, database, port, user)
    assert found.is_local == local
    parameters = connection_parameters(Source(url=url, query="select 1"), "t")
    assert (parameters.get("sslmode") == "verify-full") == (not local)
    assert parameters["gssencmode"] == "disable"
    assert "hostaddr" not in parameters


REFUSED = [
    *(
        (f"postgresql://db.example.org/crm?{key}=x", f"the parameter {key!r} is not allowed")
        for key in (
            *("hostaddr", "service", "servicefile", "options", "requiressl", "gssencmode", "port"),
            *("dbname", "user", "passfile", "target_session_attrs", "load_balance_hosts"),
            *("sslnegotiation", "require_auth", "replication", "sslkeylogfile", "krbsrvname"),
        )
    ),
    ("postgresql://localhost,db.example.org/crm", "one host is needed"),
    ("postgresql://localhost:5432,db.example.org:5432/crm", "one host"),
    ("postgresql:///crm?host=localhost,db.example.org", "one host is needed"),
    ("postgresql:///crm?host=/run,db.example.org", "one host is needed"),
    ("postgresql://%2Frun%2Cdb.example.org/crm", "one host is needed"),
    ("postgresql:///crm?host=@abstract", "one host is needed"),
    ("postgresql:///crm?host=a%20b", "one host is needed"),
    ("postgresql://localhost/crm?host=db.example.org", "two hosts"),
    ("postgresql:///crm?host=localhost&host=db.example.org", "twice"),
    ("postgresql://db.example.org/crm?sslmode=verify-full&sslmode=disable", "twice"),
    ("postgresql://db.example.org/crm?sslmode=", "is empty"),
    ("postgresql://db.example.org/crm?sslmode", "one host and one port"),
    ("postgresql://db.example.org/crm?sslmode=disable", "verify-full is required"),
    ("postgresql://db.example.org/crm?sslmode=VERIFY-FULL", "verify-full is required"),
    ("postgresql://db.example.org:99999/crm", "one port"),
    ("postgresql://db.example.org:5432x/crm", "one port"),
    ("postgresql://[::1/crm", "one host"),
    ("postgresql://db.example.org/crm#x", "%23"),
    ("postgresql://me:pw@db.example.org/crm", "contains a password"),
    ("postgresql://db.example.org/crm?password=pw", "contains a password"),
    ("postgresql://db.example.org/a%00b", "zero byte"),
]


@pytest.mark.parametrize(("url", "says"), REFUSED)
def test_what_is_refused_by_name(url: str, says: str) -> None:
    with pytest.raises(UrlError, match=says.replace("(", r"\(")):
        parse_url(url)
    source = Source(url=url, query="select 1")
    with pytest.raises(SourceProblem, match=says) as caught:
        check_source(source)
    assert caught.value.key == "url"
    with pytest.raises(DataError, match=says):
        connection_parameters(source, "t")


def test_every_parameter_of_the_driver_is_listed_or_refused() -> None:
    psycopg = pytest.importorskip("psycopg")
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    assert set(PARAMETERS) <= known
    for key in known - set(PARAMETERS):
        with pytest.raises(UrlError):
            parse_url(f"postgresql://db.example.org/crm?{key}=1")


def test_the_driver_sees_nothing_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    psycopg = pytest.importorskip("psycopg")
    from mpc_train.tables.loading.load import open_table

    variables = [
        option.envvar.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.envvar and option.keyword != b"passfile"
    ]
    for name in (*variables, "PGSERVICEFILE", "PGSYSCONFDIR", "PGTZ"):
        monkeypatch.setenv(name, "x")
    seen: dict[str, str] = {}

    def connect(information: str, **_: object) -> None:
        seen.update({key: value for key, value in os.environ.items() if key.startswith("PG")})
        raise psycopg.OperationalError("seen")

    monkeypatch.setattr(psycopg, "connect", connect)
    source = Source(url="postgresql://db.example.org/crm", query="select 1")
    with pytest.raises(DataError, match="cannot connect: seen"), open_table(source):
        pass
    assert not seen
    assert os.environ["PGHOSTADDR"] == "x"
