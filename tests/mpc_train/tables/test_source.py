"""What stands under [data] of a node's file: options that contradict each other are named."""

from pathlib import Path

import pytest

from mpc_train.tables.source import Source, SourceProblem, check_source, label_of, resolved


def test_the_format_follows_from_the_name() -> None:
    assert Source("A.CSV").file_format == "csv"
    assert Source("a.tsv").separator == "\t"
    assert Source("a.parquet").file_format == "parquet"
    assert Source("a.data", format="arrow").file_format == "arrow"
    for name in ("a.csv", "a.feather", "a.npz", "a.txt"):
        check_source(Source(name))


WRONG = [
    (Source(), "file", "path"),
    (Source("a.csv", url="sqlite:///b", query="select 1"), "file", "path"),
    (Source("a.data"), "format", "cannot be determined"),
    (Source("a.csv", query="select 1"), "query", "does not have this option"),
    (Source("a.parquet", delimiter=";"), "delimiter", "does not have this option"),
    (Source("a.csv", delimiter=";;"), "delimiter", "one ASCII"),
    (Source("a.csv", delimiter='"'), "delimiter", "also the quotation mark"),
    (Source("a.csv", decimal=","), "delimiter", "decimal sign"),
    (Source("a.csv", encoding="klingon"), "encoding", "not a known encoding"),
    (Source("a.csv", encoding="hex"), "encoding", "not a known encoding"),
    (Source("a.csv", header=False), "header", "name the columns"),
    (Source("a.csv", header=("a", "a")), "header", "twice"),
    (Source("a.csv", date_format="YYYY"), "date_format", "form of a date"),
    (Source("a.csv", date_formats={"b": "YYYY"}), "date_formats.b", "form of a date"),
    (Source("a.csv", date_format="%d.%m.%y"), "date_format", "without the century"),
    (Source("a.csv", date_format="%d.%m.%y", date_pivot=-1930), "date_pivot", "like 1930"),
    (Source("a.csv", date_pivots={"b": 1930}), "date_pivot", "no date format here has %y"),
    (Source("a.csv", date_format="%d.%m.%y", date_pivots={"b": 1930}), "date_format", "century"),
    (
        Source("a.csv", date_formats={"b": "%D"}, date_pivot=1930, date_pivots={"b": 0}),
        "date_formats.b",
        "century",
    ),
    (Source("a.parquet", date_format="%d.%m.%Y %H:%M %Z"), "date_format", "%Z is not supported"),
    (Source("a.csv", header=("e\u0301", "\u00e9 ")), "header", "twice"),
    (Source(url="mysql://a/b", query="select 1"), "url", "sqlite:///"),
    (Source(url="postgresql://me:pw@host/db", query="select 1"), "url", "contains a password"),
    (
        Source(url="postgresql://host/db?password=pw", query="select 1"),
        "url",
        "contains a password",
    ),
    (Source(url="postgresql://host/db?hostaddr=1.2.3.4", query="select 1"), "url", "'hostaddr'"),
    (Source(url="postgresql://me@host/db"), "query", "one SELECT"),
    (Source(url="postgresql://me@host/db", query="select 1", encoding="x"), "encoding", "database"),
    (Source(url="sqlite:///a", query="select 1", password_file="p"), "password_file", "SQLite"),
]


@pytest.mark.parametrize(("source", "key", "says"), WRONG)
def test_a_contradiction_is_named(source: Source, key: str, says: str) -> None:
    with pytest.raises(SourceProblem) as caught:
        check_source(source)
    assert caught.value.key == key
    assert says in str(caught.value)


def test_paths_become_absolute_and_labels_say_no_user(tmp_path: Path) -> None:
    found = resolved(
        Source(url="sqlite:///a.db", query="select 1", password_file="p"), lambda p: tmp_path / p
    )
    assert found.url == f"sqlite:///{tmp_path}/a.db"
    assert found.password_file == f"{tmp_path}/p"
    assert label_of(found) == f"{tmp_path}/a.db"
    url = "postgresql://me@host:5433/db?sslmode=verify-full"
    assert label_of(Source(url=url, query="select 1")) == "postgresql://host/db"
