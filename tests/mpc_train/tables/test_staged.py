"""Tables of a vault give the numbers, and the errors, of the files that they were imported from."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.loading.load import Vault, as_stored, load, open_table
from mpc_train.tables.readers.staged import MAGIC, Content, StagedTable, stage
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.source import Source, SourceProblem, check_source, resolved
from mpc_train.tables.typed import TypedTable

SCHEMA = Schema(
    (
        Column("id", "identifier"),
        Column("a", "number", missing=("",)),
        Column("b", "category", levels=("x", "y")),
        Column("day", "date"),
    )
)
TEXT = (
    'Id;A;b;day;note\n1;1.234,5;x;01.02.2020;n\n2;;y;02.02.2020;"two\nlines"\n3;7;x;03.02.2020;n\n'
)
DIALECT: dict[str, Any] = {"delimiter": ";", "decimal": ",", "thousands": "."}
DATES: dict[str, Any] = {"date_formats": {"day": "%d.%m.%Y"}}
NAMES: dict[str, Any] = {"rename": {"Id": "id", "A": "a"}, "ignore": ("note",)}


@dataclass
class Held:
    reader: BinaryIO
    size: int
    parts: dict[str, bytes] = field(default_factory=dict)

    def part(self, key: str, columns: Sequence[str]) -> AbstractContextManager["Held"]:
        data = self.parts[key]
        return contextlib.nullcontext(Held(io.BytesIO(data), len(data)))


def staged(content: bytes, **parts: bytes) -> StagedTable:
    return StagedTable(Held(io.BytesIO(content), len(content), parts), "vault:adm")


def vault_with(content: bytes) -> Vault:
    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Content]:
        assert name == "adm"
        yield Held(io.BytesIO(content), len(content))

    return opened


def imported(source: Source) -> bytes:
    out = io.BytesIO()
    with open_table(source) as table:
        stage(table, source, out, lambda done: None)
    return out.getvalue()


def read(source: Source, vault: Vault | None = None, **options: Any) -> TypedTable:
    source, _ = as_stored(source, vault)
    return load(
        source, SCHEMA, names=("a", "b", "day"), identifiers=("id",), vault=vault, **options
    )


def same(one: TypedTable, two: TypedTable) -> None:
    assert one.values.tobytes() == two.values.tobytes()
    assert one.missing.tobytes() == two.missing.tobytes()
    assert one.identifiers == two.identifiers
    assert one.places is not None and two.places is not None
    assert one.places.tolist() == two.places.tolist()


def test_a_csv_file_in_its_own_dialect(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    plain = read(Source(str(path), **DIALECT, **DATES, **NAMES))
    vault = vault_with(imported(Source(str(path), **DIALECT)))
    kept = read(Source("vault:adm", **DATES, **NAMES), vault)
    same(plain, kept)
    assert kept.values[:, 0].tolist() == [1234.5, 0, 7]
    assert [kept.where(row) for row in range(3)] == ["line 2", "line 3", "line 5"]
    # Forms of dates that were known at the import need not be written again.
    same(
        plain,
        read(
            Source("vault:adm", **NAMES),
            vault_with(imported(Source(str(path), **DIALECT, **DATES))),
        ),
    )


def test_forms_of_dates_that_the_vault_and_the_node_know(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x\n1\n")
    said: dict[str, Any] = {
        "date_format": "%d.%m.%y",
        "date_formats": {"a": "%d/%m/%y", "b": "%Y"},
        "date_pivot": 1930,
        "date_pivots": {"a": 1910, "b": 1920},
        "decimal": ",",
        "thousands": ".",
        "delimiter": ";",
    }
    vault = vault_with(imported(Source(str(path), **said)))
    del said["delimiter"]
    assert as_stored(Source("vault:adm"), vault)[0] == Source("vault:adm", **said)
    # What the node's file says of a column goes before what the vault knows.
    own = Source("vault:adm", date_formats={"a": "%m/%d/%y"}, date_pivots={"a": 1950})
    merged, _ = as_stored(own, vault)
    assert merged.date_formats == {"a": "%m/%d/%y", "b": "%Y"}
    assert merged.date_pivots == {"a": 1950, "b": 1920}


def test_formats_with_types(tmp_path: Path) -> None:
    frame = polars.DataFrame(
        {
            "id": [5, 6, 7],
            "a": [1.5, None, 3.0],
            "b": ["x", "y", "x"],
            "day": polars.Series(["2020-01-01", "2020-01-02", "2020-01-03"]).str.to_date(),
        }
    )
    for end in ("parquet", "arrow"):
        path = tmp_path / f"t.{end}"
        frame.write_parquet(path) if end == "parquet" else frame.write_ipc(path)
        vault = vault_with(imported(Source(str(path))))
        same(read(Source(str(path))), read(Source("vault:adm"), vault))


def test_errors_name_the_line_of_the_file_that_was_imported(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT.replace("03.02.2020", "33.02.2020").replace("1.234,5", "many"))
    vault = vault_with(imported(Source(str(path), **DIALECT)))
    with pytest.raises(DataError) as caught:
        read(Source("vault:adm", **DATES, **NAMES), vault)
    said = str(caught.value)
    assert said.startswith("vault:adm: 2 faults")
    assert "line 2: column 'a' ('A' there): not a number" in said
    assert "line 5: column 'day'" in said
    with pytest.raises(DataError, match="line 1: missing columns 'a', 'id'"):
        read(Source("vault:adm", ignore=("Id", "A", "note")), vault)


def test_columns_that_the_import_ignored_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    content = imported(Source(str(path), **DIALECT, ignore=("note",)))
    assert staged(content).names == ("Id", "A", "b", "day")


def test_many_chunks_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpc_train.tables.loading.load.BLOCK_BYTES", 1000)
    path = tmp_path / "t.csv"
    rows = 2000
    path.write_text("x,y\n" + "".join(f"{row},{row % 7}\n" for row in range(rows)))
    content = imported(Source(str(path)))
    table = staged(content)
    for _ in range(2):  # from its beginning each time
        chunks = list(table.chunks(("y", "x")))
        assert len(chunks) > 10
        assert polars.concat([chunk.frame for chunk in chunks])["x"].to_list() == [
            str(row) for row in range(rows)
        ]
        assert np.concatenate([chunk.places for chunk in chunks]).tolist() == list(
            range(2, rows + 2)
        )
        assert chunks[-1].done == table.total == len(content)
    assert sum(len(chunk.places) for chunk in table.chunks(())) == rows


def apart(table: str, protected: dict[str, tuple[str, ...]], tmp_path: Path) -> dict[str, bytes]:
    """A staged table under "" and its parts by key."""
    path = tmp_path / "t.csv"
    path.write_text(table)
    outs = {key: io.BytesIO() for key in ("", *protected)}
    parts = {key: (columns, outs[key]) for key, columns in protected.items()}
    with open_table(Source(str(path))) as opened:
        stage(opened, Source(str(path)), outs[""], lambda done: None, parts=parts)
    return {key: out.getvalue() for key, out in outs.items()}


def test_protected_columns_lie_in_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpc_train.tables.loading.load.BLOCK_BYTES", 1000)
    rows = [f"{row},{row * 1000003},{row * 1000033},{row * 1000037}" for row in range(500)]
    text = "plain,hiv,other,gene\n" + "\n".join(rows) + "\n"
    found = apart(text, {"lab": ("hiv",), "dna": ("other", "gene")}, tmp_path)
    whole = found.pop("")
    assert all(b"1000003" not in each for each in (whole, found["dna"]))
    table = staged(whole, **found)
    assert table.names == ("plain", "hiv", "other", "gene")
    assert len(list(table.chunks(("plain",)))) > 5
    read = polars.concat([chunk.frame for chunk in table.chunks(("gene", "plain", "hiv"))])
    assert read.rows() == [(str(row * 1000037), str(row), str(row * 1000003)) for row in range(500)]
    # Columns of other keys, and none, are read without a part.
    assert sum(c.frame.height for c in staged(whole).chunks(("plain",))) == 500
    assert sum(len(chunk.places) for chunk in staged(whole).chunks(())) == 500
    lone = staged(whole, dna=found["dna"])
    assert next(lone.chunks(("other",))).frame.columns == ["other"]
    with pytest.raises(KeyError):
        list(lone.chunks(("hiv",)))


def test_parts_that_are_not_of_the_table(tmp_path: Path) -> None:
    text = "a,b,c\n1,2,3\n4,5,6\n"
    first = apart(text, {"k": ("b",), "l": ("c",)}, tmp_path)
    second = apart(text, {"k": ("b",), "l": ("c",)}, tmp_path)
    for wrong in (second["k"], first["l"]):
        with pytest.raises(DataError, match="columns under the key k: belong to another table"):
            list(staged(first[""], k=wrong).chunks(("b",)))
    head = len(MAGIC) + 4 + int.from_bytes(first["k"][len(MAGIC) : len(MAGIC) + 4], "big")
    chunk = first["k"][head:]
    other = apart("a,b,c\n1,2,3\n", {"k": ("b",), "l": ("c",)}, tmp_path)["k"]
    short = len(MAGIC) + 4 + int.from_bytes(other[len(MAGIC) : len(MAGIC) + 4], "big")
    for rows in (b"", chunk + chunk, other[short:]):
        with pytest.raises(DataError, match="vault:adm: its protected columns have other rows"):
            list(staged(first[""], k=first["k"][:head] + rows).chunks(("a", "b")))


def test_contents_that_are_no_table() -> None:
    whole = MAGIC + b"\0\0\0\2{}"
    for content in (
        b"",
        MAGIC,
        whole,
        MAGIC + b"\xff\xff\xff\xff",
        b"mpc-train table 1\n" + bytes(9),
    ):
        with pytest.raises(DataError, match="vault:adm"):
            staged(content)


def test_chunks_that_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x\n1\n2\n")
    content = imported(Source(str(path)))
    head = len(MAGIC) + 4 + int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "big")
    for end in range(head + 1, len(content)):
        table = staged(content[:end])
        with pytest.raises(DataError, match="vault:adm: a chunk of rows"):
            list(table.chunks(("x",)))
    broken = content[: head + 8] + bytes(len(content) - head - 8)
    with pytest.raises(DataError, match="cannot be read"):
        list(staged(broken).chunks(("x",)))


def test_what_a_source_may_say_of_a_table_in_the_vault(tmp_path: Path) -> None:
    given = {"rename": {"A": "a"}, "ignore": ("x",), "drop_rows": ("missing-label",), **DATES}
    check_source(Source("vault:adm", **given))
    assert resolved(Source("vault:adm"), tmp_path.joinpath).file == "vault:adm"
    for key, value in {"delimiter": ";", "decimal": ",", "skip_lines": 3, "sheet": "a"}.items():
        with pytest.raises(SourceProblem, match="which was read when it was imported"):
            check_source(Source("vault:adm", **{key: value}))  # type: ignore[arg-type]
    for name in ("vault:", "vault:a/b", "vault:a.b", "vault:../x"):
        with pytest.raises(SourceProblem, match="vault:NAME"):
            check_source(Source(name))
    with pytest.raises(DataError, match="does not open the vault"):
        load(Source("vault:adm"), SCHEMA, names=("a",))


def with_chunk(frame: polars.DataFrame) -> StagedTable:
    """A table of one column whose only chunk is `frame`."""
    head = b'{"names":["x"],"place":"row","header_place":"","written":{}}'
    held = io.BytesIO()
    frame.write_ipc(held)
    chunk = held.getvalue()
    content = MAGIC + len(head).to_bytes(4, "big") + head + len(chunk).to_bytes(8, "big") + chunk
    return staged(content)


@pytest.mark.parametrize(
    "columns",
    [
        {"0": [1]},
        {"places": [1]},
        {"places": ["1"], "0": [1]},
        {"places": [1.0], "0": [1]},
        {"places": [None, 1], "0": [1, 2]},
    ],
)
def test_chunks_of_another_version(columns: dict[str, list[Any]]) -> None:
    assert len(list(with_chunk(polars.DataFrame({"places": [1], "0": [5]})).chunks(("x",)))) == 1
    with pytest.raises(DataError, match="vault:adm: a chunk of rows"):
        list(with_chunk(polars.DataFrame(columns)).chunks(("x",)))


def test_recoded_cells_that_are_one_under_the_decimal_sign_of_the_import(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    codes = {"b": {"1": "x", "1,0": "y"}}
    plain = Source(str(path), **DIALECT, recode=codes)
    with pytest.raises(SourceProblem, match="are the same cell"):
        check_source(plain)
    kept = Source("vault:adm", recode=codes)
    check_source(kept)
    vault = vault_with(imported(Source(str(path), **DIALECT)))
    with pytest.raises(DataError, match=r"vault:adm: recode.b: .* are the same cell"):
        as_stored(kept, vault)


def test_arrays_of_a_table_in_the_vault_are_not_looked_for_where_the_node_was_started() -> None:
    assert Source("vault:adm").folder_of_arrays is None
    assert Source("vault:adm", array_folder="/images").folder_of_arrays == Path("/images")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_no_table(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    with (
        pytest.raises(DataError, match="a pipe or a device"),
        open_table(Source(str(path), format="csv")),
    ):
        pass
