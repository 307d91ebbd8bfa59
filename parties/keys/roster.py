"""The cards that a node accepts: the organisations that may take part at all.

A roster is a directory of `*.card` files or one TOML file; both mean the same set of cards. A known
name never changes its keys without its owner's word: otherwise somebody who smuggles in a new card
under an old name would become that organisation to us. Only a succession that the known card has
signed (`statements`) replaces a card without a comparison of fingerprints. Rosters are values:
adding a card gives a new roster.

Beside the cards stands what they have been through (`withdrawn.toml` in the directory, or
`NAME.withdrawn.toml`): successions, and revoked cards. A card that was succeeded stands for its
successor, and one that was revoked for nothing, so putting back an old card, or an old roster, has
no effect; nor has another card with a key of a revoked one, which whoever stole it could make.
Old signatures are still verified with the cards of that time (`line`).
"""

import contextlib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from parties.errors import CardError, ExpiredError, RevokedError, RosterError
from parties.files import locked, read_bounded, write_atomic
from parties.keys import lifetime
from parties.keys.identity import MAX_CARD_BYTES, Card, fingerprint_of, reason
from parties.keys.statements import MAX_CHAIN, Revocation, Succession, check_chain, usable_now
from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.sealing.recipient_keys import RecipientKey
from protocols.sealing.signatures import VerifyKeys

ROSTER_VERSION = 1
MAX_CARDS = 1024
MAX_ROSTER_BYTES = MAX_CARDS * (MAX_CARD_BYTES // 4)


WITHDRAWN = "withdrawn.toml"
WITHDRAWN_VERSION = 2
MAX_REVOKED = 4096
MAX_WITHDRAWN_BYTES = 64 << 20

BY_OWNER, BY_OPERATOR = "owner", "operator"


@dataclass(frozen=True)
class Revoked:
    """A card that is no longer accepted. by: its `owner`, by a signed statement, or the `operator`
    of this node. on: when, as cards write it. keys: digests of its keys, which no other card may
    have."""

    name: str
    fingerprint: str
    on: str
    by: str
    keys: tuple[str, ...]


class Roster:
    """Cards by name. Build with `of` or `load`; every card in it is verified.

    successions: by name, those that led to the present card, the oldest first. revoked: by
    fingerprint. source: the file or directory from which it was loaded.
    """

    def __init__(
        self,
        cards: Mapping[str, Card],
        successions: Mapping[str, tuple[Succession, ...]] | None = None,
        revoked: Mapping[str, Revoked] | None = None,
        source: Path | None = None,
    ) -> None:
        self._cards = dict(sorted(cards.items()))
        self._successions = dict(successions or {})
        self._revoked = dict(revoked or {})
        self._revoked_keys = {key: gone for gone in self._revoked.values() for key in gone.keys}
        self.source = source

    def _with(self, cards: Mapping[str, Card], **changed: Mapping[str, object]) -> "Roster":
        kept = {"successions": self._successions, "revoked": self._revoked, **changed}
        return Roster(cards, source=self.source, **kept)  # type: ignore[arg-type]

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
            successions, revoked = _read_withdrawn(root)
            if root.is_dir():
                cards = _from_directory(root)
            elif missing_ok and not root.exists():
                cards = cls({})
            else:
                cards = _from_file(root)
            found = cls(cards._cards, successions, revoked, root)
            return found._settled()
        except CardError as error:
            raise RosterError(f"roster {root}: {error}") from error
        except FileNotFoundError as error:
            raise RosterError(
                f"roster {root}: there is none; accept cards with `mpc-train roster add`, or name "
                "another roster or a folder of cards"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RosterError(f"roster {root}: {reason(error)}") from error

    def _settled(self) -> "Roster":
        """Each card that was succeeded replaced by its newest successor, and revoked ones left
        out."""
        cards = dict(self._cards)
        for name, chain in self._successions.items():
            known = cards.get(name)
            if known is not None and known.digest in {each.old.digest for each in chain}:
                cards[name] = chain[-1].new
        settled = {name: card for name, card in cards.items() if self._revocation(card) is None}
        return self._with(settled)

    def _revocation(self, card: Card) -> Revoked | None:
        """The revocation of this card, or of another one with a key of it."""
        gone = self._revoked.get(card.fingerprint)
        return gone or next(filter(None, map(self._revoked_keys.get, _key_digests(card))), None)

    def add(self, card: Card, *, replace: bool = False) -> "Roster":
        """This roster and `card`, which is verified first.

        Raises RosterError if the name is known with another card (unless `replace`; also one of the
        same keys: whoever stole them could prolong their lifetime), or if another name has one of
        the card's keys; RevokedError if the card was revoked or succeeded; CardError if it does not
        verify.
        """
        card.verify(f"card of {card.name}")
        self._refuse_withdrawn(card)
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
        successions = dict(self._successions)
        if known is None or known.digest != card.digest:
            # Fingerprints were compared: this is the beginning of another line.
            successions.pop(card.name, None)
        return self._with({**self._cards, card.name: card}, successions=successions)

    def _refuse_withdrawn(self, card: Card) -> None:
        gone = self._revocation(card)
        if gone is not None:
            same = gone.fingerprint == card.fingerprint
            which = (
                "" if same else f"has a key of the card of {gone.name} ({gone.fingerprint}), which "
            )
            raise RevokedError(
                f"the card of {card.name} ({card.fingerprint}) {which}was revoked on {gone.on} by "
                f"{'its owner' if gone.by == BY_OWNER else 'this node'}; it is not accepted again. "
                "Ask for a card with new keys"
            )
        for each in self._successions.get(card.name, ()):
            if each.old.digest == card.digest:
                raise RevokedError(
                    f"an old card of {card.name} ({card.fingerprint}), which was succeeded by "
                    f"{each.new.fingerprint}; nothing was changed"
                )

    def follow(self, chain: Sequence[Succession], moment: datetime) -> "Roster":
        """This roster with the newest card of `chain`, which begins at the known card or before it.

        1. The successions follow each other, and their signatures hold (they are verified values).
        2. A chain that ends at the known card, or at an older number, changes nothing: a replay.
        3. A known card that the chain does not contain has another successor: two holders of one
           key contradict each other, and nobody can know which one is the owner.
        4. From the known card on each old card must be valid now, and no card revoked.

        Raises RosterError, RevokedError, ExpiredError and CardError; then nothing is changed.
        """
        if not chain:
            return self
        name = chain[-1].name
        check_chain(chain, f"successions of {name}")  # 1
        known = self.card(name)
        newest = chain[-1].new
        if known.digest == newest.digest:  # 2
            return self
        due = [n for n, each in enumerate(chain) if each.old.digest == known.digest]
        if not due:
            if known.origin == newest.origin and newest.sequence < known.sequence:  # 2
                return self
            raise RosterError(  # 3
                f"{name} is known by the card {known.fingerprint}, which the successions that lead "
                f"to {newest.fingerprint} do not contain; ask {name}, compare fingerprints, and if "
                "it is right add the card with --replace"
            )
        found = self
        for each in chain[due[0] :]:  # 4
            for card in (each.old, each.new):
                found._refuse_withdrawn(card)
            usable_now(each, moment)
            found = found._succeeded(each)
        return found

    def own(self, card: Card, chain: Sequence[Succession]) -> "Roster":
        """This roster with this node's own card, which needs nobody's word; `chain` led to it."""
        successions = {**self._successions, card.name: tuple(chain)} if chain else self._successions
        return self._with({**self._cards, card.name: card}, successions=successions)

    def _succeeded(self, succession: Succession) -> "Roster":
        name = succession.name
        others = self.remove(name)._with({n: c for n, c in self._cards.items() if n != name})
        line = (*self._successions.get(name, ()), succession)[-MAX_CHAIN:]
        added = others.add(succession.new)
        return added._with(added._cards, successions={**self._successions, name: line})

    def revoke(self, card: Card, moment: datetime, *, by: str = BY_OPERATOR) -> "Roster":
        """This roster without `card`, which cannot be added again; it need not be known."""
        if len(self._revoked) >= MAX_REVOKED:
            raise RosterError(f"at most {MAX_REVOKED} revoked cards are kept")
        known = self._revoked.get(card.fingerprint)
        on, keys = lifetime.shown(moment), _key_digests(card)
        gone = known or Revoked(card.name, card.fingerprint, on, by, keys)
        without = self._with(self._cards, revoked={**self._revoked, card.fingerprint: gone})
        return without._settled()

    def revoke_by(self, statement: Revocation, moment: datetime) -> "Roster":
        """`revoke` by the owner's word, which is verified. Raises CardError."""
        statement.verify(f"revocation of {statement.card.name}")
        return self.revoke(statement.card, moment, by=BY_OWNER)

    def remove(self, name: str) -> "Roster":
        """This roster without `name`. Raises RosterError if it does not contain the name."""
        self.card(name)
        return self._with({known: card for known, card in self._cards.items() if known != name})

    def card(self, name: str) -> Card:
        """The card of `name`. Raises RosterError if there is none, RevokedError if it was
        revoked."""
        try:
            return self._cards[name]
        except KeyError:
            gone = [each for each in self._revoked.values() if each.name == name]
            if gone:
                raise RevokedError(
                    f"the card of {name} ({gone[-1].fingerprint}) was revoked on {gone[-1].on}; "
                    "ask for a card with new keys, compare fingerprints, and add it"
                ) from None
            raise RosterError(
                f"no card of {name!r} in the roster: get the card from its owner, compare "
                "fingerprints, and add it"
            ) from None

    def line(self, name: str) -> tuple[Card, ...]:
        """The cards with which signatures of `name` are verified: the present one, then those that
        it succeeded, the newest first; none that was revoked."""
        before = [each.old for each in reversed(self._successions.get(name, ()))]
        cards = [*([self._cards[name]] if name in self._cards else []), *before]
        return tuple(card for card in cards if self._revocation(card) is None)

    def signers(self) -> dict[str, Card]:
        """By name, the present card, whose `verifier` also accepts what an earlier card of the line
        signed, and whose `recipient_keys` are those of the line: for results, which may be older
        than the card or than a rotation during their run.

        Never for what has to be signed now: retired keys sign nothing new.
        """
        return {name: self.signer(card) for name, card in self._cards.items()}

    def signer(self, card: Card) -> Card:
        """One card of a line, with a `verifier` for all cards of the line."""
        others = tuple(each for each in self.line(card.name) if each.digest != card.digest)
        return _LineCard(
            **{each.name: getattr(card, each.name) for each in fields(Card)}, others=others
        )

    def successions(self, name: str) -> tuple[Succession, ...]:
        """Those that led to the present card of `name`, the oldest first."""
        chain = self._successions.get(name, ())
        known = self._cards.get(name)
        return chain if known and chain and chain[-1].new.digest == known.digest else ()

    @property
    def revoked(self) -> tuple[Revoked, ...]:
        """The cards that are not accepted any more, in order of their revocation."""
        return tuple(self._revoked.values())

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._cards)

    def subset(self, names: Iterable[str]) -> "Roster":
        """The roster with only these names. Raises RosterError if one is missing."""
        return self._with({name: self.card(name) for name in names})

    def current(self, moment: datetime) -> "Roster":
        """The roster without cards that are not valid at `moment`."""
        return self._with({card.name: card for card in self if _is_current(card, moment)})

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
        return roster_digest(card.digest for card in self)

    def to_text(self) -> str:
        """The roster as one TOML file."""
        lines = [f"version = {ROSTER_VERSION}"]
        for card in self:
            lines += ["", "[[card]]", f'fingerprint = "{card.fingerprint}"']
            lines += [f"{key} = {value}" for key, value in card.toml_items()]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the roster: one file for a path that ends in .toml, else a directory of cards.

        What was withdrawn is written first: after a crash in between, old cards count as succeeded
        or revoked already. A directory keeps the cards of names that this roster lacks: `forget`
        removes them. Raises RosterError.
        """
        root = Path(path)
        try:
            is_file = root.suffix == ".toml" and not root.is_dir()
            (root.parent if is_file else root).mkdir(parents=True, exist_ok=True)
            if self._successions or self._revoked:
                write_atomic(_withdrawn_of(root), self._withdrawn_text().encode(), 0o644)
            if is_file:
                write_atomic(root, self.to_text().encode(), 0o644)
                return
            places = _places(root)
            for card in self:
                place = places.get(card.name, root / f"{card.name}.card")
                text = card.to_text().encode()
                if not place.exists() or place.read_bytes() != text:
                    write_atomic(place, text, 0o644)
        except OSError as error:
            raise RosterError(f"roster {root}: cannot be written: {reason(error)}") from error

    @staticmethod
    def update(path: Path | str, change: "Callable[[Roster], Roster]") -> "Roster":
        """Load the roster at `path`, change it and write it, one process at a time.

        Returns the new roster. Cards of names that `change` removed are deleted. Raises RosterError
        and what `change` raises; then nothing is written.
        """
        root = Path(path)
        with _changing(root):
            before = Roster.load(root, missing_ok=True)
            after = change(before)
            if after._state() == before._state():
                return before
            after.save(root)
            for name in before.names:
                if name not in after:
                    _delete(root, name)
            return Roster.load(root)

    @staticmethod
    def forget(path: Path | str, name: str) -> Card:
        """Remove the card of `name` from the roster at `path` and return it. Raises RosterError."""
        gone: list[Card] = []

        def without(known: Roster) -> Roster:
            gone.append(known.card(name))
            return known.remove(name)

        Roster.load(path)  # it must be there
        Roster.update(path, without)
        return gone[0]

    def _state(self) -> tuple[object, ...]:
        return self._cards, self._successions, self._revoked

    def _withdrawn_text(self) -> str:
        lines = [
            "# Cards that were succeeded or revoked, and are therefore not accepted again.",
            f"version = {WITHDRAWN_VERSION}",
        ]
        for gone in self._revoked.values():
            lines += ["", "[[revoked]]"]
            texts = {**vars(gone), "keys": " ".join(gone.keys)}
            lines += [f'{key} = "{value}"' for key, value in texts.items()]
        for chain in self._successions.values():
            for each in chain:
                lines += ["", "[[succession]]", f"statement = '''\n{each.to_text()}'''"]
        return "\n".join(lines) + "\n"

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


def roster_digest(digests: Iterable[bytes]) -> bytes:
    """The digest of a roster whose cards, in order of their names, have these digests."""
    return sha256(pack(b"mpc-train/roster/1", *digests)).digest()


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


class _AnyOfLine(VerifyKeys):
    """The keys of one card; a signature by another card of its line is as good."""

    def __init__(self, card: Card, others: tuple[Card, ...]) -> None:
        super().__init__(card.signing_public)
        self._others = others

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Raises AuthenticationError unless both signatures over (purpose, message) hold."""
        try:
            super().verify(purpose, message, signature)
        except AuthenticationError:
            for card in self._others:
                with contextlib.suppress(AuthenticationError):
                    return card.verifier().verify(purpose, message, signature)
            raise


@dataclass(frozen=True)
class _LineCard(Card):
    others: tuple[Card, ...] = ()

    @property
    def recipient_keys(self) -> tuple[RecipientKey, ...]:
        return (self.recipient_key, *(card.recipient_key for card in self.others))

    def verifier(self) -> VerifyKeys:
        return _AnyOfLine(self, self.others)


def _is_current(card: Card, moment: datetime) -> bool:
    try:
        lifetime.check_peer(card, moment)
    except ExpiredError:
        return False
    return True


def _keys(card: Card) -> tuple[bytes, bytes, bytes, bytes]:
    return card.ed25519, card.mldsa65, card.recipient, card.curve


def _key_digests(card: Card) -> tuple[str, ...]:
    """Of the keys that a successor has to have anew (`statements`); not of its CURVE key."""
    return tuple(sha256(key).hexdigest() for key in (card.ed25519, card.mldsa65, card.recipient))


def _withdrawn_of(root: Path) -> Path:
    """The file beside the cards that says which ones were withdrawn."""
    if root.suffix == ".toml" and not root.is_dir():
        return root.with_name(f"{root.stem}.{WITHDRAWN}")
    return root / WITHDRAWN


@contextlib.contextmanager
def _changing(root: Path) -> Iterator[None]:
    """One process at a time changes a roster."""
    is_file = root.suffix == ".toml" and not root.is_dir()
    try:
        (root.parent if is_file else root).mkdir(parents=True, exist_ok=True)
        with locked(root.with_name(f".{root.name}.lock") if is_file else root / ".lock"):
            yield
    except OSError as error:
        raise RosterError(f"roster {root}: cannot be written: {reason(error)}") from error


def _places(root: Path) -> dict[str, Path]:
    """The file of each name in a directory: its name may differ from that in the card."""
    found = {}
    for path in sorted(root.glob("*.card")):
        with contextlib.suppress(CardError):
            found[Card.load(path).name] = path
    return found


def _delete(root: Path, name: str) -> None:
    """Delete the card of `name` from a directory; a file was written without it."""
    if root.is_dir() and name in (places := _places(root)):
        try:
            places[name].unlink()
        except OSError as error:
            raise RosterError(f"roster {root}: cannot be written: {reason(error)}") from error


def _read_withdrawn(root: Path) -> tuple[dict[str, tuple[Succession, ...]], dict[str, Revoked]]:
    """What `Roster._withdrawn_text` wrote; nothing where there is no such file."""
    path = _withdrawn_of(root)
    try:
        text = read_bounded(path, MAX_WITHDRAWN_BYTES).decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    try:
        return _parse_withdrawn(text, path)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RosterError(
            f"{path}: cannot be read: {type(error).__name__}; put back a copy of it. Without it "
            "revoked cards would be accepted again"
        ) from error


def _parse_withdrawn(
    text: str, path: Path
) -> tuple[dict[str, tuple[Succession, ...]], dict[str, Revoked]]:
    table = tomllib.loads(text)
    if table.pop("version") != WITHDRAWN_VERSION or set(table) - {"revoked", "succession"}:
        raise RosterError(f"{path}: is of another version")
    revoked = {}
    for entry in table.get("revoked", []):
        texts = {key: str(value) for key, value in entry.items()}
        gone = Revoked(**{**texts, "keys": tuple(texts["keys"].split())})  # type: ignore[arg-type]
        if gone.by not in (BY_OWNER, BY_OPERATOR):
            raise ValueError("revoked by nobody")
        revoked[gone.fingerprint] = gone
    chains: dict[str, tuple[Succession, ...]] = {}
    for entry in table.get("succession", []):
        each = Succession.from_text(entry["statement"], str(path))
        chains[each.name] = (*chains.get(each.name, ()), each)
    for name, chain in chains.items():
        check_chain(chain, f"{path}, successions of {name}")
    return chains, revoked


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
