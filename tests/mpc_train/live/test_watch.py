"""A run in a terminal, as its page describes it."""

from __future__ import annotations

import io
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from mpc_train.cli import app
from mpc_train.commands.operating import watch
from mpc_train.live.board import Board

URL = "http://127.0.0.1:7701/"
NAMES = ("ann", "bob")
Answers = Callable[[list[Any]], None]


def running(step: int = 40, **more: Any) -> dict[str, Any]:
    board = Board(NAMES)
    board.event("proposed", {"job": "[red]study[/red]", "digest": "ab" * 32})
    board.event("started", {"nodes": NAMES})
    for name in NAMES:
        fields = {"step": step, "steps": 100, "phase": "training", "bytes_sent": 1000}
        board.event("progress", {"node": name, "fields": fields})
    board.event("loss", {"step": 20, "loss": 0.25})
    return {**board.snapshot(), **more}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """What the page answers, one after the other; a second passes between two of them."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def given(states: list[Any]) -> None:
        coming = iter(states)

        def asked(url: str) -> Any:
            state = next(coming, urllib.error.URLError("refused"))
            if isinstance(state, Exception):
                raise state
            return state

        monkeypatch.setattr(watch, "_asked", asked)

    yield given


def test_a_page_that_answers_late_is_waited_for(answers: Answers) -> None:
    answers([urllib.error.URLError("refused")] * 30 + [running(), running(phase="done")])
    result = CliRunner().invoke(app, ["watch", URL])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("nothing answers") == 1
    assert "all nodes compute" in result.stdout


def test_a_page_that_never_answers_is_an_error(answers: Answers) -> None:
    answers([])
    result = CliRunner().invoke(app, ["watch", URL])
    assert result.exit_code == 7
    assert "started without --live" in result.stderr
    answers([ValueError("not JSON")])
    result = CliRunner().invoke(app, ["watch", URL])
    assert result.exit_code == 7
    assert "another program" in result.stderr


def test_a_coordinator_that_is_started_again_tells_its_events(answers: Answers) -> None:
    late = [{"number": 40, "seconds": 300.0, "text": "first life"}]
    again = [{"number": 1, "seconds": 0.1, "text": "second life"}]
    answers(
        [
            running(seconds=310.0, events=late),
            urllib.error.URLError("refused"),
            running(seconds=5.0, events=again),
            running(seconds=6.0, events=again, phase="failed", message="over", exit=130),
        ]
    )
    result = CliRunner().invoke(app, ["watch", URL])
    assert result.exit_code == 130
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == [
        "first life",
        "second life",
    ]


def test_lines_come_as_rarely_as_those_of_a_run(answers: Answers) -> None:
    answers([*(running(step) for step in range(2, 100)), running(100, phase="done")])
    result = CliRunner().invoke(app, ["watch", URL])
    steps = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert 15 <= len(steps) <= 25
    assert steps[-1].startswith("step 100 of 100")


def served(rows: int) -> dict[str, Any]:
    board = Board(NAMES)
    board.event("started", {"nodes": NAMES})
    said = {"phase": "serving", "questions": 2, "rows": rows, "refused": 1, "median_ms": 8.5}
    board.event("progress", {"node": "ann", "fields": said})
    return board.snapshot()


def test_a_service_says_what_it_has_answered(answers: Answers) -> None:
    coming = [served(16 * (second + 1)) for second in range(100)]
    answers([*coming, {**served(1600), "phase": "failed", "exit": 130}])
    result = CliRunner().invoke(app, ["watch", URL])
    (line,) = (one for one in result.stderr.splitlines() if "questions" in one)
    assert line.startswith("2 questions, 976 rows, 0.0 rows/s, 1 refused, 0 waiting, median 8.5 ms")
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(watch.picture(served(1600)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1,600 rows" in text
    assert "step 0 of 0" not in text


def test_a_terminal_gets_a_table_and_no_markup() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    state = running(message="\x1b]0;evil")
    console.print(watch.picture(state))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in ("[red]study[/red]", "running", "ann", "computing", "step 40 of 100"):
        assert said in text
    assert "loss 0.2500 after step 20" in text
    assert "\x1b]0;" not in text
    # Before anything is known as well.
    console.print(watch.picture(Board(NAMES).snapshot()))
