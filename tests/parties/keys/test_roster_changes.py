"""Rosters on the disk: what was succeeded or revoked stays so, whatever is put back."""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from parties import files
from parties.errors import RevokedError, RosterError
from parties.keys import lifetime, roster
from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.statements import Revocation
from parties.keys.vault import MemoryVault

ANN, BOB, EVE = (MemoryVault.generate(name) for name in ("ann", "bob", "eve"))
KEYS = IdentityKeys.generate()
BOB_OF_KEYS = KEYS.card("bob")
SECOND = ANN.successor()
NOW = lifetime.now() + timedelta(minutes=1)
BEFORE = Roster.of([ANN.card, BOB.card, EVE.card])


@pytest.fixture(params=["roster", "roster.toml"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "home" / str(request.param)
    BEFORE.save(path)
    return path


def follow(known: Roster) -> Roster:
    return known.follow(SECOND.successions, NOW)


def revoke(known: Roster) -> Roster:
    return known.revoke_by(Revocation.sign(BOB, NOW), NOW)


def test_a_succession_is_kept(place: Path) -> None:
    changed = Roster.update(place, follow)
    for found in (changed, Roster.load(place)):
        assert found.card("ann") == SECOND.card
        assert found.line("ann") == (SECOND.card, ANN.card)
        assert found.source == place
    assert Roster.update(place, follow) == changed


def test_an_old_roster_that_is_put_back_changes_nothing(place: Path) -> None:
    """Cards of an old roster over new ones: they stand for their successors, or for nothing."""
    Roster.update(place, follow)
    Roster.update(place, revoke)
    if place.is_dir():
        for card in BEFORE:
            (place / f"{card.name}.card").write_text(card.to_text())
    else:
        place.write_text(BEFORE.to_text())
    found = Roster.load(place)
    assert found.card("ann") == SECOND.card
    with pytest.raises(RevokedError, match=r"card of bob .* was revoked"):
        found.card("bob")
    assert found.names == ("ann", "eve")


def test_a_revoked_card_is_deleted_and_stays_on_the_list(place: Path) -> None:
    Roster.update(place, revoke)
    text = "".join(path.read_text() for path in place.parent.rglob("*.card"))
    text += place.read_text() if place.is_file() else ""
    assert BOB.card.fingerprint not in text
    found = Roster.load(place)
    assert [(gone.fingerprint, gone.by) for gone in found.revoked] == [
        (BOB.card.fingerprint, "owner")
    ]
    with pytest.raises(RevokedError):
        Roster.update(place, lambda known: known.add(BOB.card, replace=True))


def test_what_stands_beside_the_roster_is_never_skipped(place: Path) -> None:
    Roster.update(place, revoke)
    beside = roster._withdrawn_of(place)
    text = beside.read_text()
    for broken in (
        "",
        text[:-40],
        text.replace("version = 2", "version = 3"),
        text.replace('by = "owner"', 'by = "x"'),
        text + "x = 1\n",
    ):
        beside.write_text(broken)
        with pytest.raises(RosterError, match="withdrawn"):
            Roster.load(place)


@pytest.mark.parametrize("change", [follow, revoke], ids=["follow", "revoke"])
def test_a_crash_at_each_write_leaves_the_old_roster_or_the_new_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Roster], Roster]
) -> None:
    """Neither an accepted card that was revoked, nor a name without any card."""
    after = change(Roster.load(place))
    real = files.write_atomic
    for allowed in range(4):
        BEFORE.save(place)
        roster._withdrawn_of(place).unlink(missing_ok=True)
        left = [allowed]

        def write(*arguments: object, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(roster, "write_atomic", write)
        with contextlib.suppress(KeyboardInterrupt):
            Roster.update(place, change)
        found = Roster.load(place)
        assert found in (BEFORE, after)
        assert (found == BEFORE) == (allowed == 0)
        monkeypatch.undo()
        assert Roster.update(place, change) == after


def test_a_card_file_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "from-ann.card").write_text(ANN.card.to_text())
    (tmp_path / "bob.card").write_text(BOB.card.to_text())
    Roster.update(tmp_path, follow)
    assert sorted(path.name for path in tmp_path.glob("*.card")) == ["bob.card", "from-ann.card"]
    assert Roster.load(tmp_path).card("ann") == SECOND.card


def test_nothing_is_written_where_nothing_changes(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.parent.rglob("*") if path.is_file()}
    Roster.update(place, lambda known: known)
    for path, when in before.items():
        assert path.stat().st_mtime_ns == when


def test_forgetting_keeps_what_was_withdrawn(place: Path) -> None:
    Roster.update(place, follow)
    assert Roster.forget(place, "ann") == SECOND.card
    assert "ann" not in Roster.load(place)
    with pytest.raises(RevokedError, match="an old card of ann"):
        Roster.update(place, lambda known: known.add(ANN.card))


@pytest.mark.parametrize("name", ["bob", "robert"])
def test_a_revoked_key_comes_back_in_no_other_card(place: Path, name: str) -> None:
    """Who has stolen keys can sign another card of theirs, of other dates or another name."""
    again = KEYS.card(name, NOW - timedelta(hours=1))
    Roster.update(place, lambda known: known.revoke(BOB_OF_KEYS, NOW))
    with pytest.raises(RevokedError, match=r"has a key of the card of bob .* which was revoked on"):
        Roster.update(place, lambda known: known.add(again, replace=True))
    if place.is_dir():
        (place / f"{name}.card").write_text(again.to_text())
    else:
        place.write_text(Roster.of([again]).to_text())
    assert name not in Roster.load(place)
    assert Roster.load(place).line(name) == ()


def test_revoking_a_card_puts_out_those_of_the_same_keys(place: Path) -> None:
    again = KEYS.card("bob", NOW - timedelta(hours=1))
    Roster.update(place, lambda known: known.add(again, replace=True))
    assert "bob" not in Roster.update(place, lambda known: known.revoke(BOB_OF_KEYS, NOW))
