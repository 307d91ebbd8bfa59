"""Clients at an evaluator: what one of them sends ends its own visit, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from parties.agreement import control, pace
from parties.agreement import visitors as module
from parties.agreement.contract import Contract, Roles
from parties.agreement.visitors import ANSWER, LEFT, MAX_NUMBER, MAX_VISITS, NUMBER, Visitors
from parties.errors import ContractError, RevokedError
from parties.keys.identity import Card
from parties.keys.vault import MemoryVault
from protocols.errors import ProtocolError
from protocols.sealing.handshake import Responder
from protocols.sealing.record import RecordOpener, record_context
from tests.support.visiting import (
    SID,
    VISIT,
    Visiting,
    contract,
    first_message,
    initiator,
    visitors,
)


def answered(visit: Visiting, message: control.Carry) -> tuple[int, bytes]:
    opener = RecordOpener(visit.keys.receive, record_context(SID, "ann", visit.client))
    assert (message.to, message.visit, message.data[:1]) == (visit.client, visit.visit, b"a")
    data = opener.open(ANSWER, message.data[1:])
    return NUMBER.unpack(data[: NUMBER.size])[0], bytes(data[NUMBER.size :])


def test_a_question_is_heard_and_answered() -> None:
    ann, said = visitors()
    visit = Visiting(ann, said)
    visit.ask(7, b"rows")
    heard = ann.receive(0.0)
    assert heard is not None and (heard.client, heard.number) == ("clinic", 7)
    assert bytes(heard.data) == b"rows" and "rows" not in repr(heard)
    assert heard.keys.export("label") == visit.keys.export("label")
    ann.answer(heard.visit, heard.number, b"answers")
    assert answered(visit, said.pop()) == (7, b"answers")
    assert ann.receive(0.0) is None


@pytest.mark.parametrize("number", [1, 2, 0, MAX_NUMBER])
def test_a_number_that_does_not_grow_ends_the_visit(number: int) -> None:
    """A number is a step of a stream in common: none may be used twice."""
    ann, said = visitors()
    visit = Visiting(ann, said)
    visit.ask(2, b"rows")
    visit.ask(number, b"rows")
    assert said.pop().data == b"x"
    assert ann.receive(0.0) is not None and ann.receive(0.0) is None
    assert not ann.knows(VISIT)
    visit.ask(3, b"rows")
    assert said.pop().data == b"x" and ann.receive(0.0) is None


def ended(ann: Visitors, said: list[control.Carry]) -> bool:
    return said.pop().data == b"x" and ann.receive(0.0) is None


def test_what_is_not_due_or_altered_ends_the_visit() -> None:
    for data in (b"", b"1", b"1short", b"3", b"q", b"a", b"x", b"qaltered"):
        ann, said = visitors()
        Visiting(ann, said).send(data)
        assert ended(ann, said) and not ann.knows(VISIT), data


def test_a_stranger_and_another_client_end_nobody_elses_visit() -> None:
    ann, said = visitors()
    visit = Visiting(ann, said)
    for name in ("practice", "mallory", "ann"):
        ann.take(control.Carried(name, b"1", VISIT))
        assert said.pop().data == b"x" and ann.knows(VISIT), name
    visit.ask(1, b"rows")
    assert ann.receive(0.0) is not None


def test_a_revoked_client_is_heard_no_more() -> None:
    revoked = []

    def accepts(card: Card) -> None:
        if card.name in revoked:
            raise RevokedError(f"the card of {card.name} is revoked")

    ann, said = visitors(accepts)
    clinic, practice = Visiting(ann, said), Visiting(ann, said, "practice", bytes(16))
    revoked.append("clinic")
    clinic.ask(1, b"rows")
    assert ended(ann, said)
    practice.ask(1, b"rows")
    assert ann.receive(0.0) is not None


def test_a_client_without_a_card_in_the_session_is_not_heard() -> None:
    ann, said = visitors()
    del ann._cards["clinic"]
    ann.take(control.Carried("clinic", b"1" + bytes(1000), VISIT))
    assert ended(ann, said)
    practice = Visiting(ann, said, "practice", bytes(16))
    practice.ask(1, b"rows")
    assert ann.receive(0.0) is not None


def test_a_client_has_only_so_many_visits() -> None:
    ann, said = visitors()
    visits = [Visiting(ann, said, visit=bytes([n]) * 16) for n in range(MAX_VISITS + 1)]
    known = [ann.knows(visit.visit) for visit in visits]
    assert known == [False] + [True] * MAX_VISITS
    # The client hears of it, and need not wait for answers that will not come.
    assert [each.data for each in said if each.visit == visits[0].visit] == [b"x"]
    visits[-1].ask(1, b"rows")
    assert ann.receive(0.0) is not None


def test_who_asks_a_service_does_not_run_it() -> None:
    roles = Roles((), ("ann", "bob"), "registry", (), clients=("bob",))
    with pytest.raises(ContractError, match="bob cannot both ask a service and run it"):
        roles.check()
    with pytest.raises(ContractError, match="a job needs owners"):
        Roles((), ("ann", "bob"), "registry", ()).check()
    found = Contract.from_bytes(contract().to_bytes())
    assert found == contract() and found.roles.clients == ("clinic", "practice")
    assert found.roles.nodes == ("ann", "bob", "registry")
    assert found.roles.title("clinic") == "client"


def test_a_client_that_has_left_is_forgotten() -> None:
    ann, said = visitors()
    visit = Visiting(ann, said)
    ann.take(control.Carried("practice", LEFT, VISIT))
    assert ann.knows(VISIT)
    visit.send(LEFT)
    assert not ann.knows(VISIT) and not said
    visit.send(LEFT)
    assert not said


def test_a_question_belongs_to_the_keys_under_which_it_came() -> None:
    """Whoever shakes hands again begins anew with its numbers: old ones would meet new keys."""
    ann, said = visitors()
    old = Visiting(ann, said)
    old.ask(5, b"rows")
    new = Visiting(ann, said)
    new.ask(5, b"rows")
    heard = [ann.receive(0.0), ann.receive(0.0)]
    roots = [each.keys.export("root") for each in heard if each is not None]
    assert roots == [old.keys.export("root"), new.keys.export("root")] and roots[0] != roots[1]


@pytest.mark.parametrize("many", [True, False])
def test_a_client_that_floods_fills_its_own_share_only(
    many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over all its visits, in questions and in bytes, until the program takes them."""
    monkeypatch.setattr(module, "MAX_HEARD" if many else "MAX_HEARD_BYTES", 3 if many else 36)
    ann, said = visitors()
    first, second = Visiting(ann, said), Visiting(ann, said, visit=bytes(16))
    other = Visiting(ann, said, "practice", bytes([2]) * 16)
    for number, visit in ((1, first), (2, first), (1, second), (2, second)):
        visit.ask(number, b"rows")
    assert [ann.knows(visit.visit) for visit in (first, second)] == [True, False]
    assert said.pop().data == b"x"
    other.ask(1, b"rows")
    assert ann.knows(other.visit)
    for _ in range(4):
        assert ann.receive(0.0) is not None
    assert ann.receive(0.0) is None
    first.ask(3, b"rows")
    assert ann.receive(0.0) is not None and ann.knows(VISIT)


def test_a_thousand_handshakes_of_one_client_cost_little_and_harm_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work of a handshake is done for few of them; the others are refused by name."""
    monkeypatch.setattr("parties.agreement.pace.time.monotonic", lambda: 7.0)
    worked: list[object] = []
    monkeypatch.setattr(module, "Responder", Counted(module.Responder, worked))
    ann, said = visitors()
    before = Visiting(ann, said, "practice", b"p" * 16)
    message = first_message()
    for number in range(1000):
        ann.take(control.Carried("clinic", message, number.to_bytes(16, "big")))
    assert len(worked) == 1 + pace.EACH[0]
    assert sum(each.data == b"b" for each in said) == 1000 - pace.EACH[0]
    said.clear()
    before.ask(1, b"rows")
    again = Visiting(ann, said, "practice", b"q" * 16)
    again.ask(1, b"rows")
    assert ann.receive(0.0) is not None and ann.receive(0.0) is not None and not said
    ann.take(control.Carried("stranger", message, VISIT))
    assert len(worked) == 2 + pace.EACH[0], "a stranger's message costs no handshake"


class Counted:
    def __init__(self, kind: type[Responder], made: list[object]) -> None:
        self._kind, self._made = kind, made

    def __call__(self, *arguments: Any) -> Responder:
        self._made.append(arguments)
        return self._kind(*arguments)


def test_many_clients_at_once_are_bounded_and_one_that_comes_seldom_is_let_in() -> None:
    now = 0.0
    found = pace.Pace(lambda: now)
    crowd = [f"client-{number}" for number in range(100)]
    assert all(found.admits(name) for name in crowd)  # each for the first time
    assert sum(found.admits(name) for name in crowd) == pace.ALL[0]
    assert found.admits("clinic")
    now = 1.0
    assert sum(found.admits(name) for name in crowd) == pace.ALL[1]
    now = 100.0
    assert sum(found.admits("clinic") for _ in range(100)) == pace.EACH[0]


def test_a_client_that_rotates_its_keys_is_known_by_the_new_ones() -> None:
    ann, said = visitors()
    old = Visiting(ann, said)
    successor = MemoryVault.generate("clinic")
    ann.succeed(successor.card)
    old.ask(1, b"rows")
    assert ann.receive(0.0) is not None
    side = initiator("clinic", successor)
    visit = b"2" * 16
    ann.take(control.Carried("clinic", b"1" + side.message1(), visit))
    ann.take(control.Carried("clinic", b"3" + side.on_message2(said.pop().data[1:]), visit))
    side.on_message4(said.pop().data[1:])
    outdated = initiator("clinic")
    ann.take(control.Carried("clinic", b"1" + outdated.message1(), VISIT))
    with pytest.raises(ProtocolError):
        outdated.on_message2(said[-1].data[1:])
