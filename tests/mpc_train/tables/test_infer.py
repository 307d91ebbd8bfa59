"""Drafts of schemas: usable as they are, and silent about what only one person has."""

from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.drafts.infer import infer
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Schema, load_schema
from mpc_train.tables.source import Source
from tests.support.commands import last_object, mpc_train
from tests.support.node_files import party_toml

ROWS = 400


def table() -> polars.DataFrame:
    generator = np.random.default_rng(5)

    def pick(*entries: str) -> list[str]:
        return [str(entry) for entry in generator.choice(entries, ROWS)]

    region = pick("north", "south", "east")
    region[17] = "Little Hamlet"
    income = [f"{value:.2f}" for value in generator.normal(30_000, 8_000, ROWS)]
    for row in range(0, ROWS, 10):
        income[row] = ("", "NA", "unknown", "-999")[row // 10 % 4]
    return polars.DataFrame(
        {
            "patient_id": [str(number) for number in range(5000, 5000 + ROWS)],
            "serial": [f"ZX{number * 7919 % 99991}" for number in range(ROWS)],
            "age": [str(age) for age in generator.integers(19, 91, ROWS)],
            "income": income,
            "region": region,
            "grade": pick("1", "2", "3"),
            "member": pick("yes", "no"),
            "since": [
                f"{year}-07-0{year % 9 + 1}" for year in generator.integers(1991, 2019, ROWS)
            ],
            "left": [f"0{day}.11.2020" for day in generator.integers(1, 9, ROWS)],
            "empty": [""] * ROWS,
        }
    )


def drafted(folder: Path, source: Source) -> tuple[Schema, str, tuple[str, ...]]:
    draft = infer(source)
    path = folder / "schema.toml"
    path.write_text(draft.text)
    return load_schema(path), draft.text, draft.warnings


def test_a_draft_says_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table().write_csv(path)
    schema, text, warnings = drafted(tmp_path, Source(str(path)))
    kinds = {column.name: column.kind for column in schema.columns}
    assert kinds == {
        "patient_id": "identifier",
        "serial": "identifier",
        "age": "number",
        "income": "number",
        "region": "category",
        "grade": "number",
        "member": "boolean",
        "since": "date",
        "left": "date",
    }
    assert schema["age"].bounds == (10, 90)
    assert schema["income"].missing == ("", "-999", "NA", "unknown")
    assert schema["region"].levels == ("east", "north", "south")
    assert schema["region"].other
    assert [str(day) for day in schema["since"].dates or ()] == ["1991-01-01", "2018-12-31"]
    said = "\n".join(warnings)
    for what in (
        "'patient_id': looks like an identifier",
        "'income': -999 occurs, far from all others, and is treated as a missing value",
        "'region': entries of fewer than 5 rows each are not listed: 1",
        "'grade': few whole numbers",
        "'left': dates have the form %d.%m.%Y",
        "'empty': omitted: all cells are empty",
    ):
        assert what in said
        assert what.partition(": ")[2] in text
    assert text.startswith("# Drafted by mpc-train schema infer. Review it before anybody")


def test_nobodys_own_entry_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table().write_csv(path)
    _, text, warnings = drafted(tmp_path, Source(str(path)))
    written = text + "".join(warnings)
    assert "Hamlet" not in written
    for name in ("patient_id", "serial", "income"):
        for cell in table()[name].to_list():
            assert len(cell) < 4 or cell in ("unknown", "-999") or cell not in written


def test_a_draft_loads_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table().drop("empty").write_csv(path)
    source = Source(str(path), date_formats={"left": "%d.%m.%Y"})
    schema, _, warnings = drafted(tmp_path, source)
    assert "dates have the form" not in "".join(warnings)
    names = [column.name for column in schema.columns if column.kind != "identifier"]
    loaded = load(source, schema, names=names, identifiers=("patient_id", "serial"))
    assert loaded.rows == ROWS
    assert loaded.missing.sum(axis=0).tolist() == [0, 40, 0, 0, 0, 0, 0]


def test_formats_with_types_are_drafted_by_their_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table().select(
        polars.col("age").cast(polars.Int64),
        polars.col("since").str.to_date(),
        (polars.col("member") == "yes").alias("member"),
        polars.col("region").cast(polars.Categorical),
        polars.col("income").cast(polars.Float64, strict=False),
    ).write_parquet(path)
    schema, _, _ = drafted(tmp_path, Source(str(path)))
    kinds = [column.kind for column in schema.columns]
    assert kinds == ["number", "date", "boolean", "category", "number"]
    assert schema["income"].missing == ("", "-999")


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    table().write_csv(path, separator=";")
    done = mpc_train("schema", "infer", path, "--delimiter", ";")
    assert done.exit_code == 0, done.stderr
    assert "review: column 'patient_id'" in done.stderr
    (tmp_path / "schema.toml").write_text(done.stdout)
    assert mpc_train("schema", "check", tmp_path / "schema.toml").exit_code == 0
    node = tmp_path / "node.toml"
    node.write_text(party_toml(data='study = { file = "t.txt", delimiter = ";" }'))
    same = mpc_train("schema", "infer", "--config", node, "--format", "json")
    assert last_object(same.stdout)["schema"] == done.stdout
    for arguments, status in (
        ([], 3),
        ([tmp_path / "none.csv"], 4),
        ([path, "--decimal", "x"], 3),
        ([tmp_path / "none"], 3),
    ):
        assert mpc_train("schema", "infer", *arguments).exit_code == status


def test_an_empty_table_has_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        infer(Source(str(path)))
