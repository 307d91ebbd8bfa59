"""The cards that a node accepts: the organisations that may take part at all.

A roster is a directory of `*.card` files or one TOML file; both mean the same set of cards. A known
name never changes its keys silently: otherwise somebody who smuggles in a new card under an old
name would become that organisation to us. Rosters are values: adding a card gives a new roster.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from parties.errors import CardError, ExpiredError, RosterError
from parties.files import read_bounded, write_atomic
from parties.keys import lifetime
from parties.keys.identity import MAX_CARD_BYTES, Card, fingerprint_of, reason
from protocols.canonical import pack

ROSTER_VERSION = 1
MAX_CARDS = 1024
MAX_ROSTER_BYTES = MAX_CARDS * (MAX_CARD_BYTES // 4)


class Roster:
    """Cards by name. Build with `of` or `load`; every card in it is verified."""

    def __init__(self, cards: dict[str, Card]) -> None:
        self._cards = dict(sorted(cards.items()))

    @classmethod
    def of(cls, cards: Iterable[Card]) -> "Roster":
        """A roster of these cards. Raises RosterError if two contradict each other."""
        roster = cls({})
        for card in cards:
            roster = roster.add(card)
        return roster

    @classmethod
    def load(cls, path: Path | str, *, missing_ok: bool = False) -> "Roster":
        """Read and verify a roster: a directory of cards, or a TOML file.

        Raises RosterError, which names the faulty file; nothing is skipped. With `missing_ok` a
        path that does not exist is an empty roster.
        """
        root = Path(path)
        try:
            if root.is_dir():
                return _from_directory(root)
            if missing_ok and not root.exists():
                return cls({})
            return _from_file(root)
        except CardError as error:
            raise RosterError(f"roster {root}: {error}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RosterError(f"roster {root}: {reason(error)}") from error

    def add(self, card: Card, *, replace: bool = False) -> "Roster":
        """This roster and `card`, which is verified first.

        Raises RosterError if the name is known with another card (unless `replace`; also one of the
        same keys: whoever stole them could prolong their lifetime), or if another
        name has one of the card's keys; CardError if the card does not verify.
        """
        card.verify(f"card of {card.name}")
        known = self._cards.get(card.name)
        if known is not None and not replace and known.digest != card.digest:
            raise RosterError(
                f"{card.name} is known with another card ({known.fingerprint}); compare the new "
                f"card's fingerprint ({card.fingerprint}) with its owner, then add it with "
                "--replace"
            )
        for other in self._cards.values():
            if other.name != card.name and set(_keys(other)) & set(_keys(card)):
                raise RosterError(f"{card.name} has a key of {other.name}: keys are never shared")
        if known is None and len(self._cards) >= MAX_CARDS:
            raise RosterError(f"a roster holds at most {MAX_CARDS} cards")
        return Roster({**self._cards, card.name: card})

    def remove(self, name: str) -> "Roster":
        """This roster without `name`. Raises RosterError if it does not contain the name."""
        self.card(name)
        return Roster({known: card for known, card in self._cards.items() if known != name})

    def card(self, name: str) -> Card:
        """The card of `name`. Raises RosterError if there is none."""
        try:
            return self._cards[name]
        except KeyError:
            raise RosterError(
                f"no card of {name!r} in the roster: get the card from its owner, compare "
                "fingerprints, and add it"
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._cards)

    def subset(self, names: Iterable[str]) -> "Roster":
        """The roster with only these names. Raises RosterError if one is missing."""
        return Roster({name: self.card(name) for name in names})

    def current(self, moment: datetime) -> "Roster":
        """The roster without cards that are not valid at `moment`."""
        return Roster({card.name: card for card in self if _is_current(card, moment)})

    def check_lifetimes(self, moment: datetime) -> list[str]:
        """Warnings about the cards that expire soon. Raises ExpiredError, which names all cards
        that are not valid at `moment`."""
        faults = []
        for card in self:
            try:
                lifetime.check_peer(card, moment)
            except ExpiredError as error:
                faults.append(str(error))
        if faults:
            raise ExpiredError("; ".join(faults))
        warnings = [lifetime.expiring(card, moment) for card in self]
        return [warning for warning in warnings if warning is not None]

    def digest(self) -> bytes:
        """32 bytes that are equal at two nodes exactly if their rosters hold the same cards."""
        digests = (card.digest for card in self)
        return sha256(pack(b"mpc-train/roster/1", *digests)).digest()

    def to_text(self) -> str:
        """The roster as one TOML file."""
        lines = [f"version = {ROSTER_VERSION}"]
        for card in self:
            lines += ["", "[[card]]", f'fingerprint = "{card.fingerprint}"']
            lines += [f"{key} = {value}" for key, value in card.toml_items()]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the roster: one file for a path that ends in .toml, else a directory of cards.

        A directory keeps the cards of names that this roster lacks: `forget` removes them. Raises
        RosterError.
        """
        root = Path(path)
        try:
            if root.suffix == ".toml" and not root.is_dir():
                root.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(root, self.to_text().encode(), 0o644)
                return
            root.mkdir(parents=True, exist_ok=True)
            for card in self:
                write_atomic(root / f"{card.name}.card", card.to_text().encode(), 0o644)
        except OSError as error:
            raise RosterError(f"roster {root}: cannot be written: {reason(error)}") from error

    @staticmethod
    def forget(path: Path | str, name: str) -> Card:
        """Remove the card of `name` from the roster at `path` and return it. Raises RosterError."""
        root = Path(path)
        known = Roster.load(root)
        gone, rest = known.card(name), known.remove(name)
        if not root.is_dir():
            rest.save(root)
            return gone
        try:
            # The file's name may differ from the name in the card.
            for file in [one for one in root.glob("*.card") if Card.load(one).name == name]:
                file.unlink()
        except OSError as error:
            raise RosterError(f"roster {root}: cannot be written: {reason(error)}") from error
        return gone

    def __contains__(self, name: object) -> bool:
        return name in self._cards

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards.values())

    def __len__(self) -> int:
        return len(self._cards)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and self._cards == other._cards

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Roster({', '.join(self.names)})"


def differing_cards(roster: Roster, other: str, theirs: Mapping[str, bytes]) -> str:
    """A sentence that names the cards that differ between this roster and that of the node `other`.

    theirs: the digests that `other` claims to have; nothing is decided by them.
    """
    lines = [
        f"{card.name}: here {card.fingerprint}, at {other} {fingerprint_of(theirs[card.name])}"
        for card in roster
        if card.name in theirs and theirs[card.name] != card.digest
    ]
    which = "; ".join(lines) or f"{other} does not say which differ"
    return (
        f"{other} has other cards than this node. {which}. Ask the card's owner for its "
        "fingerprint, and replace the wrong card (roster add --replace)"
    )


def _is_current(card: Card, moment: datetime) -> bool:
    try:
        lifetime.check_peer(card, moment)
    except ExpiredError:
        return False
    return True


def _keys(card: Card) -> tuple[bytes, bytes, bytes, bytes]:
    return card.ed25519, card.mldsa65, card.recipient, card.curve


def _from_directory(root: Path) -> Roster:
    roster = Roster({})
    for path in sorted(root.glob("*.card")):
        card = Card.load(path)
        if card.name in roster:
            raise RosterError(f"{path}: a second card of {card.name}")
        roster = roster.add(card)
    return roster


def _from_file(path: Path) -> Roster:
    table = tomllib.loads(read_bounded(path, MAX_ROSTER_BYTES).decode("utf-8-sig"))
    unknown = sorted(set(table) - {"version", "card"})
    if unknown:
        raise RosterError(f"{path}: {unknown[0]!r} is unknown")
    if type(table.get("version")) is not int or table["version"] != ROSTER_VERSION:
        raise RosterError(f"{path}: a roster of version {table.get('version')!r}")
    entries = table.get("card", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RosterError(f"{path}: cards are [[card]] tables")
    roster = Roster({})
    for number, entry in enumerate(entries, start=1):
        source = f"{path}, card {number}"
        fingerprint = entry.pop("fingerprint", None)
        card = Card.from_table(entry, source)
        if fingerprint != card.fingerprint:
            raise RosterError(f"{source}: the fingerprint is not that of the card of {card.name}")
        if card.name in roster:
            raise RosterError(f"{source}: a second card of {card.name}")
        roster = roster.add(card)
    return roster
