"""Workbooks: the same numbers as from CSV, rows counted as the sheet counts them."""

import datetime
import io
import sys
import zipfile
from html import escape
from pathlib import Path
from typing import Any

import pytest

from mpc_train.errors import DataError
from mpc_train.tables.drafts.infer import infer
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source, SourceProblem, check_source

SCHEMA = Schema(
    (
        Column("id", "identifier"),
        Column("x", "number", missing=("", "NA")),
        Column("day", "date"),
        Column("ill", "boolean"),
        Column("ward", "category", levels=("1", "b")),
    )
)
NAMES = ("x", "day", "ill", "ward")
DAY = datetime.date
CELLS: list[list[Any]] = [
    ["id", "x", "day", "ill", "ward"],
    ["p1", 1.5, DAY(2020, 1, 1), True, 1],
    ["p2", None, DAY(2020, 1, 2), False, "b"],
    ["p3", 2, DAY(2020, 1, 3), True, "b"],
]


def cell(place: str, value: Any) -> str:
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, DAY):
        return f'<c r="{place}" s="1"><v>{(value - DAY(1899, 12, 30)).days}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{place}"><v>{value}</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'


def sheet(rows: list[list[Any]]) -> str:
    lines = [
        f'<row r="{number}">'
        + "".join(
            cell(f"{'ABCDEFGHIJ'[column]}{number}", value)
            for column, value in enumerate(row)
            if value is not None
        )
        + "</row>"
        for number, row in enumerate(rows, 1)
        if row
    ]
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{space}"><sheetData>{"".join(lines)}</sheetData></worksheet>'


def workbook(path: Path, **sheets: list[list[Any]]) -> Source:
    """As little of a workbook as readers want."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    numbers = range(1, len(sheets) + 1)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
        f'PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/><Override '
        f'PartName="/xl/styles.xml" ContentType="{kind}.styles+xml"/>'
        + "".join(
            f'<Override PartName="/xl/s{n}.xml" ContentType="{kind}.worksheet+xml"/>'
            for n in numbers
        )
        + "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        + "".join(
            f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>'
            for n, name in zip(numbers, sheets, strict=True)
        )
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        + "".join(
            f'<Relationship Id="r{n}" Type="{office}/worksheet" Target="s{n}.xml"/>'
            for n in numbers
        )
        + f'<Relationship Id="rs" Type="{office}/styles" Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><cellXfs count="2"><xf numFmtId="0"/>'
        '<xf numFmtId="14"/></cellXfs></styleSheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
        for n, rows in zip(numbers, sheets.values(), strict=True):
            archive.writestr(f"xl/s{n}.xml", sheet(rows))
    return Source(str(path))


def read(source: Source) -> Any:
    check_source(source)
    return load(source, SCHEMA, names=NAMES, identifiers=("id",))


def refused(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        read(source)
    assert str(caught.value).startswith(f"{source.file}: ")
    return str(caught.value)


def test_a_workbook_gives_the_numbers_of_a_csv_file(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    found = read(workbook(tmp_path / "t.xlsx", patients=CELLS, notes=[["x"]]))
    path = tmp_path / "t.csv"
    path.write_text(
        "\n".join(
            ",".join("" if value is None else str(value).lower() for value in row) for row in CELLS
        )
    )
    expected = read(Source(str(path)))
    assert found.values.tolist() == expected.values.tolist()
    assert found.missing.tolist() == expected.missing.tolist()
    assert list(found.identifiers["id"]) == list(expected.identifiers["id"])
    assert [found.where(row) for row in range(3)] == ["row 2", "row 3", "row 4"]


def test_sheets_lines_above_the_header_and_empty_rows_below(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    table = [["report of 2024"], [], *CELLS, [], [None, None]]
    source = workbook(tmp_path / "t.xlsx", first=[["x"], [1]], second=table)
    options: dict[str, Any] = {"file": source.file, "skip_lines": 2}
    found = read(Source(**options, sheet="second"))
    assert found.rows == 3
    assert found.where(0) == "row 4"
    assert "missing column" in refused(source)
    assert "no such sheet" in refused(Source(**options, sheet="third"))
    draft = infer(Source(**options, sheet="second"))
    assert 'name = "day"' in draft.text and "dates = [2020-01-01, 2020-12-31]" in draft.text


def test_what_is_wrong_in_a_sheet_is_named_with_its_row(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    table = [*map(list, CELLS)]
    table[2][1], table[3][4] = "77x125", "c"
    message = refused(workbook(tmp_path / "t.xlsx", one=table))
    assert "row 3: column 'x': not a number" in message and "77x125" not in message
    assert "row 4: column 'ward': not one of the declared" in message
    table = [[*row, 5, 6] for row in CELLS]
    table[0][5:] = ["", "x"]
    message = refused(workbook(tmp_path / "t.xlsx", one=table))
    assert "row 1: column 'x' appears twice" in message
    assert "row 1: column '' is not in the schema" in message
    gap = [*CELLS[:2], [], *CELLS[2:]]
    assert "row 3: column 'id': the cell is empty" in refused(
        workbook(tmp_path / "t.xlsx", one=gap)
    )
    refused(workbook(tmp_path / "t.xlsx", one=[]))


def test_files_that_are_no_workbooks(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.csv", "a,b")
    whole = workbook(tmp_path / "w.xlsx", one=CELLS)
    cut = Path(whole.file).read_bytes()[:-300]
    for name in ("t.xlsx", "t.xls", "t.xlsb", "t.ods"):
        for content in (b"nothing", b"", b"PK\x03\x04", stream.getvalue(), cut):
            path = tmp_path / name
            path.write_bytes(content)
            refused(Source(str(path)))


def test_without_a_reader_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    source = workbook(tmp_path / "t.xlsx", one=CELLS)
    assert "pip install 'mpc-train[excel]'" in refused(source)


def test_options_of_sheets_and_of_text(tmp_path: Path) -> None:
    check_source(Source("t.xlsx", sheet="a", skip_lines=2))
    for source, key in (
        (Source("t.csv", sheet="a"), "sheet"),
        (Source("t.xlsx", delimiter=";"), "delimiter"),
        (Source("t.parquet", skip_lines=2), "skip_lines"),
        (Source("t.xlsx", skip_lines=-1), "skip_lines"),
        (Source("t.csv", comment=","), "comment"),
        (Source("t.csv", comment="##"), "comment"),
        (Source("t.csv", thousands="."), "thousands"),
        (Source("t.csv", skip_space=True, delimiter=" "), "skip_space"),
        (Source("t.csv", rename={"a": "x", "b": "x"}), "rename.a"),
        (Source("t.csv", rename={"a": " x"}), "rename.a"),
        (Source("t.csv", rename={"a": "x"}, ignore=("a",)), "rename.a"),
        (Source("t.csv", drop_rows=("missing-label", "missing-label")), "drop_rows"),
    ):
        with pytest.raises(SourceProblem) as caught:
            check_source(source)
        assert caught.value.key == key
