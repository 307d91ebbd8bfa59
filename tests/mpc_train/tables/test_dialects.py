"""Tables as people have them: what a node declares of its own file, and what errors advise."""

import encodings.aliases
import gzip
import io
import re
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.errors import DataError
from mpc_train.tables.drafts.infer import infer
from mpc_train.tables.loading import load as loading
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Column, Schema, load_schema
from mpc_train.tables.source import Source, SourceProblem, check_source
from mpc_train.tables.typed import TypedTable

SCHEMA = Schema((Column("a", "number"), Column("b", "number")))
SIZES = (8 << 20, 1, 3, 7)


def table(folder: Path, content: bytes | str, name: str = "t.csv", **options: Any) -> TypedTable:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = Source(str(path), **options)
    check_source(source)
    return load(source, SCHEMA, names=("a", "b"))


def refused(folder: Path, content: bytes | str, name: str = "t.csv", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(folder, content, name, **options)
    message = str(caught.value)
    assert message.startswith(str(folder / name))
    return message


@pytest.fixture(params=SIZES)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of any size: whatever ends a line may lie across two of them."""
    monkeypatch.setattr(loading, "BLOCK_BYTES", request.param)
    size: int = request.param
    return size


READABLE: list[tuple[str, dict[str, Any], list[str]]] = [
    ("a,b\r1,2\r3,4\r", {}, ["line 2", "line 3"]),
    ("a,b\r1,2\r3,4", {}, ["line 2", "line 3"]),
    ('"a",b\r"1",2\r3,"4"\r\r', {}, ["line 2", "line 3"]),
    ("\n\na,b\n1,2\n3,4\n", {}, ["line 4", "line 5"]),
    ("\r\n\r\na,b\r\n1,2\r\n3,4\r\n", {}, ["line 4", "line 5"]),
    ("report\n2024, north\na,b\n1,2\n3,4\n", {"skip_lines": 2}, ["line 4", "line 5"]),
    ('it"s\na,b\n1,2\n3,4\n', {"skip_lines": 1}, ["line 3", "line 4"]),
    ("x\ry\ra,b\r1,2\r3,4", {"skip_lines": 2}, ["line 4", "line 5"]),
    ("# one\na,b\n# two\n1,2\n#3,4\n3,4\n# end", {"comment": "#"}, ["line 4", "line 6"]),
    ('# it"s\na,b\n# 5" pipe, x\n1,2\n3,4\n', {"comment": "#"}, ["line 4", "line 5"]),
    ("\n# x\n\na,b\n1,2\n3,4\n#", {"comment": "#"}, ["line 5", "line 6"]),
    ("a, b\n1, 2\n3,  4\n", {}, ["line 2", "line 3"]),
    ('a, "b"\n"1",  "2"\n 3, "4"\n', {"skip_space": True}, ["line 2", "line 3"]),
    ("a; b\n1; 2\n3; 4\n", {"delimiter": ";", "skip_space": True}, ["line 2", "line 3"]),
    ("1,2\n3,4\n", {"header": ("a", "b")}, ["line 1", "line 2"]),
    ("x,x\n1,2\n3,4\n", {"header": ("a", "b"), "skip_lines": 1}, ["line 2", "line 3"]),
    ("a,b,\n1,2,\n3,4,\n", {"ignore": ("",)}, ["line 2", "line 3"]),
    ("a,b,,\n1,2,9,9\n3,4,9,\n", {"ignore": ("",)}, ["line 2", "line 3"]),
    ("a,b,x,x\n1,2,9,9\n3,4,9,\n", {"ignore": ("x",)}, ["line 2", "line 3"]),
    ("\ufeffa,b\n1,2\n3,4\n", {}, ["line 2", "line 3"]),
]


@pytest.mark.parametrize(("text", "options", "places"), READABLE)
def test_what_is_read(
    tmp_path: Path, block: int, text: str, options: dict[str, Any], places: list[str]
) -> None:
    found = table(tmp_path, text, **options)
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert [found.where(row) for row in range(2)] == places


def test_what_stands_in_quotation_marks_is_no_comment_and_no_space(
    tmp_path: Path, block: int
) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id, x\n"a\n# no comment, 5\n", 1\n# one\n"b, ""c""", 2\n')
    source = Source(str(path), comment="#", skip_space=True)
    schema = Schema((Column("id", "identifier"), Column("x", "number")))
    found = load(source, schema, names=("x",), identifiers=("id",))
    assert list(found.identifiers["id"]) == ["a\n# no comment, 5", 'b, "c"']
    assert found.places is not None and found.places.tolist() == [2, 6]


@pytest.mark.parametrize(
    ("options", "cells", "values"),
    [
        ({"thousands": ","}, ['"1,234"', '"-1,234,567.5"', "12"], [1234, -1234567.5, 12]),
        (
            {"thousands": ".", "decimal": ",", "delimiter": ";"},
            ["1.234,5", "1234,5", "+1.000"],
            [1234.5, 1234.5, 1000],
        ),
        ({"thousands": " "}, ["1 234", "1\u00a0234.5", "1\u202f234"], [1234, 1234.5, 1234]),
        ({"thousands": "'"}, ["1'234", "1\u2019234.5", "1"], [1234, 1234.5, 1]),
        ({"thousands": "_"}, ["1_234", "1e3", "1"], [1234, 1000, 1]),
    ],
)
def test_digits_in_groups(
    tmp_path: Path, options: dict[str, Any], cells: list[str], values: list[float]
) -> None:
    sign = options.get("delimiter", ",")
    text = "\n".join([f"a{sign}b", *(f"{cell}{sign}{row}" for row, cell in enumerate(cells))])
    assert table(tmp_path, text, **options).values[:, 0].tolist() == values


@pytest.mark.parametrize(
    "cell", ['"1,23"', '"1,2345"', '",123"', '"1,234,"', '"12,34,567"', '"1.5,000"']
)
def test_digits_in_wrong_groups_are_no_number(tmp_path: Path, cell: str) -> None:
    message = refused(tmp_path, f"a,b\n1,2\n{cell},4\n", thousands=",")
    assert "line 3: column 'a': not a number" in message


def test_the_advice_on_digits_in_groups(tmp_path: Path) -> None:
    assert "thousands" in refused(tmp_path, 'a,b\n1,2\n"1,234",4\n')
    assert "thousands" not in refused(tmp_path, "a,b\n1,2\nx,4\n")


@pytest.mark.parametrize(
    "name", ["t.csv.gz", "t.tsv.gz", "t.csv.zip", "t.zip", "t.gz", "t.txt.ZIP"]
)
def test_packed(tmp_path: Path, block: int, name: str) -> None:
    text = b"a\tb\n1\t2\n3\t4\n" if ".tsv" in name else b"a,b\n1,2\n3,4\n"
    found = table(tmp_path, packed(text, name.lower().endswith("zip")), name)
    assert found.values.tolist() == [[1, 2], [3, 4]]


def packed(text: bytes, is_zip: bool) -> bytes:
    if not is_zip:
        return gzip.compress(text[:5]) + gzip.compress(text[5:])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("folder/t.csv", text)
        archive.writestr("__MACOSX/folder/._t.csv", b"x")
        archive.writestr("folder/.DS_Store", b"x")
    return stream.getvalue()


GOOD = b"a,b\n1,2\n3,4\n"


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.integers(0, 400), st.binary(max_size=4), st.integers(0, 400))
def test_damaged_archives_cause_only_our_error(
    is_zip: bool, at: int, piece: bytes, end: int
) -> None:
    whole = packed(GOOD, is_zip)
    at %= len(whole)
    content = (whole[:at] + piece + whole[at + len(piece) :])[: end or None]
    with TemporaryDirectory() as name:
        try:
            table(Path(name), content, "t.zip" if is_zip else "t.gz")
        except DataError as error:
            assert str(error).startswith(name)


def test_archives_of_more_than_one_table_or_behind_a_password(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.csv", GOOD)
    locked = bytearray(stream.getvalue())
    locked[6] |= 1
    entry = locked.index(b"PK\x01\x02")
    locked[entry + 8] |= 1
    assert "locked with a password" in refused(tmp_path, bytes(locked), "t.zip")
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("b.csv", GOOD)
    assert "contains 2 files" in refused(tmp_path, stream.getvalue(), "t.zip")
    with pytest.raises(SourceProblem, match=r"only CSV is read from a \.gz file; unpack it"):
        check_source(Source("t.parquet.gz"))


FOREIGN: list[tuple[bytes, dict[str, Any], str]] = [
    (GOOD.decode().encode("utf-16"), {}, 'encoding = "utf-16"'),
    (GOOD.decode().encode("utf-16"), {"encoding": "cp1252"}, 'encoding = "utf-16"'),
    (GOOD.decode().encode("utf-16-le"), {}, 'encoding = "utf-16-le"'),
    (GOOD.decode().encode("utf-16-be"), {"encoding": "cp1252"}, 'encoding = "utf-16-be"'),
    (GOOD.decode().encode("utf-32-le"), {}, 'encoding = "utf-32-le"'),
    (
        GOOD.decode().encode("utf-16-le"),
        {"encoding": "utf-16"},
        'does not begin with .*"utf-16-le"',
    ),
    (b"\xef\xbb\xbf" + GOOD, {"encoding": "cp1252"}, 'mark of utf-8.* encoding = "utf-8"'),
    (GOOD + b"\xff,5\n", {}, 'encoding = "cp1252"'),
    (GOOD + b"\x81,5\n", {"encoding": "cp1252"}, "that the program that wrote it uses"),
    (GOOD + b"\xc3\x81,5\n", {"encoding": "cp1252"}, 'encoding = "utf-8"'),
    (GOOD + b"\xc3\xbc,5\n", {"encoding": "ascii"}, 'encoding = "utf-8"'),
    (GOOD + b"1\0,5\n", {}, "line 4: a zero byte, which text cannot contain; remove it"),
    (GOOD + b"1\0,5\n", {"encoding": "cp1252"}, "line 4: a zero byte, which text cannot contain"),
    (gzip.compress(GOOD, mtime=0), {}, "is a gzip file: let its name end in .gz"),
    (b"PK\x03\x04" + bytes(30), {}, "a zip file or a workbook"),
    (b"PAR1" + bytes(30), {}, "a Parquet file"),
    (b"SQLite format 3\0" + bytes(30), {}, "an SQLite database"),
    (b'a,b\n1,2\n3, "4"\n', {}, "line 3: a space before a quotation mark.*skip_space = true"),
    (b"a,b,a\n1,2,3\n", {"ignore": ("a",)}, "'a' appears twice, but the job uses it"),
    (b"a,b,\n1,2,3\n", {}, "column '' is not in the schema.*\"\" is a column without a name"),
    (b"a;b\n1;2\n", {}, 'missing column.*delimiter = ";"'),
    (b"a\tb\n1\t2\n", {}, r'missing column.*delimiter = "\\t"'),
    (b"a,b\n1,2\n", {"delimiter": ";"}, 'missing column.*delimiter = ","'),
    (b"a,b\n1,5,2\n", {}, "3 fields"),
    (b"a;b\n1,5;2\n", {"rename": {"Alter": "a"}}, '^[^\n]*missing column.*delimiter = ";"[^\n]*$'),
    (b"a;b\n1,5;2\n", {"delimiter": ";"}, 'not a number .* decimal = ","'),
    (b"a;b\n1.5;2\n", {"delimiter": ";", "decimal": ","}, 'decimal = "."'),
    (b"only\n", {"skip_lines": 3}, "the file is empty"),
]


@pytest.mark.parametrize(("content", "options", "says"), FOREIGN)
def test_advice_looks_at_the_file_and_at_what_is_set(
    tmp_path: Path, content: bytes, options: dict[str, Any], says: str
) -> None:
    message = refused(tmp_path, content, **options)
    assert re.search(says, message), message
    given_ = options.get("encoding", "utf-8")
    assert f'encoding = "{given_}"' not in message


@pytest.mark.parametrize("encoding", sorted(set(encodings.aliases.aliases.values())))
def test_no_encoding_of_python_causes_another_error(tmp_path: Path, encoding: str) -> None:
    generator = np.random.default_rng(3)
    contents = [GOOD, b"", b"\xff\xfe", b"+AGEA", bytes(generator.integers(0, 256, 400, np.uint8))]
    contents += [GOOD.decode().encode(name) for name in ("utf-16", "utf-16-be", "utf-32")]
    for content in contents:
        try:
            table(tmp_path, content, encoding=encoding)
        except DataError as error:
            assert str(error).startswith(str(tmp_path))
        except SourceProblem as problem:
            assert problem.key == "encoding"


RENAMED = {"Alter": "a", "Größe": "b"}


def test_columns_are_renamed_at_their_owner(tmp_path: Path) -> None:
    text = "Alter,Größe,x\n1,2,9\n3,4,9\n"
    options: dict[str, Any] = {"rename": RENAMED, "ignore": ("x",)}
    assert table(tmp_path, text, **options).values.tolist() == [[1, 2], [3, 4]]
    message = refused(tmp_path, text.replace("3", "z"), **options)
    assert "line 3: column 'a' ('Alter' there): not a number" in message
    assert "rename.Alter: there is no column of this name" in refused(
        tmp_path, "a,b\n1,2\n", **options
    )
    turned = refused(tmp_path, text, ignore=("x",), rename={"a": "Alter", "b": "Größe"})
    assert "rename.a: there is no column of this name, but one of the name 'Alter': write" in turned
    assert 'rename = { "Alter" = …' in turned
    assert "missing columns 'a', 'b'" in refused(tmp_path, "x,z\n1,2\n", **options)
    swapped = table(tmp_path, "a,b\n1,2\n3,4\n", rename={"a": "b", "b": "a"})
    assert swapped.values.tolist() == [[2, 1], [4, 3]]
    twice = refused(tmp_path, "Alter,b,a\n1,2,3\n", rename={"Alter": "a"})
    assert "'a' appears twice" in twice
    path = tmp_path / "t.parquet"
    polars.DataFrame({"Alter": [1, 3], "Größe": [2, 4]}).write_parquet(path)
    found = load(Source(str(path), rename=RENAMED), SCHEMA, names=("b", "a"))
    assert found.values.tolist() == [[2, 1], [4, 3]]


def test_renamed_columns_keep_their_own_form_of_dates_and_their_draft(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Tag,y\n" + "".join(f"{day:02}.02.2020,{day}\n" for day in range(1, 25)))
    source = Source(str(path), rename={"Tag": "day"}, date_formats={"Tag": "%d.%m.%Y"})
    schema = Schema((Column("day", "date"), Column("y", "number")))
    assert load(source, schema, names=("day",)).rows == 24
    draft = infer(Source(str(path), rename={"Tag": "day"}))
    assert draft.source.date_formats == {"Tag": "%d.%m.%Y"}
    (tmp_path / "s.toml").write_text(draft.text)
    assert load(draft.source, load_schema(tmp_path / "s.toml"), names=("day",)).rows == 24


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_left_out_by_a_declared_rule(tmp_path: Path, kind: str) -> None:
    frame = polars.DataFrame(
        {
            "id": ["p1", None, "p3", " ", "p5", "p6"],
            "x": [1, 2, 3, 4, 5, 6],
            "ill": ["yes", "no", None, "no", "NA", "no"],
        }
    )
    path = tmp_path / f"t.{kind}"
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    schema = Schema(
        (
            Column("id", "identifier"),
            Column("x", "number"),
            Column("ill", "boolean", missing=("NA",)),
        )
    )

    def read(
        rows: int | None = None, *rules: Any, names: tuple[str, ...] = ("x", "ill")
    ) -> TypedTable:
        source = Source(str(path), drop_rows=rules)
        return load(source, schema, names=names, identifiers=("id",), rows=rows, label="ill")

    both = ("empty-identifier", "missing-label")
    found = read(2, *both)
    assert found.column("x").tolist() == [1, 6]
    assert found.kept is not None and found.kept.tolist() == [0, 5]
    assert [found.where(row) for row in range(2)] == (
        ["line 2", "line 7"] if kind == "csv" else ["row 1", "row 6"]
    )
    said = "4 rows dropped: 2 with an empty identifier, 2 without a label (drop_rows)"
    assert any(said in warning for warning in found.warnings)
    with pytest.raises(DataError) as caught:
        read(6, *both)
    assert "remaining rows are 2, but the job says 6" in str(caught.value)
    assert said in str(caught.value)
    with pytest.raises(DataError, match="the cell is empty, so it identifies nobody"):
        read(None, "missing-label")
    with pytest.raises(DataError, match="drop_rows: this node has no label"):
        read(None, "missing-label", names=("x",))


def test_a_bad_label_is_named_and_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,ill\n1,yes\n2,\n3,maybe\n4,no\n")
    schema = Schema((Column("x", "number"), Column("ill", "boolean")))
    source = Source(str(path), drop_rows=("missing-label",))
    with pytest.raises(DataError, match="line 4: column 'ill': neither true nor false"):
        load(source, schema, names=("x", "ill"), label="ill")


def test_every_type_of_a_column_is_read_or_named(tmp_path: Path) -> None:
    """A duration, a time of day, a list, a struct, bytes, an array, an object of any kind."""
    path = tmp_path / "t.parquet"
    values: dict[str, polars.Series] = {
        "duration": polars.Series([1, 2], dtype=polars.Duration("us")),
        "time": polars.Series([1, 2], dtype=polars.Int64).cast(polars.Time),
        "list": polars.Series([[1], [2]]),
        "struct": polars.Series([{"x": 1}, {"x": 2}]),
        "binary": polars.Series([b"1", b"2"]),
        "array": polars.Series([[1, 2], [3, 4]], dtype=polars.Array(polars.Int64, 2)),
        "decimal": polars.Series(["1.5", "2"]).cast(polars.Decimal(10, 2)),
        "zoned": polars.Series([1, 2]).cast(polars.Datetime("us", "Europe/Berlin")),
        "null": polars.Series([None, None]),
        "enum": polars.Series(["1", "2"], dtype=polars.Enum(["1", "2"])),
    }
    kinds = [
        Column("a", "number", missing=("",)),
        Column("a", "date", missing=("",)),
        Column("a", "boolean", missing=("",)),
        Column("a", "category", levels=("1", "2"), missing=("",)),
    ]
    for name, cells in values.items():
        polars.DataFrame({"a": cells, "b": [1, 2]}).write_parquet(path)
        for column in kinds:
            schema = Schema((column, SCHEMA["b"]))
            try:
                load(Source(str(path)), schema, names=("a", "b"))
            except DataError as error:
                assert "'a'" in str(error), name
        schema = Schema((Column("a", "identifier"), SCHEMA["b"]))
        try:
            load(Source(str(path)), schema, names=("b",), identifiers=("a",))
        except DataError as error:
            assert "'a'" in str(error), name
        assert "b" in infer(Source(str(path))).text


def test_names_that_look_like_patterns_are_names(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    polars.DataFrame({"*": [1, 3], "^.*$": [2, 4], "x": [5, 6]}).write_parquet(path)
    schema = Schema((Column("*", "number"), Column("^.*$", "number"), Column("x", "number")))
    found = load(Source(str(path)), schema, names=("^.*$", "*"))
    assert found.values.tolist() == [[2, 1], [4, 3]]


def test_a_path_with_a_zero_byte_is_named() -> None:
    with pytest.raises(SourceProblem, match="zero byte"):
        check_source(Source("a\0.csv"))


def test_text_that_numpy_holds_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, a=np.array(["\ud800", "1"]), b=np.array([1, 2]))
    with pytest.raises(DataError, match=r"t\.npz: "):
        load(Source(str(path)), SCHEMA, names=("a", "b"))
