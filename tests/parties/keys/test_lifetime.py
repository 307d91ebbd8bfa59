"""Cards have a lifetime: who refuses which card when, and who is warned."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from parties.errors import CardError, ExpiredError
from parties.keys import lifetime
from parties.keys.identity import Card, IdentityKeys
from parties.keys.roster import Roster
from parties.keys.vault import FileVault

WHEN = datetime(2025, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
KEYS = IdentityKeys(bytes(range(192)))
CARD = KEYS.card("ann", WHEN, 60)
END = WHEN + timedelta(days=60)


def test_both_dates_are_in_the_digest_and_by_default_two_years_apart() -> None:
    assert (CARD.issued, CARD.expires) == ("2025-01-31T12:00:00Z", "2025-04-01T12:00:00Z")
    assert CARD.digest != KEYS.card("ann", WHEN, 61).digest
    assert CARD.digest != KEYS.card("ann", WHEN + SECOND, 60).digest
    assert lifetime.end_of(KEYS.card("ann", WHEN)) - WHEN == timedelta(days=730)


@pytest.mark.parametrize("days", [0, -1, 1827, 100_000])
def test_a_lifetime_has_bounds(days: int) -> None:
    with pytest.raises(CardError, match="1 to 1826 days"):
        KEYS.card("ann", WHEN, days)
    expires = lifetime.shown(WHEN + timedelta(days=days))
    unsigned = replace(CARD, expires=expires)
    signed = replace(unsigned, signature=KEYS.signing.sign("card/3", unsigned.canonical))
    with pytest.raises(CardError, match="1 to 1826 days"):
        Card.from_text(signed.to_text())


def test_a_node_is_strict_with_itself_and_says_what_to_do() -> None:
    lifetime.check_own(CARD, END - SECOND)
    for moment in (END, END + timedelta(days=400)):
        with pytest.raises(ExpiredError, match=r"expired on 2025-04-01.*identity rotate ann"):
            lifetime.check_own(CARD, moment)


def test_others_tolerate_clocks_that_differ_by_minutes() -> None:
    for moment in (WHEN - lifetime.SKEW, WHEN, END, END + lifetime.SKEW - SECOND):
        lifetime.check_peer(CARD, moment)
    with pytest.raises(ExpiredError, match=r"card of ann expired on 2025-04-01.*roster add"):
        lifetime.check_peer(CARD, END + lifetime.SKEW)
    with pytest.raises(ExpiredError, match="correct the clock"):
        lifetime.check_peer(CARD, WHEN - lifetime.SKEW - SECOND)


def test_everybody_is_warned_in_the_last_month() -> None:
    assert lifetime.expiring(CARD, END - timedelta(days=31)) is None
    assert lifetime.expiring(CARD, END) is None
    said = lifetime.expiring(CARD, END - timedelta(days=12))
    assert said == "the card of ann expires on 2025-04-01T12:00:00Z, in 12 days"
    assert "in 5 hours" in (lifetime.expiring(CARD, END - timedelta(hours=5)) or "")


def test_a_roster_names_every_card_that_is_not_valid() -> None:
    others = [
        IdentityKeys(bytes([number]) * 192).card(name, WHEN, days)
        for number, (name, days) in enumerate([("bob", 60), ("eve", 80)], start=1)
    ]
    roster = Roster.of([CARD, *others])
    assert len(roster.check_lifetimes(WHEN)) == 0
    assert len(roster.check_lifetimes(END - timedelta(days=2))) == 3
    with pytest.raises(ExpiredError, match=r"ann expired.*bob expired") as caught:
        roster.check_lifetimes(END + lifetime.SKEW)
    assert "eve" not in str(caught.value)
    assert roster.current(END + lifetime.SKEW).names == ("eve",)


def test_a_file_keeps_the_lifetime(tmp_path: Path) -> None:
    FileVault.create(tmp_path, "ann", b"correct horse", issued=WHEN, days=60)
    assert Card.load(tmp_path / "ann.card").expires == CARD.expires
