"""What `schema infer` drafts is what the loader takes, from every format and every odd table."""

import datetime
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpc_train.errors import DataError
from mpc_train.tables.drafts.infer import Draft, infer
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Schema, load_schema
from mpc_train.tables.source import Source, check_source
from tests.mpc_train.tables.test_formats import written

DAY = datetime.date
Column = tuple[str, polars.DataType, list[Any]]


def loads(folder: Path, source: Source) -> tuple[Schema, Draft]:
    """Load a table by its draft: all features, and each identifier."""
    draft = infer(source)
    path = folder / "schema.toml"
    path.write_text(draft.text)
    schema = load_schema(path)
    check_source(draft.source)
    names = [column.name for column in schema.columns if column.kind != "identifier"]
    for identifiers in ((), *((name,) for name in schema.identifiers)):
        if names or identifiers:
            load(draft.source, schema, names=names, identifiers=identifiers, unique=False)
    return schema, draft


POOLS: tuple[tuple[polars.DataType, tuple[Any, ...]], ...] = (
    (polars.Float64(), (1.5, 2.25, -9.0, 99.0, 999.0, 0.1, None)),
    (polars.Float64(), (1e300, -1e300, 1.7e308, -1.7e308, 5e-324, 0.0, 1e31, 1e-40)),
    (polars.Float64(), (float("inf"), float("nan"), 1.0, 2.0, None)),
    (polars.Float32(), (0.1, 0.2, 16777216.0, None)),
    (polars.Int64(), (0, 1, 2, -9, -999, 2**62, None)),
    (polars.Int64(), (20200101, 20200102, 19991231)),
    (polars.Boolean(), (True, False, None)),
    (polars.Date(), (DAY(1, 1, 1), DAY(9999, 12, 31), DAY(2020, 2, 29), None)),
    (polars.String(), ("1.234", "1,5", "2.5", "007", "1_0", "", "NA", "١", "1e400")),
    (polars.String(), ("1", "1.0", " 1e0", "2", "-", "?", "unknown", "nan")),
    (polars.String(), ("yes", "No", "1.0", "0", "n/a")),
    (polars.String(), ("12.03.1949", "01.02.2020", "3.4.1999", "")),
    (polars.String(), ("03/04/2020", "05/06/2020", "13/06/2020")),
    (polars.String(), ("2020-01-01 00:00:00", "2020-01-02 00:00:00", "2020-01-02 00:00:01")),
    (polars.String(), ("é", "e\u0301", "É", 'say "it"', "a\\b", "\x7f", "x" * 1_500, " ")),
    (polars.String(), ("12.03.49", "2020-W01", "12 Mar 2020")),
)
NAMES = ("", "age", "é", "patient_id", 'a "b"', "a.b", "\x7f", "x" * 1_200, "née ", "#", "=")


@st.composite
def tables(draw: st.DrawFn) -> list[Column]:
    rows = draw(st.integers(1, 24))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    found: list[Column] = []
    for name in names:
        kind, pool = draw(st.sampled_from(POOLS))
        some = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique_by=repr))
        # Entries that are seen often and one that is rare.
        cells = [some[draw(st.integers(0, len(some) - 1)) if row % 5 else 0] for row in range(rows)]
        found.append((name, kind, cells))
    return found


def sources(columns: list[Column], folder: Path) -> list[Source]:
    frame = polars.DataFrame(
        [polars.Series(name, cells, dtype=kind) for name, kind, cells in columns]
    )
    found = [folder / f"t.{end}" for end in ("csv", "parquet", "arrow", "npz")]
    frame.write_csv(found[0])
    frame.write_parquet(found[1])
    frame.write_ipc(found[2])
    arrays = {
        name: np.array([written(cell) for cell in cells]) if None in cells else np.array(cells)
        for name, _, cells in columns
        if not (isinstance(cells[0], DAY) or DAY in map(type, cells))
    }
    np.savez(found[3], **arrays)  # type: ignore[arg-type]
    base = folder / "t.db"
    with sqlite3.connect(base) as connection:
        titles = ", ".join('"' + name.replace('"', '""') + '"' for name, _, _ in columns)
        connection.execute("drop table if exists t")
        connection.execute(f"create table t ({titles})" if "" not in titles.split(", ") else "")
        rows = [
            [str(cell) if isinstance(cell, DAY) else cell for cell in row]
            for row in zip(*(cells for _, _, cells in columns), strict=True)
        ]
        marks = ", ".join("?" * len(columns))
        connection.executemany(f"insert into t values ({marks})", rows)  # noqa: S608
    connection.close()
    made = [Source(str(path)) for path in (found if arrays else found[:3])]
    return [*made, Source(url=f"sqlite:///{base}", query="select * from t order by rowid")]


@given(tables())
@example([("patient_id", polars.String(), ["a", "", "c"]), ("x", polars.Int64(), [1, 2, 3])])
@example([("x", polars.Float64(), [-1.7e308, 1.7e308, 0.0])])
@settings(max_examples=25, deadline=None)
def test_a_draft_loads_from_every_format(columns: list[Column]) -> None:
    check(columns)


@pytest.mark.slow
@given(tables())
@settings(max_examples=300, deadline=None)
def test_and_of_many_tables(columns: list[Column]) -> None:
    check(columns)


def check(columns: list[Column]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for source in sources(columns, folder):
            try:
                loads(folder, source)
            except DataError as error:
                assert "no column has a draft" in str(error), error


@given(tables(), st.sampled_from(["%d.%m.%y", "%Y%m%d", "%d.%m.%Y"]))
@settings(max_examples=25, deadline=None)
def test_a_draft_loads_in_another_spelling(columns: list[Column], form: str) -> None:
    pivot = 1930 if "%y" in form else 0
    with TemporaryDirectory() as name:
        path = Path(name) / "t.csv"
        frame = polars.DataFrame(
            [polars.Series(name, cells, dtype=kind) for name, kind, cells in columns]
        )
        frame.write_csv(path, separator=";")
        source = Source(str(path), delimiter=";", decimal=",", date_format=form, date_pivot=pivot)
        try:
            loads(Path(name), source)
        except DataError as error:
            assert "no column has a draft" in str(error), error


def test_what_has_no_draft_stands_there_as_a_comment_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    polars.DataFrame(
        {
            "": range(30),
            "stay": [datetime.timedelta(hours=hour) for hour in range(30)],
            "list": [[1]] * 30,
            "seen": [datetime.datetime(2020, 1, 1, hour % 24) for hour in range(30)],
            "blob": [b"1"] * 30,
            "gone": [None] * 30,
            "weight": [*map(str, range(60, 89)), "heavy"],
            "age": [30 + row // 2 for row in range(30)],
        }
    ).write_parquet(path)
    schema, draft = loads(tmp_path, Source(str(path)))
    assert schema.names == ("age",)
    assert draft.source.ignore == ("", "stay", "list", "seen", "blob", "gone", "weight")
    for says in (
        "column '': omitted: has no name; correct it, or list it under ignore",
        "column 'stay': omitted: is of type Duration",
        "column 'list': omitted: is of type List",
        "column 'seen': omitted: row 2: a time of day beside the date",
        "column 'blob': omitted: is of type Binary",
        "column 'gone': omitted: all cells are empty",
        "column 'weight': omitted: row 30: not a number",
    ):
        assert any(warning.startswith(says) for warning in draft.warnings)
    assert "heavy" not in draft.text
    assert '# ignore = ["", "stay"' in draft.text
    # The draft of what only has to be corrected stands there as well.
    assert '# name = "weight"\n# kind = "number"\n' in draft.text


def test_columns_of_no_name_and_of_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",age,,e\u0301\n1,2,3,4\n2,3,4,6\n")
    schema, draft = loads(tmp_path, Source(str(path)))
    assert (schema.names, draft.source.ignore) == (("age", "é"), ("",))
    path.write_text("é,age,e\u0301\n1,2,3\n2,3,4\n")
    with pytest.raises(DataError, match="line 1: column 'é' appears twice; rename one, or li"):
        infer(Source(str(path)))


def test_a_table_without_rows_has_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n")
    with pytest.raises(DataError, match="columns but no row"):
        infer(Source(str(path)))


def test_numbers_are_read_as_the_loader_reads_them(tmp_path: Path) -> None:
    """A point under a decimal comma groups thousands; 1_0 and ١ are no numbers."""
    path = tmp_path / "t.csv"
    path.write_text("a;b;c\n" + "1.234;1_0;1,5\n1.235;1_1;2,5\n" * 10)
    schema, _ = loads(tmp_path, Source(str(path), delimiter=";", decimal=","))
    assert [column.kind for column in schema.columns] == ["category", "category", "number"]
    assert schema["c"].bounds == (1, 3)


def test_dates_that_fit_two_forms_are_said_to(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("seen,x\n03/04/2020,1\n05/06/2020,2\n")
    schema, draft = loads(tmp_path, Source(str(path)))
    assert schema["seen"].kind == "date"
    assert draft.source.date_formats == {"seen": "%d/%m/%Y"}
    assert any("also fit the form %m/%d/%Y" in what for what in draft.warnings)
