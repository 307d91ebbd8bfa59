"""Whatever is wrong with a table is named with file, line and column, and no cell is repeated."""

import os
import sqlite3
from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.loading import load as loading
from mpc_train.tables.loading.load import load
from mpc_train.tables.reading import Progress
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source

SECRET = "77x125"
SCHEMA = Schema(
    (
        Column("id", "identifier"),
        Column("age", "number", missing=("NA",)),
        Column("region", "category", levels=("north", "south")),
        Column("since", "date"),
        Column("member", "boolean"),
    )
)
NAMES = ("age", "region", "since", "member")
HEADER = "id,age,region,since,member"


def lines(rows: int = 20) -> list[str]:
    regions, members = ("north", "south"), ("yes", "no")
    return [
        HEADER,
        *(
            f"p{row},{20 + row},{regions[row % 2]},2020-01-{row + 1:02},{members[row % 2]}"
            for row in range(rows)
        ),
    ]


def write(folder: Path, rows: list[str] | bytes) -> Source:
    path = folder / "t.csv"
    path.write_bytes(rows if isinstance(rows, bytes) else ("\n".join(rows) + "\n").encode())
    return Source(str(path))


def refused(source: Source, schema: Schema = SCHEMA, names: tuple[str, ...] = NAMES) -> str:
    known = tuple(name for name in schema.identifiers)
    with pytest.raises(DataError) as caught:
        load(source, schema, names=names, identifiers=known)
    message = str(caught.value)
    assert message.startswith(f"{source.file or source.url.removeprefix('sqlite:///')}: ")
    assert SECRET not in message
    return message


def test_a_good_table_loads(tmp_path: Path) -> None:
    assert load(write(tmp_path, lines()), SCHEMA, names=NAMES, identifiers=("id",)).rows == 20


CELLS = [
    (f"p8,{SECRET},south,2020-01-08,no", "'age'", "not a number"),
    ("p8,,south,2020-01-08,no", "'age'", 'empty; if that means a missing value, list ""'),
    ("p8,inf,south,2020-01-08,no", "'age'", "infinite"),
    (f"p8,28,{SECRET},2020-01-08,no", "'region'", "not one of the declared levels 'north'"),
    ("p8,28,South,2020-01-08,no", "'region'", "not one of the declared levels"),
    ("p8,28,,2020-01-08,no", "'region'", "empty"),
    ("p8,28,south,08.01.2020,no", "'since'", "not a date in the form %Y-%m-%d"),
    ("p8,28,south,2020-13-08,no", "'since'", "forms are not guessed and not mixed"),
    ("p8,28,south,,no", "'since'", "empty"),
    (f"p8,28,south,2020-01-08,{SECRET}", "'member'", "neither true nor false"),
    (" ,28,south,2020-01-08,no", "'id'", "identifies nobody"),
    ("p3,28,south,2020-01-08,no", "'id'", "the same record as line 5"),
    (f"p8,28,south,2020-01-08,no,{SECRET}", "6 fields", "header has 5"),
    (f"p8,{SECRET},south,no", "4 fields", "header has 5"),
    ("", "blank", "blank"),
    (f'p8,"{SECRET}"x,south,2020-01-08,no', "", "quotation mark"),
    (f'p8,a"{SECRET},south,2020-01-08,no', "", "quotation mark"),
]


@pytest.mark.parametrize(("line", "column", "says"), CELLS)
def test_a_bad_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, column: str, says: str
) -> None:
    rows = lines()
    rows[9] = line
    for block in (8 << 20, 64):
        monkeypatch.setattr(loading, "BLOCK_BYTES", block)
        message = refused(write(tmp_path, rows))
        assert "t.csv: line 10: " in message
        assert column in message
        assert says in message


def test_a_quotation_mark_that_is_never_closed(tmp_path: Path) -> None:
    rows = lines()
    rows[9] = '"p8,28,south,2020-01-08,no'
    assert "line 10 or later: a quotation mark is never closed" in refused(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("encoding", "text", "place", "advice"),
    [
        ("utf-8", b"\xfcber", "line 4: byte 74 of the file is not utf-8", "cp1252"),
        ("ascii", b"\xc3\xbcber", "line 4: byte 74 of the file is not ascii", "encoding"),
        ("utf-8", b"a\0b", "line 4: a zero byte", "text cannot contain; remove it"),
        ("cp1252", b"\x81", "line 4: byte 74 of the file is not cp1252", "set how the file"),
    ],
)
@pytest.mark.parametrize("block", [8 << 20, 10])
def test_a_wrong_encoding_is_named_with_line_and_byte(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    text: bytes,
    place: str,
    advice: str,
    block: int,
) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", block)
    rows = "\n".join(lines()).encode().splitlines()
    rows[3] = text + rows[3]
    raw = b"\n".join(rows)
    if "byte 74" in place:
        place = place.replace("74", str(raw.index(text)))
    source = write(tmp_path, raw)
    message = refused(Source(source.file, encoding=encoding))
    assert place in message
    assert advice in message


def test_utf_16_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    source = write(tmp_path, "\n".join(lines()).encode("utf-16"))
    assert 'encoding = "utf-16"' in refused(source)


def test_columns_of_one_value_or_none(tmp_path: Path) -> None:
    rows = [HEADER, *(line.replace("no", "yes").replace("yesrth", "north") for line in lines()[1:])]
    assert "column 'member': every row has the same value" in refused(write(tmp_path, rows))
    declared = Schema(
        tuple(
            Column(c.name, c.kind, levels=c.levels, constant=True) if c.name == "member" else c
            for c in SCHEMA.columns
        )
    )
    assert load(write(tmp_path, rows), declared, names=NAMES).rows == 20
    rows = [HEADER, *(f"{p},NA,{rest}" for p, _, rest in (r.split(",", 2) for r in lines()[1:]))]
    assert "column 'age': every cell is missing" in refused(write(tmp_path, rows))
    rows[3] = lines()[3]
    assert "column 'age': every row has the same value" in refused(write(tmp_path, rows))


def test_columns_that_are_missing_double_or_unknown(tmp_path: Path) -> None:
    rows = lines()
    for header, says in (
        ("id,age,region,since,since", "line 1: column 'since' appears twice"),
        ("id,age,region,since,x", "line 1: missing column 'member'; not in the schema: 'x'"),
    ):
        assert says in refused(write(tmp_path, [header, *rows[1:]]))
    wide = [f"{HEADER},x", *(f"{line},{SECRET}" for line in rows[1:])]
    source = write(tmp_path, wide)
    assert "line 1: column 'x' is not in the schema" in refused(source)
    ignoring = Source(source.file, ignore=("x",))
    assert load(ignoring, SCHEMA, names=NAMES).rows == 20
    unnamed = Source(source.file, header=("id", "age"))
    assert "line 1: 6 fields where there are columns: 2" in refused(
        unnamed, Schema(SCHEMA.columns[:2]), ("age",)
    )


def test_too_few_and_too_many_rows(tmp_path: Path) -> None:
    source = write(tmp_path, lines())
    for rows, says in (
        (19, "rows are 20, but the job says 19"),
        (21, "rows are 20, but the job says 21"),
    ):
        with pytest.raises(DataError, match=says):
            load(source, SCHEMA, names=NAMES, rows=rows)
    with pytest.raises(DataError, match="columns but no row"):
        load(write(tmp_path, [HEADER]), SCHEMA, names=NAMES)
    with pytest.raises(DataError, match="the file is empty"):
        load(write(tmp_path, b"\n\n"), SCHEMA, names=NAMES)


def test_identifiers_of_several_columns_are_one(tmp_path: Path) -> None:
    schema = Schema((Column("a", "identifier"), Column("b", "identifier"), Column("x", "number")))
    source = write(tmp_path, ["a,b,x", "1,1,1", "1,2,2", "2,1,3"])
    assert load(source, schema, names=("x",), identifiers=("a", "b")).rows == 3
    with pytest.raises(DataError, match="line 3: column 'a': identifies the same record as line 2"):
        load(source, schema, names=("x",), identifiers=("a",))


@pytest.mark.parametrize("keeps_time", [False, True])
@pytest.mark.parametrize("change", ["append", "alter", "replace", "remove"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, change: str, keeps_time: bool
) -> None:
    source = write(tmp_path, lines())
    path = Path(source.file)
    before = path.stat()

    def meddle(_: Progress) -> None:
        raw = path.read_bytes()
        if change == "append":
            path.write_bytes(raw + b"p99,50,north,2020-01-01,yes\n")
        elif change == "alter":
            path.write_bytes(raw.replace(b",38,", b",39,"))
        elif change == "replace":
            path.rename(tmp_path / "old.csv")
            path.write_bytes(raw.replace(b",38,", b",39,"))
        else:
            path.unlink()
        if keeps_time and change != "remove":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(DataError, match=r"t\.csv: changed while it was read; nothing was shared"):
        load(source, SCHEMA, names=NAMES, progress=meddle)


FILES = [
    ("t.parquet", b"PAR1 but no more", "cannot be read in its format"),
    ("t.parquet", b"", "the file is empty"),
    ("t.arrow", b"ARROW1\0\0nothing", "cannot be read in its format"),
    ("t.feather", b"nothing at all", "cannot be read in its format"),
    ("t.npz", b"PK\x03\x04 nothing", "not an npz file"),
    ("t.npz", b"nothing", "not an npz file"),
]


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert says in refused(Source(str(path)))


def test_objects_in_an_npz_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, age=np.array([1, "a", None], dtype=object))
    assert "without objects" in refused(Source(str(path)))
    np.savez(path, age=np.zeros(3), region=np.zeros(4))
    assert "[3, 4] rows" in refused(Source(str(path)))
    np.savez(path, age=np.zeros((3, 2, 2)))
    assert "missing columns 'age'" in refused(Source(str(path)))
    np.savez(path, age=np.array(3.0))
    assert "one number, without rows" in refused(Source(str(path)))


TYPED = [
    ("age", polars.Series([1, None, 3]), "row 2: column 'age': the cell is empty"),
    ("age", polars.Series([1.0, float("nan"), 3]), "row 2: column 'age': not a number (NaN)"),
    ("age", polars.Series([True, False, True]), "row 1: column 'age': not a number"),
    ("age", polars.Series([b"1", b"2", b"3"]), "column 'age': is of type Binary"),
    (
        "region",
        polars.Series(["north", None, "south"]),
        "row 2: column 'region': the cell is empty",
    ),
    ("region", polars.Series([[1], [2], [3]]), "column 'region': is of type List"),
    ("region", polars.Series([1.0, 1.5, 2.0]), "row 1: column 'region': not one of the declared"),
    ("since", polars.Series([20200101, 2, 3]), "row 1: column 'since': not a date in the form"),
    ("since", polars.Series([1.0, 2.0, 3.0]), "row 1: column 'since': not a date in the form"),
    (
        "since",
        polars.Series(["2020-01-01 00:00", "2020-01-02 03:04"]).str.to_datetime(),
        "row 2: column 'since': a time of day",
    ),
    ("id", polars.Series([1.0, 2.5, 3.0]), "row 2: column 'id': a number with a fraction"),
    ("id", polars.Series([1.0, None, 3.0]), "row 2: column 'id': the cell is empty"),
    ("id", polars.Series([1.0, 2.0, 2.0**53]), "row 3: column 'id': a floating-point number of"),
    (
        "id",
        polars.Series([1.0, -(2.0**24), 3.0], dtype=polars.Float32),
        "row 2: column 'id': a floating-point number of 16777216 or more has lost digits",
    ),
    ("id", polars.Series([7.0, 8.0, 7.0]), "row 3: column 'id': identifies the same record as row"),
    ("id", polars.Series([7, 8, 7]), "row 3: column 'id': identifies the same record as row 1"),
]


@pytest.mark.parametrize(("name", "cells", "says"), TYPED)
def test_cells_of_a_format_with_types(
    tmp_path: Path, name: str, cells: polars.Series, says: str
) -> None:
    path = tmp_path / "t.parquet"
    polars.DataFrame({name: cells, "x": range(len(cells))}).write_parquet(path)
    schema = Schema((SCHEMA[name], Column("x", "number")))
    names = tuple(n for n in ("x", name) if n != "id")
    assert says in refused(Source(str(path)), schema, names)


def test_a_number_that_nobody_can_hold_is_no_secret_loss_of_digits(tmp_path: Path) -> None:
    source = write(tmp_path, ["x", "1e400", "2"])
    assert "infinite" in refused(source, Schema((Column("x", "number"),)), ("x",))


def test_what_sqlite_refuses(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (age, x)")
        connection.execute("insert into t values (1, 2), (3, ?)", (SECRET,))
    connection.close()
    url = f"sqlite:///{path}"

    def says(query: str, names: tuple[str, ...] = ("age",)) -> str:
        schema = Schema(tuple(Column(name, "number") for name in ("age", "x")))
        return refused(Source(url=url, query=query), schema, names)

    assert "row 2: column 'x': not a number" in says("select age, x from t", ("age", "x"))
    assert "SQLITE_ERROR" in says("select nothing from t")
    assert "SQLITE_READONLY" in says("delete from t returning age")
    assert "does not give a table" in says("begin")
    assert "binary" in says("select x'00' as age from t")
    assert "no such database file" in refused(
        Source(url=f"{url}x", query="select 1"), Schema((Column("age", "number"),)), ("age",)
    )
