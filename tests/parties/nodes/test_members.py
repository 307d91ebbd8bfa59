"""A roster while a node runs: what is followed, what ends a run, and what is written down."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from parties.audit.entries import Kind, Value
from parties.errors import CardError, ExpiredError, RevokedError, RosterError
from parties.keys import lifetime
from parties.keys import roster as roster_module
from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.statements import MAX_CHAIN, Revocation
from parties.keys.vault import MemoryVault
from parties.nodes import members as members_module
from parties.nodes.members import Members

ANN, BOB = MemoryVault.generate("ann"), MemoryVault.generate("bob")
SECOND = BOB.successor()
CHAIN = tuple(each.to_text() for each in SECOND.successions)


class Watched:
    """ann's roster, in a directory, and what was logged."""

    def __init__(self, root: Path, me: MemoryVault = ANN) -> None:
        self.path = root / "roster"
        if not self.path.exists():
            Roster.of([ANN.card, BOB.card]).save(self.path)
        self.noted: list[tuple[Kind, Mapping[str, Value]]] = []
        self.members = Members(
            Roster.load(self.path), me, lambda kind, fields: self.noted.append((kind, fields))
        )
        self.members.use(self.members.roster)

    def check(self) -> None:
        self.members._next_look = 0.0
        self.members.check()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_succession_is_kept_here_and_in_the_file_and_logged(watched: Watched) -> None:
    assert watched.members.follow("bob", CHAIN, "desk")
    assert watched.members.roster.card("bob") == SECOND.card
    assert Roster.load(watched.path).card("bob") == SECOND.card
    ((kind, fields),) = watched.noted
    assert kind is Kind.PEER_ROTATED
    assert (fields["before"], fields["after"]) == (BOB.card.fingerprint, SECOND.card.fingerprint)
    watched.check()  # the run goes on


def test_replayed_successions_change_nothing_and_are_no_news(watched: Watched) -> None:
    third = SECOND.successor()
    watched.members.follow("bob", [each.to_text() for each in third.successions], "desk")
    before = {path.name: path.stat().st_mtime_ns for path in watched.path.iterdir()}
    for replayed in (CHAIN, ()):
        assert not watched.members.follow("bob", replayed, "desk")
    assert watched.members.roster.card("bob") == third.card
    assert {path.name: path.stat().st_mtime_ns for path in watched.path.iterdir()} == before
    assert len(watched.noted) == 1


def test_what_is_not_believed_is_an_alarm_and_changes_nothing(watched: Watched) -> None:
    rival = MemoryVault.generate("bob")
    others = [each.to_text() for each in rival.successor().successions]
    broken = [CHAIN[0].replace("sequence = 1", "sequence = 2")]
    for texts, error in ((others, RosterError), (broken, CardError), (["x"], CardError)):
        with pytest.raises(error):
            watched.members.follow("bob", texts, "desk")
    with pytest.raises(CardError, match="desk sent successions of others as those of ann"):
        watched.members.follow("ann", CHAIN, "desk")
    assert {kind for kind, _ in watched.noted} == {Kind.SUCCESSION_REFUSED}
    assert Roster.load(watched.path).card("bob") == BOB.card


def test_a_node_takes_its_own_rotation_into_its_roster(tmp_path: Path) -> None:
    Watched(tmp_path)
    again = Watched(tmp_path, ANN.successor())
    card = again.members.roster.card("ann")
    assert card.sequence == 1 and Roster.load(again.path).card("ann") == card
    assert len(again.members.chains(["ann", "bob"])["ann"]) == 1


def test_a_revocation_beside_the_running_process_ends_the_run(watched: Watched) -> None:
    watched.check()
    statement = Revocation.sign(BOB, lifetime.now())
    Roster.update(watched.path, lambda known: known.revoke_by(statement, lifetime.now()))
    with pytest.raises(RevokedError, match=r"card of bob .* was revoked") as caught:
        watched.check()
    assert caught.value.about == "bob"
    assert watched.noted[-1] == (Kind.PEER_REVOKED, {"node": "bob", "code": "revoked"})


def test_a_card_that_is_removed_or_exchanged_ends_the_run(watched: Watched) -> None:
    Roster.update(
        watched.path, lambda known: known.add(MemoryVault.generate("bob").card, replace=True)
    )
    with pytest.raises(RevokedError, match="card of bob was removed"):
        watched.check()
    Roster.forget(watched.path, "bob")
    with pytest.raises(RevokedError, match="card of bob was removed"):
        watched.check()


def test_a_succession_beside_the_running_process_does_not(watched: Watched) -> None:
    moment = lifetime.now()
    Roster.update(watched.path, lambda known: known.follow(SECOND.successions, moment))
    watched.check()
    assert watched.members.roster.card("bob") == SECOND.card


def test_a_card_that_expires_ends_the_run(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = IdentityKeys.generate()
    short = keys.card("bob", lifetime.now(), 1)
    watched.members.roster = watched.members.roster.add(short, replace=True)
    watched.members.use([short])
    watched.check()
    end = lifetime.end_of(short)
    monkeypatch.setattr(lifetime, "now", lambda: end + lifetime.SKEW - timedelta(seconds=1))
    watched.check()
    monkeypatch.setattr(lifetime, "now", lambda: end + lifetime.SKEW)
    with pytest.raises(ExpiredError, match="card of bob expired") as caught:
        watched.check()
    assert caught.value.about == "bob"


def test_a_roster_that_is_being_written_is_looked_at_again(watched: Watched) -> None:
    bob = watched.path / "bob.card"
    text = bob.read_text()
    bob.write_text(text[:100])
    watched.check()
    bob.write_text(text)
    watched.check()
    Roster.update(watched.path, lambda known: known.revoke(BOB.card, lifetime.now()))
    with pytest.raises(RevokedError):
        watched.check()


def test_looking_is_cheap(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a clock is read in between, and no card unless a file has changed."""
    watched.check()

    def unreachable(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(Roster, "load", unreachable)
    watched.check()
    monkeypatch.setattr(members_module.os, "scandir", unreachable)
    for _ in range(1000):
        watched.members.check()


def test_a_roster_that_cannot_be_written_is_used_in_memory(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(roster_module, "write_atomic", full)
    assert watched.members.follow("bob", CHAIN, "desk")
    assert watched.members.roster.card("bob") == SECOND.card


def test_chains_fit_a_message(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BOB
    for _ in range(4):
        one = one.successor()
    watched.members.follow("bob", [each.to_text() for each in one.successions], "desk")
    assert len(watched.members.chains(["ann", "bob"])["bob"]) == 4 <= MAX_CHAIN
    monkeypatch.setattr(members_module, "MAX_CHAINS_BYTES", 90_000)
    assert len(watched.members.chains(["bob"])["bob"]) == 3
    monkeypatch.setattr(members_module, "MAX_CHAINS_BYTES", 40_000)
    assert len(watched.members.chains(["bob"])["bob"]) == 1
    monkeypatch.setattr(members_module, "MAX_CHAINS_BYTES", 4_000)
    assert watched.members.chains(["bob"]) == {}
