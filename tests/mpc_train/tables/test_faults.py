"""An owner hears at once of everything that is wrong with its table, in a list that stays short."""

from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.faults import MAX_FAULTS, Faults
from mpc_train.tables.loading import load as loading
from mpc_train.tables.loading.load import load
from mpc_train.tables.readers import columnar
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source

NUMBERS = tuple(f"c{number}" for number in range(4))
SCHEMA = Schema(
    (
        Column("id", "identifier"),
        *(Column(name, "number") for name in NUMBERS),
        Column("day", "date"),
        Column("sex", "category", levels=("f", "m")),
    )
)
NAMES = (*NUMBERS, "day", "sex")
HEADER = ",".join(SCHEMA.names)


def rows(count: int = 30) -> list[list[str]]:
    return [
        [f"p{row}", *(["1"] * 4), f"2020-01-{row + 1:02}", "fm"[row % 2]] for row in range(count)
    ]


def varied(count: int = 30) -> list[list[str]]:
    return [[row[0], *([str(place)] * 4), *row[5:]] for place, row in enumerate(rows(count))]


def said(folder: Path, table: list[list[str]], **options: object) -> list[str]:
    path = folder / "t.csv"
    path.write_text("\n".join([HEADER, *map(",".join, table)]) + "\n")
    with pytest.raises(DataError) as caught:
        load(Source(str(path)), SCHEMA, names=NAMES, identifiers=("id",), **options)  # type: ignore[arg-type]
    message = str(caught.value).removeprefix(f"{path}: ")
    return message.split("\n  ")


@pytest.mark.parametrize("block", [8 << 20, 50])
def test_four_constant_columns_and_two_bad_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(loading, "BLOCK_BYTES", block)
    table = rows()
    table[3][5], table[9][5] = "04.01.2020", "2020-13-01"
    head, *found = said(tmp_path, table)
    assert head == "5 faults:"
    assert found[0].startswith("line 5: column 'day': not a date in the form %Y-%m-%d")
    assert found[0].endswith(" (and line 11)")
    for name, line in zip(NUMBERS, found[1:], strict=True):
        assert line.startswith(f"column '{name}': every row has the same value")


def test_kinds_of_faults_in_one_column_and_in_whole_records(tmp_path: Path) -> None:
    table = varied()
    for row in (2, 4, 5, 6, 7, 8):
        table[row][1] = "x"
    table[3][1], table[10][6], table[11][5] = "", "d", "2020-01-12 "
    table[12].append("more")
    table[14] = [""]
    table[16][0], table[18][0] = "p1", " "
    head, *found = said(tmp_path, table, rows=28)
    assert head == "7 faults:"
    assert [line.split("; ")[0] for line in found] == [
        "line 4: column 'c0': not a number (write it as 1234.5) (and lines 6, 7, 8 and 2 more)",
        "line 5: column 'c0': the cell is empty",
        "line 12: column 'sex': not one of the declared levels 'f', 'm'",
        "line 14: 8 fields where the header has 7",
        "line 16: the line is blank",
        "line 20: column 'id': the cell is empty, so it identifies nobody",
        "the table's rows are 30, but the job says 28",
    ]


def test_columns_that_are_missing_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,c0,c0,c2,day,x\na,1,1,y,2020-01-01,0\nb,1,1,2,z,0\n")
    with pytest.raises(DataError) as caught:
        load(Source(str(path)), SCHEMA, names=NAMES, identifiers=("id",))
    found = str(caught.value)
    for what in (
        "line 1: missing columns 'c1', 'c3', 'sex'; not in the schema: 'x'",
        "line 1: column 'c0' appears twice",
        "line 2: column 'c2': not a number",
        "line 3: column 'day': not a date",
    ):
        assert what in found


def test_records_that_stand_there_twice_are_counted(tmp_path: Path) -> None:
    table = varied()
    for row in (5, 7, 9):
        table[row][0] = "p1"
    (line,) = said(tmp_path, table)
    assert line.startswith("line 7: column 'id': identifies the same record as line 3")
    assert line.endswith("(and lines 9, 11)")


def test_what_breaks_the_reading_off_comes_after_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = "\n".join([HEADER, *map(",".join, varied())]).replace(",0,", ",x,", 1)
    path.write_bytes(text.encode() + b"\np\xff,1,1,1,1,2020-01-01,f\n")
    source = Source(str(path))
    for block in (100, 8 << 20):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError) as caught:
            patch.setattr(loading, "BLOCK_BYTES", block)
            load(source, SCHEMA, names=NAMES, identifiers=("id",))
        assert "is not utf-8 text" in str(caught.value)
        assert ("line 2: column 'c0'" in str(caught.value)) == (block == 100)
        assert "rows are" not in str(caught.value)


@pytest.mark.slow
def test_the_list_is_short_whatever_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "CHUNK_CELLS", 999)
    columns = [Column(f"c{number}", "number") for number in range(MAX_FAULTS + 7)]
    path = tmp_path / "t.parquet"
    polars.DataFrame({column.name: np.full(5_000, "x") for column in columns}).write_parquet(path)
    with pytest.raises(DataError) as caught:
        names = [column.name for column in columns]
        load(Source(str(path)), Schema(tuple(columns)), names=names)
    head, *found, last = str(caught.value).split("\n  ")
    assert head.endswith(f"{MAX_FAULTS + 7} faults:")
    assert len(found) == MAX_FAULTS and last == "and 7 more"
    assert all(line.endswith("(and rows 2, 3, 4 and 4,996 more)") for line in found)


def test_a_table_without_faults_says_nothing() -> None:
    faults = Faults("t.csv")
    faults.check()
    assert not faults
    faults.cells("a", np.array([4, 9]), "bad")
    with pytest.raises(DataError, match=r"^t\.csv: line 4: column 'a': bad \(and line 9\)$"):
        faults.check()
