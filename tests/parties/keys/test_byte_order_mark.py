"""A card or a roster that an editor saved with a byte-order mark is the same card."""

from pathlib import Path

from parties.keys.identity import Card, IdentityKeys
from parties.keys.roster import Roster

MARK = b"\xef\xbb\xbf"


def test_a_card_with_a_mark(tmp_path: Path) -> None:
    card = IdentityKeys.generate().card("ann")
    path = tmp_path / "ann.card"
    path.write_bytes(MARK + card.to_text().replace("\n", "\r\n").encode())
    assert Card.load(path) == card
    assert Roster.load(tmp_path).names == ("ann",)


def test_a_roster_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    roster = Roster({}).add(IdentityKeys.generate().card("ann"))
    roster.save(path)
    path.write_bytes(MARK + path.read_bytes())
    assert Roster.load(path) == roster
