"""A server and its clients outside any run: who gets keys, and what ends a connection."""

from __future__ import annotations

from datetime import timedelta
from functools import cache

import pytest

from parties.agreement import pace
from parties.agreement.pair import (
    BUSY,
    ENDED,
    MAX_LINES,
    PART_OVERHEAD_BYTES,
    ClientEnd,
    Parts,
    ServerEnd,
)
from parties.errors import RosterError
from parties.keys import lifetime
from parties.keys.identity import Card, IdentityKeys
from parties.keys.vault import MemoryVault
from protocols.errors import AuthenticationError, FrameError, HandshakeError, PeerLostError
from protocols.sealing.session import SUITE

PURPOSE = "questions"
ROUTE = b"1"


@cache
def vault(name: str) -> MemoryVault:
    return MemoryVault.generate(name)


class Desk:
    """A server, and what it has said to each route."""

    def __init__(self, owner: MemoryVault | None = None) -> None:
        self.said: list[tuple[bytes, Parts]] = []
        cards = {name: vault(name).card for name in ("ann", "bob")}
        self.end = ServerEnd(
            owner or vault("company"), cards, PURPOSE, lambda *said: self.said.append(said)
        )

    def hear(self, client: str, *parts: bytes, route: bytes = ROUTE) -> Parts | None:
        return self.end.take(route, client, parts)

    def last(self) -> bytes:
        return self.said[-1][1][0]


class Guest:
    """A client's connection to a desk."""

    def __init__(
        self, desk: Desk, owner: MemoryVault | None = None, route: bytes = ROUTE, name: str = "ann"
    ) -> None:
        self.desk, self.route, self.name = desk, route, name
        self.end = ClientEnd(owner or vault(name), vault("company").card, PURPOSE)
        self.sent: list[bytes] = []

    def shake(self) -> Guest:
        message: bytes | None = self.end.begin()
        while message is not None:
            self.sent.append(message)
            self.desk.hear(self.name, message, route=self.route)
            message = self.end.take(self.desk.last())
        return self

    def say(self, *parts: bytes) -> Parts | None:
        assert self.end.sealed is not None
        return self.desk.hear(self.name, *self.end.sealed.seal(parts), route=self.route)

    def hears(self, *parts: bytes) -> Parts:
        sealed = self.desk.end.seal(self.route, parts)
        assert sealed is not None and self.end.sealed is not None
        return self.end.sealed.open(sealed)


def test_what_is_said_arrives_sealed_under_hybrid_keys() -> None:
    desk = Desk()
    guest = Guest(desk).shake()
    assert "MLKEM768_X25519" in SUITE and "ML-DSA-65" in SUITE
    # The transcript: nonces, both digests, and the four messages of the handshake.
    assert [len(each) for each in guest.sent] == [32, 1566, 4595]
    assert [len(parts[0]) for _, parts in desk.said] == [96, 5815, 46]
    assert guest.say(b"head", b"part") == (b"head", b"part")
    assert guest.say(b"") == (b"",)
    assert guest.hears(b"answer") == (b"answer",)
    sealed = desk.end.seal(ROUTE, (b"head", b"a part"))
    assert sealed is not None and b"part" not in b"".join(sealed)
    assert [len(each) for each in sealed] == [4 + PART_OVERHEAD_BYTES, 6 + PART_OVERHEAD_BYTES]
    assert not desk.end.ended


def with_curve_of(name: str) -> IdentityKeys:
    """Other signing keys beside the CURVE key of `name`, which somebody has got."""
    private = IdentityKeys.generate().private_bytes()
    return IdentityKeys(private[:-32] + vault(name).curve_secret())


class Thief(MemoryVault):
    """Shows another's card, and has that card's CURVE key, but not its signing keys."""

    def __init__(self, name: str) -> None:
        keys = with_curve_of(name)
        super().__init__(keys, keys.card(name))
        self.shown = vault(name).card

    @property
    def card(self) -> Card:
        return self.shown


def test_a_stolen_connection_key_is_not_enough() -> None:
    """What CURVE alone protects falls to a quantum computer: neither end may rest on it."""
    desk = Desk()
    thief = Guest(desk, Thief("ann"))
    with pytest.raises(PeerLostError, match="company ended the handshake"):
        thief.shake()
    assert list(desk.end.ended) == [ROUTE] and desk.end.seal(ROUTE, (b"answer",)) is None
    honest = Guest(Desk(Thief("company")))
    with pytest.raises(AuthenticationError, match="company"):
        honest.shake()
    assert honest.end.sealed is None


def test_another_card_is_named() -> None:
    for owner, server in ((with_curve_of("ann"), None), (None, with_curve_of("company"))):
        desk = Desk(None if server is None else MemoryVault(server, server.card("company")))
        guest = Guest(desk, None if owner is None else MemoryVault(owner, owner.card("ann")))
        other = "ann" if owner is not None else "company"
        with pytest.raises(RosterError, match=f"{other}: here .* at company .*--replace"):
            guest.shake()


def test_what_is_altered_or_not_due_ends_its_own_connection() -> None:
    def flipped(part: bytes) -> bytes:
        return part[:-1] + bytes([part[-1] ^ 1])

    desk = Desk()
    bob = Guest(desk, route=b"2", name="bob").shake()
    for change in (
        lambda head, part: (flipped(head), part),
        lambda head, part: (head, flipped(part)),
        lambda head, part: (head,),
        lambda head, part: (part,),
        lambda head, part: (part, head),
        lambda head, part: (head, part, part),
        lambda head, part: (),
        lambda head, part: (b"", b""),
    ):
        guest = Guest(desk).shake()
        assert guest.end.sealed is not None
        first = guest.end.sealed.seal((b"head", b"part"))
        assert desk.hear("ann", *change(*first)) is None and desk.said[-1] == (ROUTE, (ENDED,))
        # What was altered on its way does not open any more as it was either.
        assert desk.hear("ann", *first) is None
    replayed = Guest(desk).shake()
    assert replayed.end.sealed is not None
    first = replayed.end.sealed.seal((b"head",))
    assert desk.hear("ann", *first) == (b"head",)
    assert desk.hear("ann", *first) is None and desk.last() == ENDED
    assert bob.say(b"head") == (b"head",)


def test_what_is_no_part_of_a_handshake_is_not_answered_by_one() -> None:
    desk = Desk()
    for parts in ((), (b"",), (b"short",), (bytes(33),), (bytes(1 << 20),), (bytes(32), b"")):
        assert desk.hear("ann", *parts) is None and desk.last() == ENDED, parts
    for second in (b"", bytes(32), bytes(1566)):
        desk.hear("ann", bytes(32))
        assert len(desk.last()) == 96
        desk.hear("ann", second)
        assert desk.last() == ENDED, len(second)


def test_answers_that_are_none_are_named() -> None:
    for said in (b"", bytes(95), bytes(97)):
        end = ClientEnd(vault("ann"), vault("company").card, PURPOSE)
        with pytest.raises(HandshakeError, match="company"):
            end.take(said)
    for said, words in ((ENDED, "ended the handshake"), (BUSY, "no more handshakes")):
        end = ClientEnd(vault("ann"), vault("company").card, PURPOSE)
        with pytest.raises(PeerLostError, match=f"company .*{words}"):
            end.take(said)
    guest = Guest(Desk()).shake()
    assert guest.end.sealed is not None
    for parts in ((), (b"", b"", b"")):
        with pytest.raises(FrameError):
            guest.end.sealed.open(parts)
        with pytest.raises(FrameError):
            guest.end.sealed.seal(parts)
    with pytest.raises(AuthenticationError):
        guest.end.sealed.open((ENDED,))


def test_a_connection_for_something_else_gets_no_keys() -> None:
    desk = Desk()
    guest = Guest(desk)
    guest.end = ClientEnd(vault("ann"), vault("company").card, "answers")
    with pytest.raises(PeerLostError):
        guest.shake()


def test_the_same_messages_agree_on_nothing_twice() -> None:
    """The server's nonce and ephemeral key are fresh: a recorded client is none."""
    desk = Desk()
    sent = Guest(desk).shake().sent
    again = Desk()
    for message in sent:
        again.hear("ann", message)
    assert again.last() == ENDED


def test_both_ends_begin_each_connection_with_a_fresh_nonce() -> None:
    """Also where the other end repeats its own."""
    desk = Desk()
    for route in (b"1", b"2"):
        desk.hear("ann", bytes(32), route=route)
    (_, (first,)), (_, (second,)) = desk.said
    assert first[:32] != second[:32] and first[32:] == second[32:]
    begun = {ClientEnd(vault("ann"), vault("company").card, PURPOSE).begin() for _ in range(2)}
    assert len(begun) == 2


def test_a_client_has_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    bob = Guest(desk, route=b"b", name="bob").shake()
    guests = [Guest(desk, route=bytes([n])).shake() for n in range(MAX_LINES + 1)]
    assert list(desk.end.ended) == [bytes([0])] and (bytes([0]), (ENDED,)) in desk.said
    assert guests[0].say(b"head") is None
    assert guests[-1].say(b"head") == (b"head",) and bob.say(b"head") == (b"head",)
    monkeypatch.setattr(pace, "EACH", (1.0, 0.0))
    desk = Desk()
    desk.hear("ann", bytes(32), route=b"3")
    desk.hear("ann", bytes(32), route=b"4")
    assert desk.said[-1] == (b"4", (BUSY,))
    Guest(desk, route=b"b", name="bob").shake()


@pytest.mark.parametrize("short", ["ann", "company"])
def test_a_card_that_expires_later_begins_nothing(
    short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vaults = {name: expiring(name, 1 if name == short else 9) for name in ("ann", "company")}
    desk = Desk(vaults["company"])
    desk.end._peers["ann"] = vaults["ann"].card
    guest = Guest(desk, vaults["ann"])
    guest.end = ClientEnd(vaults["ann"], vaults["company"].card, PURPOSE)
    guest.shake()
    moment = lifetime.now() + timedelta(days=2)
    monkeypatch.setattr(lifetime, "now", lambda: moment)
    desk.hear("ann", bytes(32), route=b"2")
    assert desk.said[-1] == (b"2", (ENDED,))
    assert guest.say(b"head") == (b"head",)


def expiring(name: str, days: int) -> MemoryVault:
    keys = IdentityKeys.generate()
    return MemoryVault(keys, keys.card(name, days=days))


def test_a_connection_that_is_gone_is_forgotten() -> None:
    desk = Desk()
    guest = Guest(desk).shake()
    desk.end.forget(ROUTE)
    assert not desk.end.ended and desk.end.seal(ROUTE, (b"answer",)) is None
    assert guest.say(b"head") is None


def test_what_one_end_said_is_nothing_that_it_hears() -> None:
    """Reflected messages agree on nothing, whether of the handshake or sealed."""
    for place in range(3):
        desk, message = Desk(), None
        guest = Guest(desk)
        message = guest.end.begin()
        for _ in range(place):
            desk.hear("ann", message)
            message = guest.end.take(desk.last())
            assert message is not None
        with pytest.raises(HandshakeError):
            guest.end.take(message)
        assert guest.end.sealed is None
    desk = Desk()
    guest = Guest(desk).shake()
    assert guest.end.sealed is not None
    with pytest.raises(AuthenticationError):
        guest.end.sealed.open(guest.end.sealed.seal((b"head",)))
    sealed = desk.end.seal(ROUTE, (b"answer",))
    assert sealed is not None
    assert desk.hear("ann", *sealed) is None and desk.last() == ENDED


def test_records_open_once_in_order_and_on_their_own_connection() -> None:
    desk = Desk()
    for change in ("swapped", "dropped", "moved"):
        guest, other = Guest(desk).shake(), Guest(desk, route=b"2").shake()
        assert guest.end.sealed is not None and other.end.sealed is not None
        first, second = (guest.end.sealed.seal((part,)) for part in (b"first", b"second"))
        if change == "moved":
            assert desk.hear("ann", *first, route=b"2") is None
            assert other.say(b"head") is None
        else:
            said = (second, first) if change == "swapped" else (second,)
            assert [desk.hear("ann", *each) for each in said] == [None] * len(said)
        desk.end.forget(ROUTE)
        desk.end.forget(b"2")


def test_a_message_is_for_its_place_in_the_handshake_and_for_its_client() -> None:
    """Twice, too early, or in the connection of another client: it ends the connection where it
    came, and no keys are agreed on."""
    desk, guest = Desk(), Guest(Desk())
    guest.desk = desk
    desk.hear("ann", guest.end.begin())
    proposal = guest.end.take(desk.last())
    assert proposal is not None
    for route, client in ((b"2", "bob"), (b"3", "ann")):
        desk.hear(client, bytes(32), route=route)
        desk.hear(client, proposal, route=route)
        assert desk.said[-1] == (route, (ENDED,)), client
    desk.hear("ann", proposal)
    assert len(desk.last()) > 5000
    desk.hear("ann", proposal)
    assert desk.said[-1] == (ROUTE, (ENDED,)) and desk.end.seal(ROUTE, (b"answer",)) is None
    assert desk.hear("ann", proposal) is None and desk.last() == ENDED


@pytest.mark.parametrize("field", [SUITE, PURPOSE])
def test_another_suite_or_purpose_in_a_proposal_is_refused(field: str) -> None:
    desk = Desk()
    guest = Guest(desk)
    desk.hear("ann", guest.end.begin())
    proposal = guest.end.take(desk.last())
    assert proposal is not None and proposal.count(field.encode()) == 1
    lower = field.encode()[:-1] + b"0"
    desk.hear("ann", proposal.replace(field.encode(), lower))
    assert desk.last() == ENDED


def test_connections_that_never_finish_take_no_room_and_nobody_s_place() -> None:
    desk = Desk()
    bob = Guest(desk, route=b"b", name="bob").shake()
    for number in range(200):
        desk.hear("ann", bytes(32), route=number.to_bytes(5, "big"))
    assert len(desk.end._lines) == 1 + MAX_LINES
    assert {parts for _, parts in desk.said[-50:]} == {(BUSY,)}
    assert bob.say(b"head") == (b"head",)


def test_a_server_that_was_started_again_knows_no_connection_of_before() -> None:
    guest = Guest(Desk()).shake()
    guest.desk = Desk()
    assert guest.say(b"head") is None and guest.desk.said == [(ROUTE, (ENDED,))]
    assert guest.say(b"head", b"part") is None
