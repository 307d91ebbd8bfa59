"""Rosters: one meaning for a directory and a file, and no silent change of keys."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parties.errors import CardError, RevokedError, RosterError
from parties.keys import roster as roster_module
from parties.keys.identity import Card, IdentityKeys
from parties.keys.roster import Roster, differing_cards

WHEN = datetime(2025, 1, 31, 12, tzinfo=UTC)
NAMES = ("bank-b", "hospital-a", "study-office")
KEYS = {name: IdentityKeys(bytes([number]) * 192) for number, name in enumerate(NAMES, start=1)}
CARDS = {name: keys.card(name, WHEN) for name, keys in KEYS.items()}
STRANGER = IdentityKeys(b"\x09" * 192)
ROSTER = Roster.of(CARDS.values())


def test_a_roster_finds_cards() -> None:
    assert ROSTER.names == NAMES and len(ROSTER) == 3 and "bank-b" in ROSTER
    assert ROSTER.card("bank-b") == CARDS["bank-b"] and list(ROSTER) == list(CARDS.values())
    assert repr(ROSTER) == "Roster(bank-b, hospital-a, study-office)"
    with pytest.raises(RosterError, match="no card of 'nobody'"):
        ROSTER.card("nobody")
    with pytest.raises(RosterError, match="no card of 'nobody'"):
        ROSTER.subset(["bank-b", "nobody"])


def test_digests_depend_on_the_cards_and_not_on_their_order() -> None:
    assert ROSTER.digest() == Roster.of(list(CARDS.values())[::-1]).digest()
    assert len(ROSTER.digest()) == 32
    other = ROSTER.add(STRANGER.card("bank-b", WHEN), replace=True)
    digests = {ROSTER.digest(), other.digest(), ROSTER.subset(NAMES[:2]).digest()}
    assert len(digests) == 3
    assert ROSTER.subset(NAMES[:2]) == Roster.of(CARDS[name] for name in NAMES[:2])


def test_differing_cards_are_named_with_both_fingerprints() -> None:
    """Card by card; equal ones are not mentioned, nor is the card of who says it."""
    others = {name: STRANGER.card(name, WHEN) for name in ("bank-b", "hospital-a")}
    theirs = {name: card.digest for name, card in {**CARDS, **others}.items()}
    text = differing_cards(ROSTER, "study-office", theirs)
    for name, card in others.items():
        here, there = CARDS[name].fingerprint, card.fingerprint
        assert f"{name}: here {here}, at study-office {there}" in text
    assert CARDS["study-office"].fingerprint not in text
    assert "study-office: here" not in text
    one = differing_cards(ROSTER, "desk", {**theirs, "bank-b": CARDS["bank-b"].digest})
    assert "hospital-a: here" in one and "bank-b: here" not in one
    renewed = KEYS["bank-b"].card("bank-b", WHEN.replace(year=2026))
    again = differing_cards(ROSTER, "desk", {"bank-b": renewed.digest})
    assert f"bank-b: here {CARDS['bank-b'].fingerprint}, at desk {renewed.fingerprint}" in again


def test_a_coordinator_that_does_not_say_which_differ_is_not_guessed_at() -> None:
    same = {name: card.digest for name, card in CARDS.items()}
    for theirs in ({}, same, {"nobody": bytes(32)}):
        text = differing_cards(ROSTER, "desk", theirs)
        assert "desk has other cards than this node. desk does not say which differ" in text


@pytest.mark.parametrize("name", ["roster.toml", "roster"])
def test_both_forms_survive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    ROSTER.save(path)
    loaded = Roster.load(path)
    assert loaded == ROSTER and hash(loaded) == hash(ROSTER)
    assert path.is_dir() == (name == "roster")
    assert not list(tmp_path.rglob("*.tmp"))


def test_changed_keys_of_a_known_name_are_refused() -> None:
    changed = STRANGER.card("bank-b", WHEN)
    with pytest.raises(RosterError, match="known with another card") as caught:
        ROSTER.add(changed)
    assert changed.fingerprint in str(caught.value)
    assert CARDS["bank-b"].fingerprint in str(caught.value)
    assert ROSTER.card("bank-b") == CARDS["bank-b"]
    assert ROSTER.add(changed, replace=True).card("bank-b") == changed


def test_the_same_keys_do_not_prolong_their_own_lifetime() -> None:
    prolonged = KEYS["bank-b"].card("bank-b", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(RosterError, match="known with another card"):
        ROSTER.add(prolonged)
    assert ROSTER.add(prolonged, replace=True).card("bank-b") == prolonged


def test_one_key_under_two_names_is_refused() -> None:
    with pytest.raises(RosterError, match="bank-c has a key of bank-b"):
        ROSTER.add(KEYS["bank-b"].card("bank-c", WHEN))


PARTS = {"ed25519": (0, 32), "mldsa65": (32, 64), "recipient": (64, 160), "curve": (160, 192)}
"""Where the private keys lie in an identity."""


def sharing(part: str) -> IdentityKeys:
    """Keys of a stranger's, one of which is that of bank-b."""
    private, (start, end) = bytearray(STRANGER.private_bytes()), PARTS[part]
    private[start:end] = KEYS["bank-b"].private_bytes()[start:end]
    return IdentityKeys(bytes(private))


@pytest.mark.parametrize("part", PARTS)
def test_not_even_one_key_of_an_identity_is_shared(part: str) -> None:
    with pytest.raises(RosterError, match="bank-c has a key of bank-b"):
        ROSTER.add(sharing(part).card("bank-c", WHEN))


@pytest.mark.parametrize("part", ["ed25519", "mldsa65", "recipient"])
def test_not_even_one_key_of_a_revoked_card_comes_back(part: str) -> None:
    without = ROSTER.revoke(CARDS["bank-b"], WHEN)
    with pytest.raises(RevokedError, match="has a key of the card of bank-b"):
        without.add(sharing(part).card("bank-b", WHEN))
    # A successor may keep the key of its connections.
    assert "bank-b" in without.add(sharing("curve").card("bank-b", WHEN))


def test_a_card_that_does_not_verify_is_refused() -> None:
    with pytest.raises(CardError):
        ROSTER.add(replace(CARDS["bank-b"], name="bank-c"))


def test_a_roster_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MAX_CARDS", 3)
    with pytest.raises(RosterError, match="at most 3"):
        ROSTER.add(STRANGER.card("stranger", WHEN))
    ROSTER.add(CARDS["bank-b"])


def test_a_missing_roster_is_an_error_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RosterError, match="there is none; accept cards"):
        Roster.load(tmp_path / "none")
    assert len(Roster.load(tmp_path / "none", missing_ok=True)) == 0


def test_a_bad_card_in_a_directory_is_named(tmp_path: Path) -> None:
    ROSTER.save(tmp_path)
    (tmp_path / "README").write_text("not a card, and not looked at")
    assert Roster.load(tmp_path) == ROSTER
    bad = tmp_path / "bank-b.card"
    bad.write_text(bad.read_text().replace("bank-b", "bank-c"))
    with pytest.raises(RosterError, match=r"bank-b\.card"):
        Roster.load(tmp_path)
    bad.write_bytes((tmp_path / "hospital-a.card").read_bytes())
    with pytest.raises(RosterError, match=r"hospital-a\.card: a second card of hospital-a"):
        Roster.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1\n\n", "version = 2\n\n"),
        ("version = 1\n\n", "version = true\n\n"),
        ("version = 1\n\n", "version = 1.0\n\n"),
        ("version = 1\n\n", "\n"),
        ("version = 1\n\n", "version = 1\nextra = 1\n\n"),
        ("[[card]]", "[card]"),
        ('name = "bank-b"', 'name = "bank-c"'),
        ('name = "bank-b"', 'name = "bank-b"\nextra = 1'),
        (CARDS["bank-b"].fingerprint, CARDS["hospital-a"].fingerprint),
        (f'fingerprint = "{CARDS["bank-b"].fingerprint}"\n', ""),
        ('name = "bank-b"\n', ""),
    ],
)
def test_a_bad_roster_file_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "roster.toml"
    text = ROSTER.to_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RosterError, match=r"roster\.toml"):
        Roster.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"=",
        b"\xff",
        b"version = 1\ncard = 1",
        b"version = 1\ncard = [1]",
        b"version = 1\n[[card]]\n",
        b"version = " + b"1" * 10000,
        b"x = " + b"[" * 20000,
    ],
)
def test_hostile_files_cause_only_our_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "roster.toml"
    path.write_bytes(content)
    with pytest.raises(RosterError, match=r"roster\.toml"):
        Roster.load(path)


@given(st.binary(max_size=100))
@settings(max_examples=40)
def test_arbitrary_files_cause_only_our_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.toml"
    path.write_bytes(content)
    with pytest.raises(RosterError, match=r"arbitrary\.toml"):
        Roster.load(path)


def test_a_card_file_is_not_a_roster_file(tmp_path: Path) -> None:
    path = tmp_path / "bank-b.card"
    path.write_text(CARDS["bank-b"].to_text())
    assert Card.load(path) == CARDS["bank-b"]
    with pytest.raises(RosterError, match="'curve' is unknown"):
        Roster.load(path)
