"""`mpc-train query`: tables in and tables out; what is answered of a table is never thrown away."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpc_train.asking import predictions
from mpc_train.commands.serving import query, service
from mpc_train.errors import QueryRefusedError, UnansweredError, classify
from mpc_train.results.predicting import Predictor
from mpc_train.run.node_config import NodeConfig
from mpc_train.serving.offered import CONNECT_S, MOST_ROWS
from tests.mpc_train.results.test_predict import raw
from tests.support.commands import as_json, last_object, mpc_train
from tests.support.he_company import Company
from tests.support.preparation_case import prepared_job
from tests.support.serving import ClearService, opened_model

ROWS = 2 * MOST_ROWS + 44


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    return Company(tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module")
def clear(company: Company) -> Predictor:
    return opened_model(company.folder / "model", prepared_job(company.folder))


Serving = Callable[..., ClearService]


@pytest.fixture
def serving(clear: Predictor, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Puts a service with one model behind the command."""
    monkeypatch.setattr(predictions, "AT_ONCE", 1)

    def made(refuse: Callable[[int], str | None] = lambda number: None, **says: Any) -> Any:
        there = ClearService((clear, {}), (clear, says), refuse=refuse)

        @contextlib.contextmanager
        def connected(
            config: NodeConfig, identity: Any, roster: Any, audit: Any, *seconds: float
        ) -> Any:
            assert seconds == (CONNECT_S, config.timeouts.join_s)
            assert (config.place.name, identity.card.name) == ("ann", "ann")
            assert "company" in {card.name for card in roster}
            yield there

        monkeypatch.setattr(service, "connected", connected)
        return there

    return made


@pytest.fixture
def ask(company: Company, tmp_path: Path) -> tuple[object, ...]:
    table = raw(tmp_path / "new.csv", ROWS)
    return ("query", table, "--config", company.config("ann"), "--model", "study")


def test_a_table_in_and_a_table_out(
    company: Company, serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    there = serving()
    out, plain = tmp_path / "found.csv", tmp_path / "plain.csv"
    found = as_json(*ask, "--out", out, "--id", "note")
    assert found["status"] == "ok"
    assert (found["rows"], found["model"], found["version"]) == (ROWS, "study", 2)
    assert found["rows_left"] == 1000 - 2 * MOST_ROWS - 48
    assert mpc_train("predict", company.folder / "model", ask[1], "--out", plain, "--id", "note")
    assert out.read_bytes() == plain.read_bytes()
    assert sum(there.asked) == ROWS
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "found.csv", "plain.csv"}
    assert out.stat().st_mode & 0o777 == 0o600
    kept = as_json(*ask, "--out", "vault:found", "--version", "1")
    assert (kept["rows"], kept["version"]) == (ROWS, 1)


def test_only_classes_come_out_where_no_more_is_allowed(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    serving(answer="class")
    out = tmp_path / "found.json"
    assert mpc_train(*ask, "--out", out, "--rows", "9").exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 10))
    assert {frozenset(line) for line in lines} == {frozenset(("row", "prediction"))}
    assert {line["prediction"] for line in lines} <= {"true", "false"}


def test_what_was_answered_before_the_quota_was_spent_stays(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    spent = serving(lambda number: "quota" if number > 1 else None)
    out, partly = tmp_path / "found.csv", tmp_path / f"found.rows-1-{2 * MOST_ROWS}.csv"
    result = mpc_train(*ask, "--out", out, "--format", "json")
    assert result.exit_code == 6
    said = last_object(result.stdout)
    assert (said["status"], said["code"]) == ("QueryRefusedError", "quota")
    first = 2 * MOST_ROWS + 1
    assert f"rows from {first} on were not answered" in said["message"]
    assert str(partly) in said["message"] and f"--from-row {first}" in said["message"]
    assert not out.exists() and spent.asked == [MOST_ROWS] * 2
    serving()
    rest = tmp_path / "rest.csv"
    assert mpc_train(*ask, "--out", rest, "--from-row", first).exit_code == 0
    assert mpc_train(*ask, "--out", out).exit_code == 0
    whole, *parts = ([*csv.reader(path.open())] for path in (out, partly, rest))
    assert parts[0] + parts[1][1:] == whole
    assert {path.name for path in tmp_path.iterdir()} == {
        *("new.csv", "found.csv", "rest.csv", partly.name)
    }


def test_nothing_is_written_where_nothing_was_answered(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    for code in ("quota", "not-allowed"):
        serving(lambda number, code=code: code)
        result = mpc_train(*ask, "--out", tmp_path / "found.csv")
        assert result.exit_code == 6 and "the service refuses" in result.stderr
        assert "on were not answered" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_of_the_vault_nothing_is_kept_in_part(
    serving: Serving, ask: tuple[object, ...], company: Company
) -> None:
    serving(lambda number: "quota" if number else None)
    result = mpc_train(*ask, "--out", "vault:partly")
    assert result.exit_code == 6 and f"rows 1 to {MOST_ROWS} were not kept" in result.stderr
    listed = mpc_train("vault", "ls", "--config", company.config("ann"))
    assert listed.exit_code == 0 and "partly" not in listed.stdout


def test_more_rows_than_a_day_has_are_not_begun(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    there = serving(rows_a_day=ROWS + 16)
    for spent in (17, None):
        there.spent = spent
        result = mpc_train(*ask, "--out", tmp_path / "found.csv")
        if spent is None:  # then the service counts alone
            assert result.exit_code == 0
            break
        assert result.exit_code == 6 and not there.questions
        assert f"count as {2 * MOST_ROWS + 48}" in result.stderr
        assert f"but of the {ROWS + 16} rows" in result.stderr
        assert f"{ROWS - 1} are left; ask some" in result.stderr
        advised = result.stderr.rsplit("--rows ", 1)[1].strip()
        assert f"--from-row 1 --rows {advised}" in result.stderr
        asked = mpc_train(*ask, "--out", tmp_path / "found.csv", "--rows", advised)
        assert asked.exit_code == 0 and "Of the 316 rows" in asked.stdout


def test_a_table_that_is_not_there_is_not_asked_about(company: Company, tmp_path: Path) -> None:
    """The service is not even connected to: nobody listens at its address here."""
    asked = ("query", tmp_path / "none.csv", "--config", company.config("ann"))
    result = mpc_train(*asked, "--model", "study", "--out", tmp_path / "found.csv")
    assert result.exit_code == 4 and "none.csv: there is no such file" in result.stderr


def test_a_table_without_a_row_is_warned_about(
    serving: Serving, company: Company, tmp_path: Path
) -> None:
    there, table = serving(), raw(tmp_path / "new.csv", 1)
    table.write_text(table.read_text().splitlines()[0] + "\n")
    asked = ("query", table, "--config", company.config("ann"), "--model", "study")
    result = mpc_train(*asked, "--out", tmp_path / "found.csv")
    assert result.exit_code == 0 and "columns and no row" in result.stderr
    assert not there.questions


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--model", "other"), 6, "there are: study"),
        (("--version", "7"), 6, "there are: 1, 2"),
        (("--from-row", ROWS + 1), 4, f"has no row {ROWS + 1}"),
        (("--out", "found.txt"), 3, "change the ending"),
        (("--list",), 3, "give it no table"),
        (("--delimiter", ";"), 4, "is that the delimiter"),
        (("--id", "prediction"), 3, "cannot be kept"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    serving: Serving,
    ask: tuple[object, ...],
    tmp_path: Path,
    words: tuple[object, ...],
    status: int,
    said: str,
) -> None:
    there = serving()
    result = mpc_train(*ask, "--out", tmp_path / "found.csv", *words)
    assert result.exit_code == status and said in result.stderr
    assert not there.questions and not (tmp_path / "found.csv").exists()


def test_a_bad_cell_is_named_before_a_row_is_asked(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    there, table = serving(), tmp_path / "new.csv"
    lines = table.read_text().splitlines()
    lines[ROWS - 1] = "x,40,,200,,north"
    table.write_text("\n".join(lines))
    result = mpc_train(*ask, "--out", tmp_path / "found.csv")
    assert result.exit_code == 4 and f"new.csv: line {ROWS}: column 'visits'" in result.stderr
    assert not there.questions


def test_what_may_be_asked_is_listed(company: Company, serving: Serving) -> None:
    serving(answer="probability", decimals=1, rows_a_day=500).spent = 16
    words = ("query", "--config", company.config("ann"), "--list")
    first, second = as_json(*words)["models"]
    assert (first["version"], second["version"]) == (1, 2)
    assert (second["answer"], second["decimals"], second["rows_a_day"]) == ("probability", 1, 500)
    age, *others = second["columns"]
    assert age == {"name": "age", "kind": "number", "range": [0.0, 120.0], "nullable": True}
    assert [column["name"] for column in others] == ["income", "visits", "smoker", "region"]
    assert (first["rows_left"], second["rows_left"]) == (1000 - 16, 484)
    shown = mpc_train(*words).stdout
    assert "study 2: logistic model of ill" in shown
    assert "answers with the probability, 1 decimal; 500 rows a day, of which 484 are" in shown
    lacking = mpc_train("query", "--config", company.config("ann"))
    assert lacking.exit_code == 3 and "--list" in lacking.stderr


def test_the_cause_of_an_unanswered_table_is_its_exit_status() -> None:
    for cause, status in ((QueryRefusedError("spent", "quota"), 6), (KeyboardInterrupt(), 130)):
        error = UnansweredError("rows from 3 on were not answered")
        error.__cause__ = cause
        assert classify(error)[2] == status


def test_an_interrupted_table_says_what_was_counted(
    serving: Serving, ask: tuple[object, ...], tmp_path: Path
) -> None:
    out, interrupted = tmp_path / "found.csv", KeyboardInterrupt
    for answered, said in (
        (0, ["up to 128 rows of today", "no row was answered", "again with --from-row 1 "]),
        (1, ["up to 256 rows of today", "found.rows-1-128.csv", "others with --from-row 129 "]),
    ):

        def refuse(number: int, answered: int = answered) -> None:
            if number == answered:
                raise interrupted

        serving(refuse)
        result = mpc_train(*ask, "--out", out)
        assert result.exit_code == 130 and not out.exists()
        assert all(each in result.stderr for each in ["interrupted", *said]), result.stderr
    serving(lambda number: "quota")
    refused = mpc_train(*ask, "--out", out)
    assert refused.exit_code == 6 and "rows of today" not in refused.stderr


@pytest.mark.parametrize("form", ["csv", "json"])
def test_no_row_of_an_answer_that_was_half_written_is_kept(
    form: str,
    serving: Serving,
    ask: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks the others from the row that is named would have some of them twice."""
    answered, written = MOST_ROWS, 0

    class Slow(list[list[Any]]):
        def __iter__(self) -> Iterator[list[Any]]:
            nonlocal written
            for record in super().__iter__():
                written += 1
                if written > answered + 50:
                    raise KeyboardInterrupt
                yield record

    records = predictions.SharedPredictor.records
    monkeypatch.setattr(
        predictions.SharedPredictor,
        "records",
        lambda *arguments: (Slow(chunk) for chunk in records(*arguments)),
    )
    serving()
    result = mpc_train(*ask, "--out", tmp_path / f"found.{form}")
    assert result.exit_code == 130 and f"--from-row {answered + 1} " in result.stderr
    kept = (tmp_path / f"found.rows-1-{answered}.{form}").read_text()
    assert kept.endswith("\n") and len(kept.splitlines()) == answered + (form == "csv")


def test_progress_is_told_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = query._Progress(1000, query.Format.text, lambda: now[0])
    for done in range(100, 600, 100):
        now[0] += 3
        progress(done)
    assert capsys.readouterr().err.splitlines() == [
        "200 of 1,000 rows, about 24 s left",
        "400 of 1,000 rows, about 18 s left",
    ]
