"""What comes from elsewhere reaches a terminal or a log as text, and as nothing else."""

import json
import logging
import tomllib

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.base.printing import error_escaped, escaped, hidden, lines_escaped, say
from mpc_train.commands.common import Format, configure_logging, reporting
from mpc_train.errors import DataError
from mpc_train.run.progress import ProgressView

HOSTILE = {
    "colour": "\x1b[31mred",
    "window title": "\x1b]0;owned\x07",
    "clear screen": "\x9b2J",
    "forged line": "name\nMetric accuracy 1.0000",
    "overwritten line": "name\rMetric accuracy 1.0000",
    "backspaces": "deny\b\b\b\ballow",
    "digest backwards": "\u202e1a2b\u202c",
    "isolate": "\u2066abc\u2069",
    "mark": "\u200fabc",
    "line separator": "name\u2028Metric",
    "invisible": "na\u200bme\ufeff",
    "half a character": "na\udcffme",
    "delete": "na\x7fme",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_escaped(text: str) -> None:
    shown = escaped(text)
    assert hidden(text) is not None and hidden(shown) is None
    assert "\\u" in shown and "\n" not in shown
    assert json.loads(f'"{shown}"') == text  # nothing is lost


@pytest.mark.parametrize(
    "text",
    [
        "Größe",
        "年齢",
        "возраст",
        "نام\u200cخانوادگی",
        "क\u094d\u200dष",
        "a b",
        "[red]x[/red]",
        "😀",
        "\\n",
    ],
)
def test_names_of_all_languages_stay(text: str) -> None:
    assert hidden(text) is None
    assert escaped(text) == lines_escaped(text) == error_escaped(text) == text


def test_our_own_line_ends_stay() -> None:
    assert lines_escaped("Job a\n\n  computed\tb\x1b") == "Job a\n\n  computed\tb\\u001b"
    ours = "cannot be trained:\n  0: is not offered\n  1: neither"
    assert error_escaped(ours) == ours
    assert error_escaped("unknown field `a\nok: done`") == "unknown field `a\\u000aok: done`"


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_steers_nothing(text: str) -> None:
    assert hidden(escaped(text)) is None
    assert hidden(lines_escaped(text).replace("\n", "").replace("\t", "")) is None
    assert all(not line or line[0] == " " for line in error_escaped(text).split("\n")[1:])
    json.loads(lines_escaped(json.dumps({"name": text}, ensure_ascii=False)))
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        draft = f"name = {json.dumps(text, ensure_ascii=False)}"
        assert tomllib.loads(lines_escaped(draft))["name"] == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("output", list(Format))
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], text: str, output: Format) -> None:
    with pytest.raises(typer.Exit), reporting(output):
        raise DataError(f"table.csv: column {text}: not a number")
    captured = capsys.readouterr()
    (line,) = captured.err.removesuffix("\n").split("\n")
    assert hidden(line) is None
    assert line.startswith("error: table.csv: column ")
    for line in captured.out.splitlines():
        assert hidden(json.loads(line)["message"]) is None


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_logs_and_progress_are_escaped(capsys: pytest.CaptureFixture[str], text: str) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        configure_logging()
        logging.getLogger("parties.nodes.coordinator").warning("refused %s", text)
    finally:
        root.handlers = before
    ProgressView().say(text.replace("\n", " "))
    say(text.replace("\n", " "))
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith("warning: refused ")
    assert hidden(first) is None and hidden(second) is None
    assert hidden(captured.out.removesuffix("\n")) is None


def test_markup_is_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import rich.console

    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    made = rich.console.Console

    def console(*, stderr: bool) -> rich.console.Console:
        return made(file=screen, force_terminal=True, width=200, color_system=None)

    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(rich.console, "Console", console)
    view = ProgressView()
    with view.shown():
        view.say("column [red]age[/red] \x1b[31m")
        view._bar.update(view._task, description="[bold]reading[/bold]", note="[blink]1[/blink]")
        view._bar.refresh()
    shown = screen.getvalue()
    assert "column [red]age[/red] \\u001b[31m" in shown
    assert "[bold]reading[/bold]" in shown and "[blink]1[/blink]" in shown
