"""A client of a service, and what a coordinator or an evaluator that cheats can make of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parties.agreement import control
from parties.agreement.contract import Contract
from parties.agreement.visitors import ANSWER, Visitors
from parties.errors import (
    AbortedError,
    ContractError,
    ControlError,
    RosterError,
    TurnedAwayError,
)
from parties.keys.roster import Roster, roster_digest
from parties.keys.vault import MemoryVault
from parties.nodes import client as module
from parties.nodes.client import MAX_ASKED, MAX_ASKED_BYTES, Client
from parties.nodes.node import NodeSettings
from parties.wire.control_plane import MAX_PROCESSES, ControlClient, ControlServer
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import (
    AuthenticationError,
    HandshakeError,
    PeerLostError,
    PeerTimeoutError,
    ProtocolError,
)
from tests.support.patience import wait_until
from tests.support.visiting import ROLES, SID, contract, vaults, visitors

VISIT = bytes(16)
Alter = Callable[[str, bytes], list[tuple[str, bytes]]]
"""What a coordinator makes of a message: by whom it says it is, and what it says."""


class Company:
    """A client without a connection, and two evaluators; `pass_on` is the coordinator."""

    def __init__(self, folder: Path, vault: MemoryVault | None = None) -> None:
        known = [vaults()[name].card for name in (*ROLES.nodes, "clinic")]
        desk = vaults()["registry"].card  # any card has a key for connections
        self.events: list[str] = []
        self.checked: list[Contract] = []
        self.client = Client(
            vault or vaults()["clinic"],
            Roster.of(known),
            NodeSettings(desk.name, "tcp://127.0.0.1:1", folder),
            lambda found, body: self.checked.append(found),
            lambda kind, fields: None,
            lambda kind, fields: self.events.append(kind),
        )
        self.evaluators: dict[str, tuple[Visitors, list[control.Carry]]] = {
            name: visitors(me=name) for name in ROLES.evaluators
        }
        self.alter: Alter = lambda by, data: [(by, data)]

    def serving(self, **changes: Any) -> control.Serving:
        cards = {name: vault.card.digest for name, vault in vaults().items()}
        said = {"contract": contract().to_bytes(), "body": b"body", "sid": SID, "cards": cards}
        return control.Serving(**{**said, **changes})

    def begin(self) -> None:
        self.client._take(self.serving())
        self.pass_on()

    def pass_on(self) -> None:
        """Carry what waits, in both directions, until nothing does."""
        moved = True
        while moved:
            moved = False
            while self.client._outbox:
                message: Any = self.client._outbox.popleft()
                moved = True
                evaluator, _ = self.evaluators[message.to]
                evaluator.take(control.Carried("clinic", message.data, VISIT))
            for name, (_, said) in self.evaluators.items():
                while said:
                    moved = True
                    for by, data in self.alter(name, said.pop(0).data):
                        self.client._take(control.Carried(by, data))

    def answer(self, *words: bytes) -> None:
        """Each evaluator answers its next question with its word."""
        for (evaluator, _), word in zip(self.evaluators.values(), words, strict=True):
            heard = evaluator.receive(0.0)
            assert heard is not None
            evaluator.answer(heard.visit, heard.number, word + bytes(heard.data))

    def ask(self, timeout_s: float = 60.0, size: int = 0) -> Asked:
        return Asked(self, timeout_s, size)


class Asked:
    """A question of a thread of its own, whose parts have left."""

    def __init__(self, company: Company, timeout_s: float, size: int) -> None:
        self.found: Any = None
        client = company.client
        line, count = client.line(0.0), client._number

        def ask() -> None:
            try:
                self.found = client.ask(
                    line,
                    lambda number: {"ann": b"to ann", "bob": b"to bob"},
                    lambda data: bytes(data[:2]) == b"no",
                    timeout_s,
                    size,
                )
            except Exception as error:
                self.found = error

        self._thread = threading.Thread(target=ask, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while client._number == count and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def result(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.found


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    made = Company(tmp_path)
    made.begin()
    yield made
    made.client._transport.close()


def test_a_client_with_new_keys_asks_a_service_that_runs(tmp_path: Path) -> None:
    """The contract names its earlier card; evaluators know the newer one by its succession."""
    successor = vaults()["clinic"].successor()
    found = Company(tmp_path, successor)
    for evaluator, _ in found.evaluators.values():
        evaluator.succeed(successor.card)
    found.begin()
    assert found.events == ["serving"]
    asked = found.ask()
    found.pass_on()
    found.answer(b"1 ", b"2 ")
    found.pass_on()
    assert set(asked.result()) == {"ann", "bob"}
    stranger = MemoryVault.generate("clinic")
    other = Company(tmp_path, stranger)
    with pytest.raises(PeerLostError):  # evaluators do not believe it
        other.begin()


@pytest.mark.parametrize("name", ["clinic", "ann", "registry"])
def test_a_coordinator_that_withholds_a_card_is_named(tmp_path: Path, name: str) -> None:
    """The contract may be over whatever it likes: it is signed only afterwards."""
    found = Company(tmp_path)
    cards = {each: vault.card.digest for each, vault in vaults().items() if each != name}
    whole = roster_digest(cards.get(each, b"") for each in ROLES.names)
    other = replace(contract(), roster_digest=whole)
    with pytest.raises(ContractError, match="has other cards than this node"):
        found.client._take(found.serving(contract=other.to_bytes(), cards=cards))
    assert not found.client._outbox
    found.client._transport.close()


def test_a_client_that_is_told_to_wait_waits(company: Company) -> None:
    company.client._begin(company.serving())
    company.client._outbox.clear()
    with pytest.raises(PeerLostError, match="no more handshakes") as said:
        company.client._take(control.Carried("ann", b"b"))
    assert module.may_pass(said.value)
    assert module.may_pass(AbortedError("busy", "desk"))


def test_a_question_reaches_all_and_so_do_the_answers(company: Company) -> None:
    assert company.events == ["serving"] and company.checked == [contract()]
    asked = company.ask()
    company.pass_on()
    company.answer(b"1 ", b"2 ")
    company.pass_on()
    found = {name: bytes(data) for name, data in asked.result().items()}
    assert found == {"ann": b"1 to ann", "bob": b"2 to bob"}
    asked = company.ask()
    company.pass_on()
    evaluator, _ = company.evaluators["bob"]
    heard = evaluator.receive(0.0)
    assert heard is not None and heard.number == 2
    evaluator.answer(heard.visit, heard.number, b"no")
    company.pass_on()
    assert set(asked.result()) == {"bob"}


def test_a_coordinator_that_doubles_or_reorders_answers_ends_the_session(company: Company) -> None:
    for way in ("double", "reorder", "alter", "of the other"):
        one, other = company.ask(), company.ask()
        company.pass_on()
        company.answer(b"1", b"2")
        company.answer(b"3", b"4")
        held: list[tuple[str, bytes]] = []

        def alter(
            by: str, data: bytes, way: str = way, held: list[Any] = held
        ) -> list[tuple[str, bytes]]:
            if way == "double":
                return [(by, data), (by, data)]
            if way == "alter":
                return [(by, data[:-1] + bytes([data[-1] ^ 1]))]
            if way == "of the other":
                return [("bob" if by == "ann" else "ann", data)]
            held.append((by, data))
            return held[::-1] if len(held) == 2 else []

        company.alter = alter
        with pytest.raises(AuthenticationError):
            company.pass_on()
        company.client._drop(PeerLostError("the service was lost"))
        assert isinstance(one.result(), PeerLostError) or way == "double"
        assert isinstance(other.result(), PeerLostError), way
        # It begins anew, and questions are right again.
        company.alter = lambda by, data: [(by, data)]
        for _, said in company.evaluators.values():
            said.clear()
        company.begin()


def test_what_is_withheld_times_out_and_makes_room(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ASKED", 1)
    asked = company.ask(timeout_s=0.2)
    assert isinstance(asked.result(), PeerTimeoutError)
    assert not company.client._calls and company.client._has_room(MAX_ASKED_BYTES)
    # Its answers come too late, and answer nothing else.
    company.pass_on()
    second = company.ask()
    company.answer(b"old", b"old")
    company.pass_on()
    company.answer(b"new ", b"new ")
    company.pass_on()
    assert bytes(second.result()["ann"]) == b"new to ann"


def test_what_is_on_its_way_is_bounded(company: Company) -> None:
    """In bytes as well; a coordinator of this release ends visits that send more."""
    assert company.client._has_room(2 * MAX_ASKED_BYTES)
    first = company.ask(size=MAX_ASKED_BYTES - 1)
    assert company.client._has_room(1) and not company.client._has_room(2)
    waits = company.ask(timeout_s=0.1, size=2)
    assert isinstance(waits.result(), PeerTimeoutError)
    company.pass_on()
    company.answer(b"", b"")
    company.pass_on()
    assert len(first.result()) == 2
    company.client._asked = MAX_ASKED
    assert not company.client._has_room(0)


def test_another_session_and_a_pause_fail_what_waits_at_once(company: Company) -> None:
    messages: list[Any] = [company.serving(), control.Waiting((), ("ann",), 0)]
    for message in messages:
        asked = company.ask()
        company.client._take(message)
        assert isinstance(asked.result(), PeerLostError)
        company.pass_on()
        if company.client.serving is None:
            with pytest.raises(PeerTimeoutError, match="one of its nodes is away"):
                company.client.line(0.0)
            company.begin()
    with pytest.raises(AbortedError):
        company.client._take(control.Aborted("aborted", "ann"))


def test_an_evaluator_that_forgot_the_client_ends_the_session(company: Company) -> None:
    with pytest.raises(PeerLostError, match="ann does not know this client"):
        company.client._take(control.Carried("ann", b"x"))


def test_answers_that_are_none(company: Company) -> None:
    """Under the right key, but without a number, or to no question."""
    evaluator, said = company.evaluators["ann"]
    visitor = evaluator._visitors[VISIT]
    assert visitor.sealer is not None
    evaluator.answer(VISIT, 77, b"to no question")
    company.pass_on()
    said.append(control.Carry("clinic", b"a" + visitor.sealer.seal(ANSWER, b"short"), VISIT))
    with pytest.raises(ControlError, match="an answer without a number"):
        company.pass_on()


@pytest.mark.parametrize("kind", [b"2", b"3", b"4", b"a", b"q", b"", b"1"])
def test_messages_that_are_not_due_change_nothing(company: Company, kind: bytes) -> None:
    company.client._take(control.Carried("registry", kind + b"data"))
    if kind != b"a":
        company.client._take(control.Carried("ann", kind + b"data"))
    assert company.client.serving is not None


def test_another_contract_is_not_agreed_to(tmp_path: Path) -> None:
    """What the evaluators run is in every handshake: whoever shows a client something else gets no
    question."""
    company = Company(tmp_path)
    other = Contract.of("house", ROLES, b"other", contract().roster_digest)
    company.client._take(company.serving(contract=other.to_bytes(), body=b"other"))
    assert company.checked == [other]
    with pytest.raises((HandshakeError, PeerLostError)):
        company.pass_on()
    assert company.client.serving is None
    company.client._drop(PeerLostError("lost"))
    company.client._take(company.serving(sid=bytes(32)))
    with pytest.raises((HandshakeError, PeerLostError)):
        company.pass_on()
    assert company.client.serving is None
    company.client._transport.close()


def test_handshakes_that_are_swapped(tmp_path: Path) -> None:
    company = Company(tmp_path)
    company.alter = lambda by, data: [("bob" if by == "ann" else "ann", data)]
    with pytest.raises(ProtocolError):
        company.begin()
    assert company.client.serving is None
    company.client._transport.close()


def test_what_a_client_does_not_want_to_ask(tmp_path: Path) -> None:
    company = Company(tmp_path)
    cards = {name: vault.card.digest for name, vault in vaults().items()}
    altered, digest = {**cards, "ann": bytes(32)}, contract().roster_digest
    foreign = roster_digest([altered[name] for name in ROLES.names])
    over = Contract.of("house", ROLES, b"body", foreign).to_bytes()
    without = Contract.of("house", replace(ROLES, clients=("practice",)), b"body", digest)
    messages = {
        "body": company.serving(body=b"another"),
        "cards": company.serving(cards={}),
        "a card": company.serving(cards=altered),
        "a contract over another card": company.serving(contract=over, cards=altered),
        "contract": company.serving(contract=b"no contract"),
        "not for it": company.serving(contract=without.to_bytes()),
    }
    for what, message in messages.items():
        with pytest.raises((ContractError, RosterError)):
            company.client._take(message)
        assert company.client.serving is None and not company.client._outbox, what
    company.client._transport.close()


@pytest.mark.parametrize("code", sorted(module.LASTING))
def test_a_definite_refusal_ends_the_wait_at_once(company: Company, code: str) -> None:
    company.client._drop(PeerLostError("lost"))
    with pytest.raises(TurnedAwayError, match=r"^desk refuses clinic: ") as said:
        company.client._take(control.Aborted(code, "desk"))
    company.client._blame(said.value)
    with pytest.raises(TurnedAwayError):
        company.client.line(60.0)
    assert said.value.reason_code == code


def test_a_client_that_came_too_often_says_so_and_waits(company: Company) -> None:
    company.client._drop(PeerLostError("lost"))
    with pytest.raises(PeerLostError, match="connected too often; it waits") as said:
        company.client._take(control.Aborted("busy", "desk"))
    company.client._blame(said.value)
    with pytest.raises(PeerTimeoutError, match="connected too often; it waits"):
        company.client.line(0.0)


def test_of_a_coordinator_that_says_nothing_it_is_not_said_that_nobody_answers(
    company: Company,
) -> None:
    company.client._drop(PeerLostError("lost"))
    with pytest.raises(PeerTimeoutError, match="nobody answers there"):
        company.client.line(0.0)
    company.client._talk = SimpleNamespace(trouble=None, connected=True)  # type: ignore[assignment]
    with pytest.raises(PeerTimeoutError, match="is reached, but says nothing"):
        company.client.line(0.0)


@contextmanager
def meeting(
    folder: Path, admitted: str, waiting: int
) -> Iterator[tuple[list[ControlClient], Client, ControlServer]]:
    """A coordinator's port at which a client of the company comes when `waiting` others of its name
    are connected."""
    known = vaults().items()
    keys = {name: CurveKeys(each.card.curve, each.curve_secret()) for name, each in known}
    transport = Transport(keys["registry"], {admitted: keys[admitted].public})
    server = ControlServer(transport, "tcp://127.0.0.1:0", {})
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for _ in server.poll(0.02):
                pass
            server.lost()

    thread = threading.Thread(target=work)
    thread.start()
    own = Transport(keys["clinic"], {})
    others = [ControlClient(own, server.address, keys["registry"].public) for _ in range(waiting)]

    def all_are_there() -> bool:
        for other in others:
            other.poll(0.01)
        return len(server._processes) == waiting

    wait_until(all_are_there, "the others")
    desk = vaults()["registry"].card
    client = Client(
        vaults()["clinic"],
        Roster.of([vaults()[name].card for name in ROLES.names]),
        NodeSettings(desk.name, server.address, folder),
        lambda found, body: None,
        lambda kind, fields: None,
        lambda kind, fields: None,
    )
    try:
        with client:
            yield others, client, server
    finally:
        for other in others:
            other.close(0)
            other.relay.close()
        over.set()
        thread.join()
        server.close(0)
        own.close()
        transport.close()


def test_who_is_one_too_many_hears_it_and_comes_again(tmp_path: Path) -> None:
    """It is told so at once, and not left without an answer."""
    with meeting(tmp_path, "clinic", MAX_PROCESSES) as (others, client, server):
        wait_until(lambda: bool(client._trouble), "the refusal")
        with pytest.raises(PeerTimeoutError, match="4 connections under the name of this node"):
            client.line(0.0)
        first = others.pop()
        first.close(0)
        first.relay.close()
        wait_until(lambda: len(server._processes) < MAX_PROCESSES, "the end of one")
        wait_until(lambda: len(server._processes) == MAX_PROCESSES, "its turn")


def test_a_client_whose_key_is_not_admitted_hears_it_at_once(tmp_path: Path) -> None:
    refused = pytest.raises(TurnedAwayError, match=r"^registry refuses clinic: no service at tcp")
    with meeting(tmp_path, "practice", 0) as (_, client, _), refused:
        client.line(60.0)
