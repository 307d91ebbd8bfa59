"""One table in every format: the same inputs, or the same error."""

import csv
import datetime
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpc_train.base.problem import JobProblem
from mpc_train.errors import DataError
from mpc_train.tables.cells import decode
from mpc_train.tables.faults import CellError
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Column, Kind, Schema, check_schema
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import entry_of
from mpc_train.tables.typed import TypedTable
from tests.mpc_train.tables.conftest import Server

DAY = datetime.date
WORDS: tuple[str, ...] = (
    "1",
    "1.0",
    " 1e0 ",
    "01",
    "2.5",
    "2.50",
    "-9",
    "-9.0",
    "NA",
    "nan",
    "NaN",
    "",
    " ",
    "yes",
)
WORDS += ("TRUE", "é", "e\u0301 ", "Ja, oft", "2020-01-01", "9999-12-31", "1_0", "0x1", "+1", "-0")
ENTRIES = ("1", "2.5", "-9", "NA", "NaN", "", "é", "01", "true", "2020-01-01", "9999-12-31", "x")
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "int": st.sampled_from([0, 1, 2, -9, 2**60 + 1, 20200101]),
    "float": st.sampled_from([0.0, 1.0, 2.5, -9.0, 1e20, 1e-7, 0.1, float("inf"), -0.0]),
    "bool": st.booleans(),
    "date": st.sampled_from([DAY(2020, 1, 1), DAY(1949, 3, 12), DAY(9999, 12, 31)]),
    "text": st.sampled_from(WORDS),
}
TYPES: dict[str, polars.DataType] = {
    "int": polars.Int64(),
    "float": polars.Float64(),
    "bool": polars.Boolean(),
    "date": polars.Date(),
    "text": polars.String(),
}
FITTING: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "number": (("int", "float", "text"), (*WORDS[:9], "+1", "-0", "nan", "")),
    "category": (tuple(CELLS), WORDS),
    "boolean": (
        ("int", "bool", "float", "text"),
        ("1.0", " 1e0 ", "-0", "yes", "TRUE", "-9.0", "NA"),
    ),
    "date": (("date", "text"), ("2020-01-01", " 2020-01-01", "9999-12-31", "NA", "")),
}
"""By kind of a column, what its cells are mostly made of: types, and text."""
NAMES = ("e\u0301tat", "x")


@dataclass(frozen=True)
class Case:
    """kinds: how the cells are typed. rows: by column."""

    kinds: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    schema: Schema


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    kinds, rows, columns = [], [], []
    for name in NAMES:
        kind: Kind = draw(st.sampled_from(["number", "category", "boolean", "date"]))
        types, words = FITTING[kind]
        if fits := draw(st.integers(0, 5)) > 0:
            typed = draw(st.sampled_from(types))
            cell = st.sampled_from(words) if typed == "text" else CELLS[typed]
        else:
            typed = draw(st.sampled_from(sorted(CELLS)))
            cell = CELLS[typed]
        if typed != "text" and draw(st.booleans()):
            cell = cell | st.none()
        codes = draw(st.lists(st.sampled_from(ENTRIES), unique=True, max_size=4))
        codes += ["", "NA", "-9"] if fits else []
        entries = st.lists(st.sampled_from(ENTRIES), unique=True, min_size=1, max_size=4)
        levels = draw(entries) if kind == "category" else []
        column = Column(
            unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), name),
            kind,
            levels=tuple(level for level in levels if level),
            missing=tuple(code for code in dict.fromkeys(codes) if code not in levels),
            other=kind == "category" and draw(st.integers(0, 3)) > 0,
            constant=draw(st.integers(0, 5)) > 0,
        )
        kinds.append(typed)
        rows.append(tuple(draw(st.lists(cell, min_size=count, max_size=count))))
        columns.append(column)
    schema = Schema(tuple(columns))
    try:
        check_schema(schema)
    except JobProblem:
        assume(False)
    return Case(tuple(kinds), tuple(rows), schema)


def frame(case: Case) -> polars.DataFrame:
    return polars.DataFrame(
        [
            polars.Series(name, cells, dtype=TYPES[typed])
            for name, typed, cells in zip(NAMES, case.kinds, case.rows, strict=True)
        ]
    )


def as_csv(case: Case, folder: Path) -> Source:
    path = folder / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        writer.writerows([written(cell) for cell in row] for row in zip(*case.rows, strict=True))
    return Source(str(path))


def written(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    return "" if cell is None else str(cell)


def as_parquet(case: Case, folder: Path) -> Source:
    path = folder / "t.parquet"
    frame(case).write_parquet(path)
    return Source(str(path))


def as_arrow(case: Case, folder: Path) -> Source:
    path = folder / "t.arrow"
    frame(case).with_columns(polars.col(polars.String).cast(polars.Categorical)).write_ipc(path)
    return Source(str(path))


def as_npz(case: Case, folder: Path) -> Source:
    """Arrays know no null but that of dates: where something is missing they hold text."""
    path = folder / "t.npz"
    arrays = {}
    for name, typed, cells in zip(NAMES, case.kinds, case.rows, strict=True):
        if typed == "date":
            arrays[name] = np.array(cells, dtype="datetime64[D]")
        elif None in cells:
            arrays[name] = np.array([written(cell) for cell in cells])
        else:
            arrays[name] = np.array(cells)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Source(str(path))


def as_sqlite(case: Case, folder: Path) -> Source:
    """It knows numbers and text; a truth value is one number of two."""
    path = folder / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f'create table t ("{NAMES[0]}", "{NAMES[1]}")')
        rows = [
            [str(cell) if isinstance(cell, DAY) else cell for cell in row]
            for row in zip(*case.rows, strict=True)
        ]
        connection.executemany("insert into t values (?, ?)", rows)
    connection.close()
    return Source(url=f"sqlite:///{path}", query="select * from t order by rowid")


FORMATS: tuple[Callable[[Case, Path], Source], ...] = (as_parquet, as_arrow, as_npz, as_sqlite)


def outcome(case: Case, source: Source, label: str = "") -> list[Any]:
    """Values and what is missing, or the error without the file and with rows counted alike."""
    try:
        table = load(source, case.schema, names=case.schema.names)
    except DataError as error:
        label = label or source.file or source.url.removeprefix("sqlite:///")
        message = str(error).replace(label, "")
        return [re.sub(r"line(s?) (\d+(?:, \d+)*)", as_rows, message)]
    return [table.values.tolist(), table.missing.tolist()]


def as_rows(match: re.Match[str]) -> str:
    """Places of lines as those of rows."""
    return f"row{match[1]} {', '.join(str(int(line) - 1) for line in match[2].split(', '))}"


def knows(make: Callable[[Case, Path], Source], case: Case) -> bool:
    """Whether the format tells these cells apart as the others do."""
    columns = zip(case.schema.columns, case.kinds, strict=True)
    return make is not as_sqlite or all(
        typed != "bool" or column.kind == "boolean" for column, typed in columns
    )


@given(cases())
@settings(max_examples=100, deadline=None)
def test_every_format_gives_the_same_inputs_or_the_same_error(case: Case) -> None:
    check(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=1_000, deadline=None)
def test_and_of_many_tables(case: Case) -> None:
    check(case)


def check(case: Case) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        expected = outcome(case, as_csv(case, folder))
        for make in FORMATS:
            if knows(make, case):
                assert outcome(case, make(case, folder)) == expected, make.__name__


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_a_server_gives_them_too(postgres: Server, case: Case) -> None:
    types = {"int": "bigint", "float": "float8", "bool": "bool", "date": "date", "text": "text"}

    def literal(cell: Any) -> str:
        return "null" if cell is None else "'" + str(cell).replace("'", "''") + "'"

    rows = ", ".join(
        f"({number}, {', '.join(map(literal, row))})"
        for number, row in enumerate(zip(*case.rows, strict=True))
    )
    names = [
        f'c{place}::{types[typed]} as "{name}"'
        for place, (name, typed) in enumerate(zip(NAMES, case.kinds, strict=True))
    ]
    query = f"select {', '.join(names)} from (values {rows}) as t (n, c0, c1) order by n"  # noqa: S608
    url = f"postgresql://admin@/study?host={postgres.folder}"
    source = Source(url=url.replace("@/", f"@:{postgres.port}/"), query=query)
    with TemporaryDirectory() as name:
        expected = outcome(case, as_csv(case, Path(name)))
    assert outcome(case, source, f"postgresql://{postgres.folder}/study") == expected


def one(cells: polars.Series, column: Column) -> tuple[list[float], list[bool]]:
    values, missing = decode(cells, column, Source("t.parquet"))
    return values.tolist(), missing.tolist()


def test_a_code_is_known_in_every_width_of_numbers() -> None:
    column = Column("x", "number", missing=("-9.9", "1000000007"))
    for kind in (polars.Float64, polars.Float32, polars.Float16):
        cells = polars.Series([-9.9, 1.5], dtype=kind)
        assert one(cells, column) == ([0.0, 1.5], [True, False])
    for whole in (polars.Int32, polars.Int64, polars.UInt32, polars.Int128):
        cells = polars.Series([1000000007, 7], dtype=whole)
        assert one(cells, column) == ([0.0, 7.0], [True, False])


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=19), min_size=1))
def test_decimals_are_the_numbers_that_their_digits_are(decimals: list[Decimal]) -> None:
    decimals = [number for number in decimals if abs(number) < 10**18]
    cells = polars.Series(decimals, dtype=polars.Decimal(38, 19))
    values, _ = one(cells, Column("x", "number"))
    assert values == [float(number) for number in decimals]


@given(
    st.from_regex(r"[+-]?(0|[1-9][0-9]{0,60})(\.[0-9]{0,60})?(e[+-]?[0-9]{1,2})?", fullmatch=True)
)
def test_numbers_of_any_length_are_one_entry_only_if_they_are_equal(text: str) -> None:
    entry = entry_of(text)
    assert Decimal(entry) == Decimal(text)
    assert entry_of(entry) == entry
    assert entry_of(f"{entry}.00" if "." not in entry else f"{entry}0") == entry
    more = f"{entry}{'' if '.' in entry else '.'}{'0' * 30}1"
    assert entry_of(more) != entry


@pytest.mark.parametrize(
    "text", ["007", "1_0", "0x1", "1e99999", "1,5", "١", "1e", "-", "+", "Nan"]
)
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert entry_of(text) == text


def test_with_a_decimal_comma_numbers_are_compared_as_well() -> None:
    column = Column("x", "category", levels=("1", "2.5"), missing=("-9",))
    cells = polars.Series(["1,0", "2,50", "-9,0", "1"])
    values, missing = decode(cells, column, Source("t.csv", decimal=",", delimiter=";"))
    assert (values.tolist(), missing.tolist()) == ([0, 1, 0, 0], [False, False, True, False])
    with pytest.raises(CellError, match="not one of the declared"):
        decode(polars.Series(["1.0"]), column, Source("t.csv", decimal=",", delimiter=";"))


def loaded(source: Source, *names: str, identifiers: tuple[str, ...] = ()) -> TypedTable:
    columns = [Column(name, "number") for name in names]
    columns += [Column(name, "identifier") for name in identifiers]
    return load(source, Schema(tuple(columns)), names=names, identifiers=identifiers)


def test_two_columns_whose_names_differ_in_their_encoding_only(tmp_path: Path) -> None:
    frame = polars.DataFrame({"e\u0301": [1, 2], "é": [3, 4], "x": [5, 6]})
    csv_file, parquet, npz, base = (
        tmp_path / f"t.{end}" for end in ("csv", "parquet", "npz", "db")
    )
    frame.write_csv(csv_file)
    frame.write_parquet(parquet)
    arrays = {name: frame[name].to_numpy() for name in frame.columns}
    np.savez(npz, **arrays)  # type: ignore[arg-type]
    base.touch()
    query = 'select 1 as "e\u0301", 3 as "é", 5 as x union select 2, 4, 6'
    for source in (
        Source(str(csv_file)),
        Source(str(parquet)),
        Source(str(npz)),
        Source(url=f"sqlite:///{base}", query=query),
    ):
        with pytest.raises(DataError, match="column 'é' appears twice; rename one, or list"):
            loaded(source, "x")
        if source.file:
            ignoring = Source(source.file, ignore=("e\u0301",))
            assert loaded(ignoring, "x").values[:, 0].tolist() == [5, 6]
            with pytest.raises(DataError, match="appears twice"):
                loaded(ignoring, "é")


def test_arrays_that_make_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.arange(4.0).reshape(2, 2), x_0=np.array([7, 8]))
    with pytest.raises(DataError, match="column 'x_0' appears twice"):
        loaded(Source(str(path)), "x_1", "x_0")


def test_identifiers_of_one_spelling_in_every_format(tmp_path: Path) -> None:
    ids = [" Ana\u0308 ", "007", "7"]
    csv_file, npz = tmp_path / "t.csv", tmp_path / "t.npz"
    polars.DataFrame({"id": ids, "x": [1, 2, 3]}).write_csv(csv_file)
    np.savez(npz, id=np.array(ids), x=np.array([1, 2, 3]))
    for path in (csv_file, npz):
        table = loaded(Source(str(path)), "x", identifiers=("id",))
        assert table.identifiers["id"] == ["Anä", "007", "7"]
    numbers = {"id": [1042.0, 7.0, 0.0], "x": [1, 2, 3]}
    parquet, text = tmp_path / "t.parquet", tmp_path / "u.parquet"
    polars.DataFrame(numbers).write_csv(csv_file)
    assert "1042.0" in csv_file.read_text()
    polars.DataFrame(numbers).write_parquet(parquet)
    polars.read_csv(csv_file, infer_schema=False).write_parquet(text)
    for path in (csv_file, parquet, text):
        frame = Schema((Column("id", "identifier"), Column("x", "number")))
        table = load(Source(str(path)), frame, names=("x",), identifiers=("id",))
        assert table.identifiers["id"] == ["1042", "7", "0"]
    kept = ["1.50", "007.0", "1e3", "1.0.0", "A.0"]
    polars.DataFrame({"id": kept, "x": range(5)}).write_csv(csv_file)
    assert loaded(Source(str(csv_file)), "x", identifiers=("id",)).identifiers["id"] == kept
    polars.DataFrame({"id": ["A1", " A1"], "x": [1, 2]}).write_csv(csv_file)
    with pytest.raises(DataError, match="identifies the same record as line 2"):
        loaded(Source(str(csv_file)), "x", identifiers=("id",))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array(["2020-01", "2020-02"], "datetime64[M]"), "datetime64"),
        (np.array([1 + 2j, 3]), "complex128, which a column cannot have"),
        (np.array([1, 2], np.longdouble), "which a column cannot have"),
        (np.array([(1, 2), (3, 4)], dtype="i4,i4"), "which a column cannot have"),
        (np.array([b"1", b"2"]), "is of type Binary"),
        (np.array([1, 2], "timedelta64[s]"), "is of type Duration"),
    ],
)
def test_arrays_that_are_no_cells(tmp_path: Path, array: np.ndarray, says: str) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=array)
    with pytest.raises(DataError, match=says):
        loaded(Source(str(path)), "x")


@pytest.mark.parametrize("unit", ["D", "h", "s", "ms", "us", "ns"])
def test_arrays_of_dates(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.array(["1949-03-12", "NaT"], f"datetime64[{unit}]"))
    schema = Schema((Column("x", "date", missing=("",), constant=True),))
    table = load(Source(str(path)), schema, names=("x",))
    assert (table.values[0, 0], table.missing[:, 0].tolist()) == (-7600, [False, True])


def test_sqlite_keeps_the_digits_of_whole_numbers_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (x)")
        connection.executemany("insert into t values (?)", [(2**53 + 1,), (1.5,), (2**53,)])
    connection.close()
    level = str(2**53 + 1)
    column = Column("x", "category", levels=(level, "1.5", str(2**53)))
    source = Source(url=f"sqlite:///{path}", query="select * from t order by rowid")
    assert load(source, Schema((column,)), names=("x",)).values[:, 0].tolist() == [0, 1, 2]
