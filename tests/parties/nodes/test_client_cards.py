"""Cards of clients while a service runs: whom the coordinator lets in, whom evaluators follow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION, Contract, Roles
from parties.agreement.visitors import Visitors
from parties.audit.entries import Kind
from parties.errors import CardError, ContractError, ExpiredError, RevokedError, RosterError
from parties.keys import lifetime
from parties.keys.roster import Roster, roster_digest
from parties.keys.vault import MemoryVault
from parties.nodes.coordinator import Coordinator, CoordinatorSettings
from parties.nodes.members import Members
from parties.nodes.node import _Node
from parties.wire.control_plane import Arrival
from tests.support.audit_logs import audit_log

ROLES = Roles((), ("ann", "bob"), "registry", (), clients=("clinic", "practice"))
PROCESS = b"p" * 16


@cache
def vaults() -> dict[str, MemoryVault]:
    return {name: MemoryVault.generate(name) for name in (*ROLES.names, "desk")}


@cache
def successor() -> MemoryVault:
    return vaults()["clinic"].successor()


def texts(vault: MemoryVault) -> tuple[str, ...]:
    return tuple(each.to_text() for each in vault.successions)


def roster_in(folder: Path) -> Path:
    path = folder / "roster"
    Roster.of(one.card for one in vaults().values()).save(path)
    return path


class Desk:
    """A coordinator whose service runs, and what it sends to whom. change: of its roster, before it
    starts."""

    def __init__(self, folder: Path, change: Any = lambda known: known) -> None:
        self.path = roster_in(folder)
        Roster.update(self.path, change)
        self.sent: list[tuple[bytes, Any]] = []
        self.events: list[tuple[str, Any]] = []
        vault = vaults()["desk"]
        self.coordinator = Coordinator(
            vault,
            Roster.load(self.path),
            "house",
            (ROLES, b"body"),
            CoordinatorSettings("tcp://127.0.0.1:*", folder / "run"),
            audit_log(folder, vault),
            lambda kind, fields: self.events.append((kind, fields["node"])),
        )
        self._bound = self.coordinator._server
        server: Any = SimpleNamespace(
            send=self._send,
            keep=lambda process: None,
            has_room=lambda process: True,
            close=lambda linger_s: None,
        )
        self.coordinator._server = self.coordinator._visits._server = server
        self.coordinator._phase = "running"
        for name in ROLES.nodes:
            self.coordinator._nodes[name] = SimpleNamespace(process=name.encode())  # type: ignore[assignment]

    def close(self) -> None:
        self._bound.close(0)
        self.coordinator._transport.close()

    def _send(self, process: bytes, data: bytes) -> bool:
        self.sent.append((process, control.decode_from_coordinator(data, "desk")))
        return True

    def change(self, change: Any) -> None:
        """What an operator changes in the file beside the running process."""
        Roster.update(self.path, change)
        self.coordinator._members._next_look = 0.0
        self.coordinator._members.check()

    def come(self, name: str = "clinic", chain: tuple[str, ...] = ()) -> list[Any]:
        """The answers to a client that connects."""
        hello = control.encode(control.Hello(CONTRACT_VERSION, name, None, chain))
        self.coordinator._handle(Arrival(PROCESS, name, hello))
        return [message for process, message in self.sent if process == PROCESS]

    def refused(self, *come: Any) -> str:
        """The word with which a client was refused, which nobody else heard of."""
        (said,) = self.come(*come)
        assert isinstance(said, control.Aborted) and len(self.sent) == 1
        assert not len(self.coordinator._visits)
        return said.code


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_a_client_is_let_in_and_no_evaluator_is_told_of_its_card(desk: Desk) -> None:
    said = desk.come()
    assert [type(each) for each in said] == [control.Welcome, control.Waiting]
    assert len(desk.sent) == 2 and len(desk.coordinator._visits) == 1 and not desk.events


def test_a_client_with_new_keys_is_let_in_and_evaluators_are_shown_them(desk: Desk) -> None:
    assert isinstance(desk.come(chain=texts(successor()))[0], control.Welcome)
    shown = [(process, said) for process, said in desk.sent if process != PROCESS]
    rotated = control.Rotated("clinic", texts(successor()))
    assert shown == [(name.encode(), rotated) for name in ROLES.evaluators]
    assert desk.events == [("rotated", "clinic")]
    assert Roster.load(desk.path).card("clinic") == successor().card
    # It connects again, with what is known already: evaluators that came back may not know it.
    desk.sent.clear()
    desk.coordinator._visits.left(PROCESS)
    desk.come(chain=texts(successor()))
    assert (ROLES.evaluators[0].encode(), rotated) in desk.sent


def test_evaluators_are_shown_nothing_before_they_serve(desk: Desk) -> None:
    """The contract of the session that begins then is over the newer card."""
    desk.coordinator._phase = "agreeing"
    desk.come(chain=texts(successor()))
    assert {process for process, _ in desk.sent} == {PROCESS}


def test_keys_that_succeed_nothing_known_are_refused(desk: Desk) -> None:
    stranger = MemoryVault.generate("clinic").successor()
    assert desk.refused("clinic", texts(stranger)) == RosterError.code
    desk.sent.clear()
    assert desk.refused("practice", texts(successor())) == CardError.code
    assert Roster.load(desk.path).card("clinic") == vaults()["clinic"].card


@pytest.mark.parametrize("chain", [False, True])
def test_a_client_whose_card_was_revoked_is_refused_and_the_service_goes_on(
    desk: Desk, chain: bool
) -> None:
    card = vaults()["clinic"].card
    desk.change(lambda known: known.revoke(card, lifetime.now()))
    code = desk.refused("clinic", texts(successor()) if chain else ())
    assert code in (RevokedError.code, RosterError.code)
    desk.sent.clear()
    assert isinstance(desk.come("practice")[0], control.Welcome)


def test_a_client_that_the_operator_removed_is_refused(desk: Desk) -> None:
    desk.change(lambda known: known.remove("clinic"))
    assert desk.refused() == RosterError.code


def test_a_client_whose_card_has_expired_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = lifetime.now() + timedelta(days=lifetime.DEFAULT_DAYS + 1)
    monkeypatch.setattr(lifetime, "now", lambda: later)
    assert desk.refused() == ExpiredError.code


class Evaluator:
    """The part of a node that follows clients; what it logs."""

    def __init__(self, folder: Path) -> None:
        self.noted: list[Kind] = []
        self.members = Members(
            Roster.load(roster_in(folder)), vaults()["ann"], lambda kind, _: self.noted.append(kind)
        )
        self.succeeded: list[Any] = []
        self.rotations: list[Any] = []
        visitors: Any = Visitors.__new__(Visitors)
        visitors._contract = SimpleNamespace(roles=ROLES)
        visitors._cards = {name: vaults()[name].card for name in ROLES.names}
        self.visitors = visitors
        self.node: Any = _Node.__new__(_Node)
        self.node._visitors, self.node._members = visitors, self.members
        settings: Any = SimpleNamespace(coordinator="desk")
        rotations: Any = SimpleNamespace(take=self.rotations.append)
        self.node._settings, self.node._rotations = settings, rotations

    def take(self, name: str, chain: tuple[str, ...]) -> None:
        self.node._take(control.Rotated(name, chain))

    @property
    def card(self) -> Any:
        """With which the client shakes hands."""
        return self.visitors._cards["clinic"]


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    return Evaluator(tmp_path)


def test_an_evaluator_follows_a_client_with_new_keys(evaluator: Evaluator) -> None:
    evaluator.take("clinic", texts(successor()))
    assert evaluator.card == successor().card
    assert evaluator.noted == [Kind.PEER_ROTATED]
    evaluator.members.check_client(evaluator.card)
    # Once more, or a part of it: nothing changes back.
    for chain in (texts(successor()), ()):
        evaluator.take("clinic", chain)
        assert evaluator.card == successor().card
    assert not evaluator.rotations


def test_an_evaluator_believes_no_other_keys_of_a_client(evaluator: Evaluator) -> None:
    stranger = MemoryVault.generate("clinic").successor()
    before = evaluator.card
    for chain in (texts(stranger), texts(vaults()["practice"].successor()), ("no succession",)):
        evaluator.take("clinic", chain)
        assert evaluator.card == before
    assert evaluator.noted == [Kind.SUCCESSION_REFUSED] * 3


def test_an_evaluator_follows_no_client_whose_card_was_revoked(evaluator: Evaluator) -> None:
    members = evaluator.members
    members.roster = members.roster.revoke(vaults()["clinic"].card, lifetime.now())
    for chain in (texts(successor()), ()):
        evaluator.take("clinic", chain)
    assert evaluator.card == vaults()["clinic"].card
    with pytest.raises(RevokedError):
        members.check_client(evaluator.card)


def test_new_keys_of_nodes_are_no_affair_of_visitors(evaluator: Evaluator) -> None:
    """Theirs are signed by all before they are used."""
    bob = vaults()["bob"].successor()
    evaluator.take("bob", texts(bob))
    assert len(evaluator.rotations) == 1
    assert evaluator.visitors._cards["bob"] == vaults()["bob"].card
    assert evaluator.members.roster.card("bob") == vaults()["bob"].card
    evaluator.node._visitors = None
    evaluator.take("clinic", texts(successor()))
    assert len(evaluator.rotations) == 2 and evaluator.card == vaults()["clinic"].card


def test_who_is_turned_away_as_the_service_ends_is_in_the_log(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door is another thread: what it saw last may still wait when nobody attends any more."""
    monkeypatch.setattr(desk.coordinator._transport, "close", lambda: None)
    desk.coordinator._strangers.put(("without a key or ticket", 1))
    desk.coordinator._abort("interrupted", "desk")
    found = {entry.kind: entry.fields for _, entry in desk.coordinator._audit.entries()}
    assert found[Kind.UNEXPECTED_PEER] == {"who": "without a key or ticket", "times": 1}


def revoked(known: Roster) -> Roster:
    return known.revoke(vaults()["clinic"].card, lifetime.now())


def expired(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only the card of this node or client has."""
    accepts = lifetime.check_peer

    def check(card: Any, moment: Any) -> None:
        if card.name == name:
            raise ExpiredError(f"the card of {name} expired")
        accepts(card, moment)

    monkeypatch.setattr(lifetime, "check_peer", check)


@pytest.mark.parametrize("why", ["revoked", "expired"])
def test_a_session_begins_without_a_client_whose_card_is_not_accepted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    if why == "revoked":
        desk.change(revoked)
    else:
        expired(monkeypatch, "clinic")
    coordinator = desk.coordinator
    for _ in range(2):
        coordinator._agree_on_cards()
    assert coordinator.contract.roles == Roles(
        (), ("ann", "bob"), "registry", (), clients=("practice",)
    )
    assert "clinic" not in coordinator._card_digests
    assert len([each for each in caplog.messages if "clinic is not served" in each]) == 1
    noted = [entry.fields for _, entry in coordinator._audit.entries()]
    assert noted.count({"node": "clinic", "code": why}) == 1
    # It stays out until the coordinator is started again, and hears why; others come in.
    assert desk.refused() == why
    desk.sent.clear()
    assert isinstance(desk.come("practice")[0], control.Welcome)


def test_a_coordinator_starts_without_a_client_whose_card_was_revoked(tmp_path: Path) -> None:
    desk = Desk(tmp_path, revoked)
    assert desk.coordinator.contract.roles.clients == ("practice",)
    assert desk.refused() == RevokedError.code
    desk.close()


def test_who_was_left_out_stays_out_with_a_new_card_until_the_next_start(desk: Desk) -> None:
    """The session's cards have none of it."""
    desk.change(revoked)
    desk.coordinator._agree_on_cards()
    desk.change(lambda known: known.add(MemoryVault.generate("clinic").card))
    assert desk.refused() == RevokedError.code
    desk.coordinator._agree_on_cards()
    assert desk.coordinator.contract.roles.clients == ("practice",)


def test_a_client_that_nobody_knows_is_not_left_out_but_named(
    desk: Desk, evaluator: Evaluator
) -> None:
    """It may be a misspelt name, or one that somebody has made up."""
    desk.change(lambda known: known.remove("clinic"))
    with pytest.raises(RosterError, match="no card of 'clinic'"):
        desk.coordinator._agree_on_cards()
    evaluator.members.roster = evaluator.members.roster.remove("clinic")
    with pytest.raises(RosterError, match="no card of 'clinic'"):
        checking(evaluator)._check(proposal())


def test_who_was_left_out_and_comes_often_fills_no_memory(desk: Desk) -> None:
    """An error that is raised keeps all that was there, each time."""
    desk.change(revoked)
    desk.coordinator._agree_on_cards()
    for _ in range(3):
        desk.come()
    step, depth = desk.coordinator._left_out["clinic"].__traceback__, 0
    while step is not None:
        step, depth = step.tb_next, depth + 1
        assert depth < 5
    assert {type(said) for _, said in desk.sent} == {control.Aborted}


def test_a_node_whose_card_is_not_accepted_is_left_out_of_nothing(desk: Desk) -> None:
    desk.coordinator._members.roster = desk.coordinator._members.roster.revoke(
        vaults()["bob"].card, lifetime.now()
    )
    with pytest.raises(RevokedError, match="bob"):
        desk.coordinator._agree_on_cards()


def test_without_any_client_there_is_no_session(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.change(revoked)
    expired(monkeypatch, "practice")
    with pytest.raises((RevokedError, ExpiredError)):
        desk.coordinator._agree_on_cards()


def checking(evaluator: Evaluator) -> Any:
    """The node of that evaluator, which looks at a contract."""
    node = evaluator.node
    node._me, node._vault = "ann", vaults()["ann"]
    node._note = node._event = lambda *_, **__: None
    return node


def proposal(roles: Roles = ROLES, other: str = "") -> control.Propose:
    """Over the cards that all know, and for one name another one."""
    digests = {name: vaults()[name].card.digest for name in roles.names}
    digests |= {other: bytes(32)} if other else {}
    whole = roster_digest(digests[name] for name in roles.names)
    contract = Contract.of("house", roles, b"body", whole)
    return control.Propose(contract.to_bytes(), b"body", digests, 1)


def test_an_evaluator_signs_beside_a_client_that_it_does_not_accept(
    evaluator: Evaluator, caplog: pytest.LogCaptureFixture
) -> None:
    """And knows no card of it, whichever the coordinator means."""
    evaluator.members.roster = revoked(evaluator.members.roster)
    for said in (proposal(), proposal(other="clinic")):
        contract, cards = checking(evaluator)._check(said)
        assert contract.roles == ROLES and set(cards) == {*ROLES.names} - {"clinic"}
    assert "clinic is not served" in caplog.messages[0] and "was revoked" in caplog.messages[0]
    assert evaluator.noted == [Kind.PEER_REVOKED] * 2
    for other in ("practice", "bob"):
        with pytest.raises(ContractError, match=f"{other}: here"):
            checking(evaluator)._check(proposal(other=other))


@pytest.mark.parametrize("name", ["bob", "registry"])
def test_an_evaluator_signs_beside_no_node_that_it_does_not_accept(
    evaluator: Evaluator, name: str
) -> None:
    members = evaluator.members
    members.roster = members.roster.revoke(vaults()[name].card, lifetime.now())
    with pytest.raises(RevokedError, match=name):
        checking(evaluator)._check(proposal())


def test_an_evaluator_signs_beside_no_owner_that_it_does_not_accept(evaluator: Evaluator) -> None:
    """A client that provides data for rounds gets the model as well."""
    roles = Roles((), ("ann", "bob"), "registry", ("clinic", "practice"), clients=ROLES.clients)
    assert not roles.guests and ROLES.guests == {"clinic", "practice"}
    evaluator.members.roster = revoked(evaluator.members.roster)
    with pytest.raises(RevokedError, match="clinic"):
        checking(evaluator)._check(proposal(roles))


def test_a_later_proposal_may_have_fewer_clients_and_nothing_else(evaluator: Evaluator) -> None:
    first = Contract.from_bytes(proposal().contract)
    node = checking(evaluator)
    fewer = Roles((), ("ann", "bob"), "registry", (), clients=("practice",))
    assert node._has_other_cards(proposal(fewer), first)
    assert node._has_other_cards(proposal(other="bob"), first)
    later = Contract.from_bytes(proposal(fewer).contract)
    assert not node._has_other_cards(proposal(), later)
    other = Roles((), ("bob", "ann"), "registry", (), clients=ROLES.clients)
    assert not node._has_other_cards(proposal(other), first)
    # An owner of rounds is no guest.
    owners = Roles((), ("ann", "bob"), "registry", ROLES.clients, clients=ROLES.clients)
    agreed = Contract.from_bytes(proposal(owners).contract)
    assert not node._has_other_cards(proposal(owners.without({"clinic"})), agreed)
