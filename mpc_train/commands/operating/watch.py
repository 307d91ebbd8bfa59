"""`mpc-train watch`: the live page of a run on this machine, in a terminal."""

import contextlib
import http.client
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from mpc_train.base.printing import escaped, say
from mpc_train.commands.common import Format, FormatOption, emit, reporting

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_STATE_BYTES = 1 << 20
LOOK_S = 1.0
AWAY_S = 60.0
"""A page that has not answered for so long is gone: a node that is started, or started again, takes
seconds until it answers."""
SHOWN_EVENTS = 8
LOCAL = ("127.0.0.1", "localhost")
COLOURS = {
    **dict.fromkeys(("computing", "done", "connected", "running"), "green"),
    **dict.fromkeys(("missing", "returning", "reconnecting", "stopped"), "yellow"),
    **dict.fromkeys(("gathering", "agreeing", "suspended"), "yellow"),
    **dict.fromkeys(("lost", "failed"), "red"),
}
"""Of the phases of a run and the states of a node."""


class _Event(msgspec.Struct):
    number: int
    seconds: float
    text: str


class _Node(msgspec.Struct):
    state: str
    phase: str
    step: int
    bytes_sent: int


class _State(msgspec.Struct):
    """What is shown of /state.json: another program may answer at that port."""

    phase: str
    message: str
    step: int
    steps: int
    rate: float
    left_s: float | None
    bytes_sent: int
    exit: int | None
    events: list[_Event]
    job: str
    seconds: float
    losses: list[tuple[float, float]]
    nodes: dict[str, _Node]
    service: dict[str, float] | None


_STATE = msgspec.json.Decoder(_State)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection."""

    def redirect_request(self, *of: Any) -> None:
        return None


State = dict[str, Any]
UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="What a node started with --live has printed.")
]


def watch(url: UrlArgument, output: FormatOption = Format.text) -> None:
    """Show a run that was started with --live on this machine until it ends.

    On a terminal a table that changes, otherwise lines. Exit status: the run's own, or 7 if nothing
    answers for a minute. json: one line for each change, as /state.json has it.
    """
    with reporting(output):
        if output is Format.json:
            last = _printed(url)
        else:
            last = _drawn(url) if sys.stdout.isatty() else _listed(url)
        if last["phase"] == "failed":
            from mpc_train.errors import NodeFailedError

            status = last.get("exit")
            if not isinstance(status, int) or not 0 < status < 256:
                status = 8
            raise NodeFailedError("AbortedError", "aborted", last["message"], status)


def _printed(url: str) -> State:
    """One line of JSON for each change. Returns the last state, as the two below do."""
    last: State = {}
    for state in _states(url, lambda text: say(text, aside=True)):
        if any(state.get(word) != last.get(word) for word in ("step", "phase", "service")):
            emit(state)
        last = state
    return last


def _listed(url: str) -> State:
    """A line for each event, and as many lines of progress as a run without a terminal prints."""
    from mpc_train.run.pacing import LinePace

    last: State = {}
    shown, pace = -1, LinePace()
    for state in _states(url, lambda text: say(text, aside=True)):
        if state["seconds"] < last.get("seconds", 0):
            shown = -1  # the node was started again, and counts its events from 0
        for event in state["events"]:
            if event["number"] > shown:
                say(escaped(f"{event['seconds']:8.1f} s  {event['text']}"))
                shown = event["number"]
        if state["step"] != last.get("step") and state["steps"]:
            share = state["step"] / state["steps"]
            if share >= 1 or pace.due(state["phase"], share):
                say(progress_line(state), aside=True)
        if state["service"] != last.get("service") and pace.due("serving", 0.0):
            say(progress_line(state), aside=True)
        last = state
    return last


def _drawn(url: str) -> State:
    """A table that is drawn anew for each state; the last one stays."""
    from rich.console import Console
    from rich.live import Live

    console, last = Console(), State()
    with Live(console=console, auto_refresh=False) as live:

        def away(text: str) -> None:
            live.console.print(escaped(text), markup=False, highlight=False)

        for state in _states(url, away):
            live.update(picture(state), refresh=True)
            last = state
    return last


def picture(state: State) -> "RenderableType":
    """The state of a run for a terminal. Texts of peers are never taken as markup."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from mpc_train.results.report import size

    def coloured(word: str) -> Text:
        return Text(escaped(word), COLOURS.get(word, ""))

    head = Text.assemble((escaped(state["job"]) or "no job yet", "bold"), "  ")
    head.append_text(coloured(state["phase"]))
    if state["message"]:
        head.append(f": {escaped(state['message'])}")
    nodes = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("node", "state", "phase"):
        nodes.add_column(title)
    for title in ("step", "sent"):
        nodes.add_column(title, justify="right")
    for name, node in state["nodes"].items():
        step, sent = f"{node['step']:,}" if node["step"] else "", size(node["bytes_sent"])
        texts = Text(escaped(name)), coloured(node["state"]), Text(escaped(node["phase"]))
        nodes.add_row(*texts, step, sent)
    total = max(state["steps"], 1)
    bar = [] if state["service"] else [ProgressBar(total=total, completed=state["step"], width=60)]
    losses = [
        Text(f"loss {loss:.4f} after step {step:,.0f}") for step, loss in state["losses"][-1:]
    ]
    events = [
        Text(escaped(f"{event['seconds']:8.1f} s  {event['text']}"), overflow="ellipsis")
        for event in state["events"][-SHOWN_EVENTS:]
    ]
    told = Text(progress_line(state))
    # A bar alone does not end its line.
    return Group(
        head, *(Padding(one, 0) for one in bar), told, *losses, Text(), nodes, Text(), *events
    )


def progress_line(state: State) -> str:
    """How far a run is, or what a service has done, in one line."""
    from mpc_train.results.report import duration, size

    if service := state["service"]:
        times = ", ".join(
            f"{word} {service[name]:,.1f} ms"
            for word, name in (("median", "median_ms"), ("99th percentile", "slow_ms"))
            if service[name]
        )
        return (
            f"{service['questions']:,} questions, {service['rows']:,} rows, "
            f"{service['rate']:,.1f} rows/s, {service['refused']:,} refused, "
            f"{service['waiting']:,} waiting, {times or 'no answer yet'}, "
            f"{size(state['bytes_sent'])} sent"
        )
    left = "?" if state["left_s"] is None else duration(state["left_s"])
    return escaped(
        f"step {state['step']} of {state['steps']}, {state['rate']:.2f} steps/s, {left} left, "
        f"{size(state['bytes_sent'])} sent"
    )


def _states(url: str, tell: Callable[[str], None]) -> Iterator[State]:
    """What the page says, each second, until the run has ended. tell: prints that nothing answers
    for the moment. Raises TransportError."""
    from mpc_train.errors import ConfigError
    from parties.errors import TransportError

    host = port = None
    with contextlib.suppress(ValueError):
        place = urlsplit(url)
        host, port = place.hostname if place.scheme == "http" else None, place.port
    if host not in LOCAL or port is None:
        raise ConfigError(f"{url}: expected http://127.0.0.1:PORT/, as --live prints it")
    heard, told = time.monotonic(), False
    while True:
        try:
            state = _asked(f"http://{host}:{port}/state.json")
        except OSError as error:
            reason = getattr(error, "reason", error)
            if time.monotonic() - heard > AWAY_S:
                raise TransportError(
                    f"{url}: no run answers there ({reason}); it has ended, or was started without "
                    "--live"
                ) from error
            if not told:
                tell(f"nothing answers at {url}; waiting up to {AWAY_S:.0f} s for it")
            told = True
        except (
            ValueError,
            RecursionError,
            http.client.HTTPException,
            msgspec.MsgspecError,
        ) as error:
            raise TransportError(f"{url}: another program answers there") from error
        else:
            heard, told = time.monotonic(), False
            yield state
            if state["phase"] in ("done", "failed"):
                return
        time.sleep(LOOK_S)


def _asked(url: str) -> State:
    # Never through a proxy of the environment, and to no other place: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
    with opener.open(url, timeout=5) as answer:
        data = answer.read(MAX_STATE_BYTES)
    _STATE.decode(data)
    found: State = json.loads(data)
    return found
