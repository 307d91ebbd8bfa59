"""The same table from every format is the same typed table."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.tables.loading import load as loading
from mpc_train.tables.loading.load import load
from mpc_train.tables.readers import columnar
from mpc_train.tables.reading import Progress
from mpc_train.tables.source import Source
from tests.support.tables import NAMES, ROWS, SCHEMA, expected, frame


def csv(folder: Path) -> Source:
    path = folder / "t.csv"
    frame().write_csv(path)
    return Source(str(path))


def dialect(folder: Path) -> Source:
    """As a spreadsheet of central Europe saves it: semicolons, decimal commas, no header."""
    path = folder / "t.txt"
    table = frame().with_columns(
        polars.col("since").dt.strftime("%d.%m.%Y"),
        polars.col("income").cast(polars.String).str.replace(".", ",", literal=True),
    )
    text = table.write_csv(
        separator=";", include_header=False, quote_char="'", line_terminator="\r\n"
    )
    path.write_bytes(text.encode("cp1252"))
    return Source(
        str(path),
        delimiter=";",
        quote="'",
        encoding="cp1252",
        header=tuple(table.columns),
        decimal=",",
        date_formats={"since": "%d.%m.%Y"},
    )


def utf16(folder: Path) -> Source:
    path = folder / "t.tsv"
    path.write_bytes(frame().write_csv(separator="\t").encode("utf-16"))
    return Source(str(path), encoding="utf-16")


def parquet(folder: Path) -> Source:
    path = folder / "t.parquet"
    frame().write_parquet(path, row_group_size=13)
    return Source(str(path))


def categorical(folder: Path) -> Source:
    """Types that databases and data frames choose for the same cells."""
    path = folder / "t.parquet"
    frame().with_columns(
        polars.col("region").cast(polars.Categorical),
        polars.col("member").cast(polars.Int8),
        polars.col("age").cast(polars.Float32).fill_null(float("-9")),
        polars.col("since").cast(polars.Datetime),
    ).write_parquet(path)
    return Source(str(path))


def arrow(folder: Path) -> Source:
    path = folder / "t.arrow"
    frame().write_ipc(path)
    return Source(str(path))


def arrow_stream(folder: Path) -> Source:
    path = folder / "t.stream"
    frame().write_ipc_stream(path)
    return Source(str(path), format="arrow")


def npz(folder: Path) -> Source:
    path = folder / "t.npz"
    table = frame()
    arrays = {name: table[name].to_numpy() for name in ("income",)}
    arrays |= {
        name: np.array([str(c) if c is not None else "" for c in table[name].to_list()])
        for name in ("customer", "age", "region", "member", "since")
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Source(str(path))


def sqlite(folder: Path) -> Source:
    path = folder / "t.db"
    table = frame()
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (customer, age, income, region, member, since)")
        rows = table.with_columns(polars.col("since").cast(polars.String)).rows()
        connection.executemany("insert into t values (?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return Source(url=f"sqlite:///{path}", query="select * from t order by rowid")


FORMATS = (csv, dialect, utf16, parquet, categorical, arrow, arrow_stream, npz, sqlite)


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_every_format_gives_the_same_numbers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Source],
    rows: int | None,
) -> None:
    # Many small chunks, so that a row, a cell and a character lie across their borders.
    monkeypatch.setattr(loading, "BLOCK_BYTES", 101)
    monkeypatch.setattr(columnar, "CHUNK_CELLS", 40)
    news: list[Progress] = []
    table = load(
        make(tmp_path),
        SCHEMA,
        names=NAMES,
        identifiers=("customer",),
        rows=rows,
        progress=news.append,
    )
    values, missing = expected()
    assert np.array_equal(table.missing, missing)
    assert np.array_equal(table.values, values)
    assert list(table.identifiers["customer"]) == [f'C"{row},x' for row in range(ROWS)]
    assert "C" not in repr(table)
    assert (len(news) > 1) == (make is not sqlite)
    assert [item.done for item in news] == sorted(item.done for item in news)
    if news[-1].total is not None:
        assert news[-1].done == news[-1].total
        assert news[-1].seconds_left == 0


def test_columns_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    table = load(csv(tmp_path), SCHEMA, names=("since", "age"))
    values, _ = expected()
    assert np.array_equal(table.values, values[:, [4, 0]])
    assert np.array_equal(table.column("age"), values[:, 0])
    assert not table.identifiers


def test_rows_know_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"1\n\n",2\n3,4\n"5\n",6\n7,8\n')
    schema = type(SCHEMA)(columns=tuple(_numbers("a", "b")))
    table = load(Source(str(path)), schema, names=("a", "b"))
    assert [table.where(row) for row in range(4)] == ["line 2", "line 5", "line 6", "line 8"]
    other = load(parquet(tmp_path), SCHEMA, names=("income",))
    assert other.where(4) == "row 5"


def _numbers(*names: str) -> list:
    return [type(SCHEMA["age"])(name, "number") for name in names]


def test_two_axes_of_an_npz_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    x = np.arange(12.0).reshape(4, 3)
    np.savez(path, x=x, y=np.array([1, 0, 1, 0]))
    schema = type(SCHEMA)(columns=tuple(_numbers("x_0", "x_1", "x_2", "y")))
    assert np.array_equal(load(Source(str(path)), schema, names=("x_0", "x_1", "x_2")).values, x)


def test_a_number_code_stands_for_a_missing_value_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("age\n-9\n -9.0\n1\nNA\n-9e0\n2\n")
    table = load(Source(str(path)), type(SCHEMA)((SCHEMA["age"],)), names=("age",))
    assert table.missing[:, 0].tolist() == [True, True, False, True, True, False]
    assert table.values[:, 0].tolist() == [0, 0, 1, 0, 0, 2]
