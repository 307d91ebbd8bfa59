"""Clients at the coordinator: what it carries for one of them is bounded, and harms no other."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION
from parties.agreement.visitors import LEFT
from parties.nodes import visits as module
from parties.nodes.visits import MAX_OPEN, Visits
from parties.wire.control_plane import Arrival, ControlServer
from parties.wire.resume import MAX_KEPT_BYTES, Link
from tests.support.visiting import ROLES, SID, contract


class Server:
    """As `ControlServer`. full: processes that do not read."""

    def __init__(self) -> None:
        self.sent: dict[bytes, list[Any]] = defaultdict(list)
        self.full: set[bytes] = set()
        self.forgotten: list[bytes] = []

    def send(self, process: bytes, data: bytes) -> bool:
        assert process not in self.full and process not in self.forgotten
        self.sent[process].append(control.decode_from_coordinator(data, "desk"))
        return True

    def has_room(self, process: bytes) -> bool:
        return process not in self.full

    def keep(self, process: bytes) -> None: ...

    def forget(self, process: bytes) -> None:
        self.forgotten.append(process)


class Desk:
    """A coordinator's part that serves, with clients that have come."""

    def __init__(self) -> None:
        self.server = Server()
        self.carried: list[tuple[str, control.Carried]] = []
        self.refused: list[tuple[bytes, str]] = []
        self.visits = Visits(
            ROLES,
            "desk",
            cast(Any, self.server),
            lambda name, message: self.carried.append((name, cast(Any, message))),
            lambda arrival, message: True,
            lambda process, name, code: self.refused.append((process, code)),
        )
        self.visits.begin(control.Serving(contract().to_bytes(), b"body", SID))

    def come(self, name: str, process: bytes, version: int = CONTRACT_VERSION) -> None:
        self.take(name, process, control.Hello(version, name, None))

    def take(self, name: str, process: bytes, message: control.FromNode | bytes) -> None:
        data = message if isinstance(message, bytes) else control.encode(message)
        self.visits.take(Arrival(process, name, data))

    def ask(self, name: str, process: bytes, data: bytes = b"q", to: str = "ann") -> None:
        self.take(name, process, control.Carry(to, data))


ONE, OTHER = b"1" * 16, b"2" * 16


@pytest.fixture
def desk() -> Desk:
    found = Desk()
    found.come("clinic", ONE)
    found.come("practice", OTHER)
    assert [type(said).__name__ for said in found.server.sent[ONE]] == ["Welcome", "Serving"]
    return found


def test_what_is_not_answered_is_bounded_by_number(desk: Desk) -> None:
    for _ in range(MAX_OPEN):
        desk.ask("clinic", ONE)
    assert len(desk.visits) == 2
    desk.visits.answer("ann", control.Carry("clinic", b"a", ONE))
    desk.ask("clinic", ONE)
    assert len(desk.visits) == 2 and not desk.refused
    desk.ask("clinic", ONE)
    assert len(desk.visits) == 1 and desk.refused == [(ONE, "control")]
    desk.ask("practice", OTHER)
    assert desk.carried[-1] == ("ann", control.Carried("practice", b"q", OTHER))


def test_what_is_not_answered_is_bounded_by_bytes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_BYTES", 100)
    desk.ask("clinic", ONE, bytes(60))
    desk.ask("clinic", ONE, bytes(60), to="bob")
    desk.visits.answer("ann", control.Carry("clinic", b"a", ONE))
    desk.ask("clinic", ONE, bytes(60))
    assert not desk.refused
    desk.ask("clinic", ONE, bytes(41))
    assert desk.refused == [(ONE, "control")]


def test_who_does_not_read_its_answers_is_served_no_more(desk: Desk) -> None:
    desk.ask("clinic", ONE)
    desk.server.full.add(ONE)
    desk.visits.answer("ann", control.Carry("clinic", b"a", ONE))
    assert len(desk.visits) == 1 and desk.server.forgotten == [ONE]
    desk.server.full.add(OTHER)
    desk.visits.pause(("ann",))
    assert not len(desk.visits)


def test_evaluators_hear_that_a_client_has_left(desk: Desk) -> None:
    """Those to which it has spoken; else dead visits would push out those that are alive."""
    desk.ask("clinic", ONE, to="bob")
    desk.visits.left(ONE)
    assert desk.carried[-1] == ("bob", control.Carried("clinic", LEFT, ONE))
    count = len(desk.carried)
    desk.visits.left(ONE)
    desk.visits.left(OTHER)
    assert len(desk.carried) == count


def test_what_is_not_due_ends_the_visit_and_no_other(desk: Desk) -> None:
    bad = (
        b"",
        b"not a message",
        control.Hello(CONTRACT_VERSION, "clinic", None),
        control.Carry("registry", b"q"),
        control.Carry("practice", b"q"),
    )
    for message in bad:
        desk.come("clinic", ONE)
        desk.take("clinic", ONE, message)
        assert desk.refused.pop()[0] == ONE, message
        assert len(desk.visits) == 1
        desk.server.forgotten.clear()
    desk.ask("practice", OTHER)
    assert desk.carried == [("ann", control.Carried("practice", b"q", OTHER))]


def test_a_stranger_another_version_and_a_first_message_that_is_no_greeting() -> None:
    desk = Desk()
    desk.come("clinic", ONE, CONTRACT_VERSION + 1)
    desk.ask("clinic", ONE)
    desk.take("clinic", ONE, control.Hello(CONTRACT_VERSION, "practice", None))
    assert [code for _, code in desk.refused] == ["version", "control", "control"]
    assert not len(desk.visits) and not desk.carried


def test_an_answer_reaches_only_whose_visit_it_is(desk: Desk) -> None:
    before = len(desk.server.sent[OTHER])
    for to, visit in (("clinic", OTHER), ("practice", ONE), ("clinic", bytes(16))):
        desk.visits.answer("ann", control.Carry(to, b"a", visit))
    assert len(desk.server.sent[OTHER]) == before
    desk.visits.answer("ann", control.Carry("practice", b"a", OTHER))
    assert desk.server.sent[OTHER][-1] == control.Carried("ann", b"a")


def test_nothing_is_carried_while_no_session_runs(desk: Desk) -> None:
    desk.ask("clinic", ONE)
    desk.visits.pause(("ann",))
    count = len(desk.carried)
    desk.ask("clinic", ONE)
    assert len(desk.carried) == count
    assert isinstance(desk.server.sent[ONE][-1], control.Waiting)
    # What was not answered then does not count in the next session.
    desk.visits.begin(control.Serving(contract().to_bytes(), b"body", SID))
    for _ in range(MAX_OPEN):
        desk.ask("clinic", ONE)
    assert len(desk.visits) == 2


def test_room_is_what_a_process_has_not_acknowledged() -> None:
    server: Any = ControlServer.__new__(ControlServer)
    link = Link(bytes(32), bytes(32))
    server._processes = {ONE: SimpleNamespace(link=link)}
    assert server.has_room(ONE) and server.has_room(OTHER)
    for _ in range(MAX_KEPT_BYTES >> 20):
        link.keep((b"",), 1 << 20)
    assert not server.has_room(ONE)


def test_a_client_that_connects_too_often_is_refused_for_a_while(desk: Desk) -> None:
    for number in range(1000):
        desk.come("clinic", number.to_bytes(16, "big"))
    assert {code for _, code in desk.refused} == {module.BUSY} and len(desk.refused) > 900
    desk.come("practice", b"3" * 16)
    assert not isinstance(desk.server.sent[b"3" * 16][0], control.Aborted)
