"""`mpc-train watch`: the live page of a run on this machine, in a terminal."""

import http.client
import json
import time
import urllib.request
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from mpc_train.base.printing import lines_escaped, say
from mpc_train.commands.common import Format, FormatOption, emit, reporting

MAX_STATE_BYTES = 1 << 20
LOOK_S = 1.0
AWAY_S = 10.0
"""A page that has not answered for so long is gone."""
LOCAL = ("127.0.0.1", "localhost")


class _Event(msgspec.Struct):
    number: int
    seconds: float
    text: str


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


_STATE = msgspec.json.Decoder(_State)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection."""

    def redirect_request(self, *of: Any) -> None:
        return None


UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="What a node started with --live has printed.")
]


def watch(url: UrlArgument, output: FormatOption = Format.text) -> None:
    """Show a run that was started with --live on this machine until it ends.

    Exit status: the run's own, or 7 if nothing answers. json: one line for each
    change, as /state.json has it.
    """
    with reporting(output):
        last: dict[str, Any] = {}
        shown = -1
        for state in _states(url):
            if output is Format.json:
                if state["step"] != last.get("step") or state["phase"] != last.get("phase"):
                    emit(state)
            else:
                for event in state["events"]:
                    if event["number"] > shown:
                        say(lines_escaped(f"{event['seconds']:8.1f} s  {event['text']}"))
                        shown = event["number"]
                if state["step"] != last.get("step"):
                    say(_line(state), aside=True)
            last = state
        if last["phase"] == "failed":
            from mpc_train.errors import NodeFailedError

            status = last.get("exit")
            if not isinstance(status, int) or not 0 < status < 256:
                status = 8
            raise NodeFailedError("AbortedError", "aborted", last["message"], status)


def _states(url: str) -> "Any":
    """What the page says, each second, until the run has ended. Raises TransportError."""
    from mpc_train.errors import ConfigError
    from parties.errors import TransportError

    try:
        place = urlsplit(url)
        host, port = place.hostname, place.port
    except ValueError:
        host, port = None, None
    if host not in LOCAL or port is None or place.scheme != "http":
        raise ConfigError(f"{url}: expected http://127.0.0.1:PORT/, as --live prints it")
    heard = time.monotonic()
    while True:
        try:
            state = _asked(f"http://{host}:{port}/state.json")
            heard = time.monotonic()
            yield state
            if state["phase"] in ("done", "failed"):
                return
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            if time.monotonic() - heard > AWAY_S or not isinstance(error, OSError):
                raise TransportError(
                    f"{url}: no run answers there ({error}); it has ended, or was started without "
                    "--live"
                ) from error
        time.sleep(LOOK_S)


def _asked(url: str) -> dict[str, Any]:
    # Never through a proxy of the environment, and to no other place: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())
    with opener.open(url, timeout=5) as answer:
        data = answer.read(MAX_STATE_BYTES)
    _STATE.decode(data)
    found: dict[str, Any] = json.loads(data)
    return found


def _line(state: dict[str, Any]) -> str:
    from mpc_train.results.report import duration, size

    left = "?" if state["left_s"] is None else duration(state["left_s"])
    return lines_escaped(
        f"step {state['step']} of {state['steps']}, {state['rate']:.2f} steps/s, {left} left, "
        f"{size(state['bytes_sent'])} sent"
    )
