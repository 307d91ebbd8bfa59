"""A whole run whose owners keep their tables in three ways, against the same in the clear."""

import sqlite3
from pathlib import Path

import polars
import pytest

from tests.support.commands import ended, launch, launched
from tests.support.csv_tables import fitting_tables
from tests.support.jobs import column, replaced, schema_toml, write_job

SCHEMA = schema_toml(column("age", range=[0, 120]), column("dose"), column("ill", "boolean"))


def study(folder: Path) -> Path:
    """ann: Parquet; bob: SQLite; cleo: CSV with semicolons, decimal commas and no header."""
    frames = {
        owner: polars.read_csv("\n".join(lines).encode())
        for owner, lines in fitting_tables().items()
    }
    frames["ann"].with_columns(polars.col("ill") == 1).write_parquet(folder / "ann.parquet")
    with sqlite3.connect(folder / "bob.db") as connection:
        connection.execute("create table patients (age real, dose real, ill integer, note text)")
        rows = frames["bob"].rows()
        connection.executemany("insert into patients values (?, ?, ?, 'private')", rows)
    connection.close()
    text = frames["cleo"].write_csv(include_header=False, separator=";").replace(".", ",")
    (folder / "cleo.txt").write_text(text, encoding="utf-16")
    (folder / "local.toml").write_text(
        "[data]\n"
        'ann = "ann.parquet"\n'
        'bob = { url = "sqlite:///bob.db", query = "select age, dose, ill from patients" }\n'
        'cleo = { file = "cleo.txt", delimiter = ";", decimal = ",", encoding = "utf-16", '
        'header = ["age", "dose", "ill"] }\n'
    )
    (folder / "schema.toml").write_text(SCHEMA)
    text = replaced("range = [0, 120] ", "").replace("scale = 10.0, }", "scale = 10.0 }")
    text = text.replace("learning_rate = 0.5", "learning_rate = 0.1")
    return write_job(folder, text.replace("[data]\n", '[data]\nschema = "schema.toml"\n'))


@pytest.mark.slow
def test_owners_with_tables_of_three_kinds(tmp_path: Path) -> None:
    path = study(tmp_path)
    record = launched(path, "--compare", "--vault")
    assert record["max_weight_difference"] < 2**-10
    assert record["metrics"].keys() == record["twin_metrics"].keys()
    with sqlite3.connect(tmp_path / "bob.db") as connection:
        connection.execute("update patients set ill = 7 where rowid = 12")
    connection.close()
    failed = launch(path, "--vault", "--run-dir", str(tmp_path / "again"))
    _, err = ended(failed)
    assert failed.returncode == 4
    assert "bob.db: row 12: column 'ill': neither true nor false" in err
