"""What a node says while no coordinator answers: at once, with what to check, and the limit."""

import socket
from collections.abc import Mapping
from typing import Any

import pytest

from parties.errors import AbortedError, TransportError
from parties.nodes import dialling
from parties.nodes.dialling import await_connection, try_neighbours
from parties.stop import StopFlag
from protocols.errors import InterruptedRunError
from tests.support.local_run import other_program
from tests.support.patience import PATIENCE_S


class Attempt:
    """A connection to the coordinator that comes about with the first word of trouble."""

    def __init__(self, trouble: str | None = None, connects: bool = True) -> None:
        self.state = "connecting"
        self.trouble = trouble
        self.connects = connects
        self.said: list[tuple[str, dict[str, Any]]] = []

    def hear(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.said.append((kind, dict(fields)))
        if self.connects:
            self.state = "connected"

    def wait(self, address: str, limit_s: float) -> None:
        await_connection(self, address, limit_s, StopFlag(), self.hear)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "HINT_S", 0.0)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def unresolved(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_a_closed_port_is_said_once_and_waited_out() -> None:
    """The limit stands in the message; a coordinator that comes later is taken."""
    address, attempt = closed_port(), Attempt()
    attempt.wait(address, 4000.0)
    ((kind, fields),) = attempt.said
    assert kind == "waiting" and fields["address"] == address and fields["limit_s"] == 4000.0
    assert "nothing listens on port" in fields["trouble"]


def test_the_limit_ends_the_wait_with_the_reason() -> None:
    address, attempt = closed_port(), Attempt(connects=False)
    with pytest.raises(TransportError, match="within 1 s: nothing listens on port") as caught:
        attempt.wait(address, 1.0)
    assert address in str(caught.value)
    assert len(attempt.said) <= 1


@pytest.mark.parametrize("name", ["EAI_NONAME", "EAI_NODATA"])
def test_a_name_that_exists_nowhere_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if not hasattr(socket, name):
        pytest.skip(f"no {name} here")
    unresolved(monkeypatch, getattr(socket, name))
    with pytest.raises(TransportError, match=r"desk\.example: .*|the name desk\.example does not"):
        Attempt(connects=False).wait("tcp://desk.example:7700", 2 * PATIENCE_S)


def test_a_name_server_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    unresolved(monkeypatch, socket.EAI_AGAIN)
    attempt = Attempt()
    attempt.wait("tcp://desk.example:7700", 2 * PATIENCE_S)
    assert "the name desk.example does not resolve" in attempt.said[0][1]["trouble"]


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 10]
)
def test_another_program_ends_it_at_once(greeting: bytes) -> None:
    with (
        other_program(greeting) as address,
        pytest.raises(TransportError, match="another program than mpc-train answers on port"),
    ):
        Attempt(connects=False).wait(address, 2 * PATIENCE_S)


def test_zeromq_that_lets_nobody_in_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "SPOKEN_S", 0.0)
    attempt = Attempt()
    with other_program(b"\xff" + bytes(8) + b"\x7f") as address:
        attempt.wait(address, 2 * PATIENCE_S)
    assert "ZeroMQ program there accepts nobody" in attempt.said[0][1]["trouble"]


def test_a_refusal_is_not_waited_out() -> None:
    attempt = Attempt("desk refuses this node", connects=False)
    with pytest.raises(TransportError, match="desk refuses this node"):
        attempt.wait(closed_port(), 2 * PATIENCE_S)


def test_a_stop_ends_the_wait() -> None:
    stop, attempt = StopFlag(), Attempt()
    stop.set(AbortedError("interrupted", "desk"))
    with pytest.raises(InterruptedRunError, match="connecting to the coordinator"):
        await_connection(attempt, closed_port(), 2 * PATIENCE_S, stop, attempt.hear)


def test_neighbours_are_tried_and_the_unreachable_ones_named() -> None:
    """Dialled are those that listen and come first; who dials this node is not tried."""
    attempt, dead = Attempt(), closed_port()
    with other_program(b"\xff" + bytes(8) + b"\x7f") as good:
        listens = {"ann": dead, "bob": good, "cleo": None, "dora": None}
        found = try_neighbours("dora", ("ann", "bob", "cleo"), listens, PATIENCE_S, attempt.hear)
    assert found == ("ann",)
    ((kind, fields),) = attempt.said
    assert (kind, fields["node"], fields["peer"], fields["address"]) == (
        *("unreachable", "dora", "ann"),
        dead,
    )
    assert "nothing listens" in fields["trouble"]
