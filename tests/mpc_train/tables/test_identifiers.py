"""One number identifies one person, whatever a file's format and its writer make of it."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import DataError, JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.table import load_table
from mpc_train.results.report import describe
from mpc_train.tables.source import Source
from tests.support.cases import CASES, run_case
from tests.support.jobs import NEWTON, SCHEMA_FILE, job_toml, loaded

ROWS = 60
NUMBERS = [1000 + row for row in range(ROWS)]


def job_in(folder: Path, change: Callable[[str], str] = lambda text: text) -> Job:
    """Case 47c, of which only the job and its schema are taken."""
    for name in ("job.toml", "schema.toml"):
        text = (CASES / "47c" / name).read_text()
        (folder / name).write_text(change(text) if name == "job.toml" else text)
    return load_job(folder / "job.toml")


def columns() -> dict[str, list[float]]:
    return {"b": [row / 10 for row in range(ROWS)]}


def csv(folder: Path, texts: list[str]) -> Source:
    path = folder / "t.csv"
    rows = zip(texts, columns()["b"], strict=True)
    path.write_text("\n".join(["id,b", *(f"{text},{b}" for text, b in rows)]), encoding="utf-8")
    return Source(str(path))


def parquet(folder: Path, cells: polars.Series) -> Source:
    path = folder / "t.parquet"
    polars.DataFrame({"id": cells, **columns()}).write_parquet(path)
    return Source(str(path))


def npz(folder: Path) -> Source:
    path = folder / "t.npz"
    np.savez(path, id=np.array(NUMBERS, np.float64), b=np.array(columns()["b"]))
    return Source(str(path))


def sqlite(folder: Path) -> Source:
    path = folder / "t.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (id, b)")
        texts = [f"\u00a0{number}" if number % 3 else number for number in NUMBERS]
        connection.executemany(
            "insert into t values (?, ?)", zip(texts, columns()["b"], strict=True)
        )
    connection.close()
    return Source(url=f"sqlite:///{path}", query="select * from t order by rowid")


BLANKS = (" ", "\t", "\u00a0", "\u3000", "\u2009", "\ufeff", "\u200b")
WRITTEN: dict[str, Callable[[Path], Source]] = {
    "text": lambda folder: csv(folder, [str(n) for n in NUMBERS]),
    "blanks": lambda folder: csv(
        folder, [f"{BLANKS[n % 7]}{n}{BLANKS[n // 7 % 7]}" for n in NUMBERS]
    ),
    "integers": lambda folder: parquet(folder, polars.Series(NUMBERS, dtype=polars.Int32)),
    "reals": lambda folder: parquet(folder, polars.Series(NUMBERS, dtype=polars.Float64)),
    "narrow reals": lambda folder: parquet(folder, polars.Series(NUMBERS, dtype=polars.Float32)),
    "text of a typed format": lambda folder: parquet(
        folder, polars.Series([f" {number}" for number in NUMBERS])
    ),
    "npz": npz,
    "sqlite": sqlite,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_one_number_is_one_token_in_every_format(tmp_path: Path, written: str) -> None:
    job = job_in(tmp_path)
    plain = load_table(WRITTEN["text"](tmp_path), job, "shop").tokens
    found = load_table(WRITTEN[written](tmp_path), job, "shop").tokens
    assert plain is not None and found is not None
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(
    ("rules", "spell"),
    [
        ('["leading_zeros"]', lambda n: f"{n:08}"),
        ('["digits"]', lambda n: f"No. {n // 100}-{n % 100:02}"),
        ('["punctuation"]', lambda n: f"{n // 100}.{n % 100:02}/"),
        ('["digits", "leading_zeros"]', lambda n: f"DE-00{n}"),
        ('["spaces"]', lambda n: f"{n // 100} {n % 100:02}"),
    ],
)
def test_declared_spellings_join(tmp_path: Path, rules: str, spell: Callable[[int], str]) -> None:
    spelt = [spell(number) for number in NUMBERS]
    without = job_in(tmp_path)
    declared = job_in(
        tmp_path,
        lambda text: text.replace(
            'join.on = ["id"]', f'join.on = ["id"]\njoin.normalise = {{ id = {rules} }}'
        ),
    )
    for job, same in ((without, False), (declared, True)):
        plain, found = (
            load_table(csv(tmp_path, texts), job, "shop").tokens
            for texts in ([str(n) for n in NUMBERS], spelt)
        )
        assert plain is not None and found is not None
        assert np.array_equal(plain, found) == same


SPLIT = job_toml(
    ["b"],
    rows={"ann": 60},
    job='evaluators = ["ann", "bob"]',
    data=f'{SCHEMA_FILE}\nsplit_by = "id"\nSPELLING\ntest_fraction = 0.25',
    train=NEWTON,
    more='[prepare]\nscale = "standard"',
)


def grouped(folder: Path, text: str) -> Job:
    return loaded(folder, text, (CASES / "47c" / "schema.toml").read_text())


def patients(folder: Path, spelling: str) -> list[set[int]]:
    """Whose rows train and whose are held out: 20 patients with three visits each."""
    job = grouped(folder, SPLIT.replace("SPELLING", spelling))
    path = folder / "ann.csv"
    lines = ["id,a,b,y"]
    for row in range(60):
        patient = row % 20
        text = (f"p{patient:02}", f"  P{patient:02}\u00a0", f"P-{patient:02}")[row // 20]
        # The feature, of range [-6, 6], says which patient it is.
        lines.append(f"{text},0.{row},{patient / 10},{row % 2}")
    path.write_text("\n".join(lines), encoding="utf-8")
    table = load_table(Source(str(path), ignore=("a",)), job, "ann")
    value = np.round(table.features[:, 0] * 6 * 10).astype(int)
    return [set(value[rows].tolist()) for rows in split(job)]


def test_one_patient_in_three_spellings_is_in_one_part(tmp_path: Path) -> None:
    rules = 'split_normalise = ["case", "punctuation"]'
    training, held_out = patients(tmp_path, rules)
    assert not training & held_out and len(training | held_out) == 20
    job = load_job(tmp_path / "job.toml")
    assert "rows of one id (case, punctuation ignored) stay together" in describe(job)
    training, held_out = patients(tmp_path, 'split_normalise = ["case"]')
    assert training & held_out  # what is not declared is not the same: P-01 and p01


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("SPELLING", 'split_normalise = ["date", "case"]', "write date alone"),
        ("SPELLING", 'split_normalise = ["case", "case"]', "appears twice"),
        ('split_by = "id"\nSPELLING', 'split_normalise = ["case"]', "is only for split_by"),
    ],
)
def test_contradictions_of_a_grouped_split(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(JobError, match=f"data.split_normalise.*{words}"):
        grouped(tmp_path, SPLIT.replace(old, new))


def test_a_group_that_nothing_is_left_of_is_named(tmp_path: Path) -> None:
    job = grouped(tmp_path, SPLIT.replace("SPELLING", 'split_normalise = ["digits"]'))
    path = tmp_path / "ann.csv"
    lines = ["id,b,y", *(f"{row},0.{row},{row % 2}" for row in range(60))]
    lines[7] = "unknown,1,0"
    path.write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"line 8: column 'id': nothing is left of it after the rules"
    ):
        load_table(Source(str(path)), job, "ann")


@pytest.mark.slow
def test_case_47c(tmp_path: Path) -> None:
    """A blank before half of one owner's identifiers loses nobody."""
    run = run_case("47c", tmp_path, "--compare")
    assert run.status == 0, run.words
    assert run.record["joined_rows"] == 60
    assert run.record["unmatched_records"] == {"bank": 0, "shop": 0}
    assert not run.record["warnings"]
    assert run.record["max_weight_difference"] < 2e-3
