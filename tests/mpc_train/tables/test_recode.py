"""Cells that an owner writes otherwise than the job: `recode` under `[data]` of its own file."""

import contextlib
import sqlite3
from datetime import date
from pathlib import Path
from typing import Any

import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.drafts.infer import infer
from mpc_train.tables.loading.load import load
from mpc_train.tables.schema import Column, Schema, load_schema
from mpc_train.tables.source import Source, SourceProblem, check_source
from mpc_train.tables.typed import TypedTable

SCHEMA = Schema(
    (
        Column("id", "identifier"),
        Column("smoker", "boolean", missing=("",)),
        Column("sex", "category", levels=("female", "male")),
        Column("dose", "number", missing=("-9",)),
    )
)
FRAME = polars.DataFrame(
    {
        "id": ["p1", "p2", "p3", "p4"],
        "Raucher": ["ja", " nein", "k. A.", "yes"],
        "sex": [1, 2, 2, 1],
        "dose": [0.5, 999.0, 1.5, 7.0],
    }
)
RECODE = {
    "Raucher": {"ja": "yes", "nein": "no", "k. A.": ""},
    "sex": {"1": "male", "2": "female"},
    "dose": {"999": "-9", "7": "0.7"},
}


def written(folder: Path, kind: str, frame: polars.DataFrame = FRAME) -> dict[str, Any]:
    """The frame in a format: what a source says of it."""
    path = folder / f"t.{kind}"
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("drop table if exists t")
            database.execute("create table t (id, Raucher, sex, dose)")
            database.executemany("insert into t values (?, ?, ?, ?)", frame.rows())
        return {"url": f"sqlite:///{path}", "query": "select * from t"}
    if kind == "csv":
        frame.write_csv(path)
    elif kind == "arrow":
        frame.write_ipc(path)
    else:
        frame.write_parquet(path)
    return {"file": str(path)}


def read(source: Source, **options: Any) -> TypedTable:
    check_source(source)
    names = ("smoker", "sex", "dose")
    return load(source, SCHEMA, names=names, identifiers=("id",), label="smoker", **options)


@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite", "arrow"])
def test_cells_are_replaced_in_every_format(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"rename": {"Raucher": "smoker"}, "recode": RECODE}
    found = read(Source(**written(tmp_path, kind), **options))
    assert found.values.tolist() == [[1, 1, 0.5], [0, 0, 0], [0, 0, 1.5], [1, 1, 0.7]]
    assert found.missing.tolist() == [
        [False, False, False],
        [False, False, True],
        [True, False, False],
        [False, False, False],
    ]
    options["drop_rows"] = ("missing-label",)
    assert read(Source(**written(tmp_path, kind), **options), rows=3).rows == 3


def test_codes_may_change_places_and_other_cells_stay(tmp_path: Path) -> None:
    """Each cell is replaced once: male to female to male would end where it began."""
    where = written(tmp_path, "csv", FRAME.rename({"Raucher": "smoker"}))
    recode = {"smoker": RECODE["Raucher"], "sex": {"1": "2", "2": "1"}}
    schema = Schema((Column("sex", "number"),))
    ignore = ("id", "smoker", "dose")
    source = Source(**where, recode={"sex": recode["sex"]}, ignore=ignore)
    assert load(source, schema, names=("sex",)).column("sex").tolist() == [2, 1, 1, 2]
    source = Source(**where, recode={"sex": {"2": "5"}}, ignore=ignore)
    assert load(source, schema, names=("sex",)).column("sex").tolist() == [1, 5, 5, 1]
    with pytest.raises(DataError, match="column 'smoker': neither true nor false"):
        read(Source(**where, recode={"sex": RECODE["sex"]}))


def test_identifiers_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id;smoker;sex;dose\n1;1;female;1,50\n2;0;male;2,5\n")
    recode = {"id": {"1": "p1"}, "dose": {"1,5": "0,25"}}
    found = read(Source(str(path), delimiter=";", decimal=",", recode=recode))
    assert found.identifiers == {"id": ["p1", "2"]}
    assert found.column("dose").tolist() == [0.25, 2.5]


def test_what_cannot_be_recoded_is_said(tmp_path: Path) -> None:
    where = written(tmp_path, "parquet", FRAME.with_columns(day=date(2020, 1, 2)))
    schema = Schema((Column("day", "date"),))
    source = Source(**where, recode={"day": {"2020-01-02": ""}}, ignore=tuple(FRAME.columns))
    with pytest.raises(DataError, match="column 'day': is of type Date; recode replaces"):
        load(source, schema, names=("day",))
    with pytest.raises(DataError, match=r"recode\.Sex: there is no column of this name"):
        read(Source(**where, recode={"Sex": {"1": "male"}}, ignore=("day",)))


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"recode": {"a": {}}}, "recode.a", "does not list any cell"),
        ({"recode": {"a": {"1": "x", "1.0": "y"}}}, "recode.a", "'1' and '1.0' are the same cell"),
        ({"recode": {"a": {"x": "1", " x": "2"}}}, "recode.a", "are the same cell"),
        ({"recode": {"a": {"1": "x"}}, "ignore": ("a",)}, "recode.a", "listed under ignore"),
    ],
)
def test_contradictions(options: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(SourceProblem, match=said) as caught:
        check_source(Source("t.csv", **options))
    assert caught.value.key == key


def test_a_draft_sees_what_the_job_will_see(tmp_path: Path) -> None:
    rows = 12
    path = tmp_path / "t.csv"
    lines = [
        f"{number},{'ja' if number % 3 else 'nein'},{'ok' * 300}x{number}" for number in range(rows)
    ]
    path.write_text("x,Raucher,note\n" + "\n".join(lines) + "\n")
    recode = {"Raucher": {"ja": "yes", "nein": "no"}, "note": {"a": "b"}}
    draft = infer(Source(str(path), recode=recode))
    (tmp_path / "s.toml").write_text(draft.text)
    schema = load_schema(tmp_path / "s.toml")
    assert schema["Raucher"].kind == "boolean"
    check_source(draft.source)
    found = load(draft.source, schema, names=("Raucher",))
    assert found.column("Raucher").tolist() == [float(number % 3 > 0) for number in range(rows)]
