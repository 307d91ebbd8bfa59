"""What the owner of an identity says about it later: a successor takes over, or nobody may use it.

Both are TOML files that hold whole cards, so that whoever knows one of them can verify the rest,
and both are signed over length-prefixed fields:

    succession   both keys of the old card and both of the new one sign (name, digest of the old,
                 digest of the new, sequence of the new)
    revocation   both keys of the card sign (name, digest, when)

A succession is believed by whoever believes its old card, at a time when the old card is valid. So
the new keys are as trustworthy as the old ones were: whoever has stolen keys can make a successor
as well, which is what revocations and the comparison of fingerprints are for.
"""

import base64
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from parties.errors import CardError, ExpiredError
from parties.files import read_bounded
from parties.keys import lifetime
from parties.keys.identity import Card, decode_base64, reason
from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.sealing.signatures import SIGNATURE_BYTES, Signer

SUCCESSION_VERSION = REVOCATION_VERSION = 1
MAX_STATEMENT_BYTES = 1 << 16
"""A succession has about 33 kB."""

MAX_CHAIN = 8
"""How many successions an identity carries along: who has missed more compares fingerprints."""

_SUCCESSION, _REVOCATION = "succession/1", "revocation/1"


class Identity(Protocol):
    """A card and what signs under it: a vault."""

    @property
    def card(self) -> Card: ...

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""


@dataclass(frozen=True)
class Succession:
    """`new` takes the place of `old`. Build it with `sign` or `from_text`: both verify it."""

    old: Card
    new: Card
    old_signature: bytes = field(repr=False)
    new_signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, old: Identity, new_card: Card, new: Signer) -> "Succession":
        """The statement of both holders of keys. Raises CardError if `new_card` cannot follow."""
        message = _succession(old.card, new_card)
        signatures = (each.sign(_SUCCESSION, message) for each in (old, new))
        made = cls(old.card, new_card, *signatures)
        made.verify("succession")
        return made

    @property
    def name(self) -> str:
        return self.new.name

    def verify(self, source: str) -> None:
        """Raise CardError unless the new card follows the old one and all signatures hold.

        1. Both cards verify; the name and the line are the same, the number is the next.
        2. Signing and sealing keys are new: whoever has the old ones does not have these.
        3. The new card was issued while the old one was valid.
        4. The holders of both signed that.
        """
        old, new = self.old, self.new
        for card in (old, new):  # 1
            card.verify(source)
        if (new.name, new.origin, new.sequence) != (old.name, old.origin, old.sequence + 1):
            raise CardError(
                f"{source}: card {new.sequence} of {new.name} does not follow card {old.sequence} "
                f"of {old.name}"
            )
        if {old.ed25519, old.mldsa65, old.recipient} & {
            new.ed25519,
            new.mldsa65,
            new.recipient,
        }:  # 2
            raise CardError(f"{source}: the successor of {old.name} has a key of its predecessor")
        issued = lifetime.read_moment(new.issued, "issued", source)
        start = lifetime.read_moment(old.issued, "issued", source)
        if not start <= issued < lifetime.end_of(old):  # 3
            raise CardError(
                f"{source}: the successor of {old.name} was issued on {new.issued}, when the card "
                f"of {old.issued} to {old.expires} was not valid"
            )
        message = _succession(old, new)
        for card, signature in ((old, self.old_signature), (new, self.new_signature)):  # 4
            try:
                card.verifier().verify(_SUCCESSION, message, signature)
            except AuthenticationError as error:
                raise CardError(
                    f"{source}: card {card.sequence} of {card.name}: {error}"
                ) from error

    def to_text(self) -> str:
        """The succession as TOML."""
        lines = [
            f"# mpc-train succession of {self.name}: {self.old.fingerprint}",
            f"#   is succeeded by {self.new.fingerprint}",
            f"version = {SUCCESSION_VERSION}",
            f'old_signature = "{_text(self.old_signature)}"',
            f'new_signature = "{_text(self.new_signature)}"',
        ]
        for title, card in (("old", self.old), ("new", self.new)):
            lines += ["", f"[{title}]", *(f"{key} = {value}" for key, value in card.toml_items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str, source: str = "succession") -> "Succession":
        """Parse and verify a succession. Raises CardError, which names `source`."""
        table = _parsed(text, source, ("old_signature", "new_signature"), ("old", "new"))
        made = cls(
            Card.from_table(table["old"], source),
            Card.from_table(table["new"], source),
            _signature(table, "old_signature", source),
            _signature(table, "new_signature", source),
        )
        made.verify(source)
        return made

    @classmethod
    def load(cls, path: Path | str) -> "Succession":
        """Read and verify the succession in the file `path`. Raises CardError, which names it."""
        return cls.from_text(_read(path, "a succession"), str(path))


@dataclass(frozen=True)
class Revocation:
    """The owner of a card says that nobody may accept it. Build it with `sign` or `from_text`."""

    card: Card
    made: str
    signature: bytes = field(repr=False)

    @classmethod
    def sign(cls, identity: Identity, moment: datetime) -> "Revocation":
        """The statement about this identity's present card; it may be kept until it is needed."""
        made = lifetime.shown(moment)
        message = _revocation(identity.card, made)
        return cls(identity.card, made, identity.sign(_REVOCATION, message))

    def verify(self, source: str) -> None:
        """Raise CardError unless the card's own keys signed this. A date in the future is no reason
        to go on accepting a card."""
        self.card.verify(source)
        lifetime.read_moment(self.made, "made", source)
        try:
            message = _revocation(self.card, self.made)
            self.card.verifier().verify(_REVOCATION, message, self.signature)
        except AuthenticationError as error:
            raise CardError(f"{source}: {self.card.name} did not sign it: {error}") from error

    def to_text(self) -> str:
        """The revocation as TOML."""
        lines = [
            f"# mpc-train revocation of {self.card.name}, {self.card.fingerprint}",
            f"version = {REVOCATION_VERSION}",
            f'made = "{self.made}"',
            f'signature = "{_text(self.signature)}"',
            *("", "[card]", *(f"{key} = {value}" for key, value in self.card.toml_items())),
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str, source: str = "revocation") -> "Revocation":
        """Parse and verify a revocation. Raises CardError, which names `source`."""
        table = _parsed(text, source, ("made", "signature"), ("card",))
        card = Card.from_table(table["card"], source)
        made = cls(card, str(table["made"]), _signature(table, "signature", source))
        made.verify(source)
        return made

    @classmethod
    def load(cls, path: Path | str) -> "Revocation":
        """Read and verify the revocation in the file `path`. Raises CardError, which names it."""
        return cls.from_text(_read(path, "a revocation"), str(path))


def is_succession(path: Path | str) -> bool:
    """Whether a file says that it is a succession, and not a card."""
    try:
        with open(path, "rb") as stream:
            return b"\nnew_signature" in stream.read(MAX_STATEMENT_BYTES)
    except OSError:
        return False


def check_chain(chain: Sequence[Succession], source: str) -> None:
    """Raise CardError unless each succession begins where the one before it ends."""
    for before, after in itertools.pairwise(chain):
        if before.new.digest != after.old.digest:
            raise CardError(f"{source}: the successions of {after.name} do not follow each other")


def usable_now(succession: Succession, moment: datetime) -> None:
    """Raise ExpiredError unless the signature of the old card is believed at `moment`.

    A key past its end signs nothing any more, whatever date it writes: otherwise whoever finds it
    years later could still make a successor.
    """
    try:
        lifetime.check_peer(succession.old, moment)
    except ExpiredError as error:
        raise ExpiredError(
            f"the successor of {succession.name} is signed by a card that is not valid: {error}; "
            "compare fingerprints, and add the new card with --replace"
        ) from error
    lifetime.check_peer(succession.new, moment)


def _succession(old: Card, new: Card) -> bytes:
    return pack(
        b"mpc-train/succession",
        SUCCESSION_VERSION.to_bytes(4, "big"),
        new.name.encode(),
        old.digest,
        new.digest,
        new.sequence.to_bytes(4, "big"),
    )


def _revocation(card: Card, made: str) -> bytes:
    return pack(
        b"mpc-train/revocation",
        REVOCATION_VERSION.to_bytes(4, "big"),
        card.name.encode(),
        card.digest,
        made.encode(),
    )


def _parsed(
    text: str, source: str, texts: tuple[str, ...], tables: tuple[str, ...]
) -> Mapping[str, dict[str, object]]:
    """Exactly these keys, with these types. Raises CardError."""
    if len(text) > MAX_STATEMENT_BYTES:
        raise CardError(f"{source}: longer than {MAX_STATEMENT_BYTES} characters")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"{source}: cannot be read: {error}") from error
    due = {"version": int, **dict.fromkeys(texts, str), **dict.fromkeys(tables, dict)}
    faults = [f"{name} is missing" for name in due if name not in table]
    faults += [f"{name!r} is unknown" for name in table if name not in due]
    faults += [f"{name} has another type" for name in due if type(table.get(name)) is not due[name]]
    if faults:
        raise CardError(f"{source}: {', '.join(faults)}")
    if table["version"] != SUCCESSION_VERSION:
        raise CardError(f"{source}: a statement of version {table['version']}, not 1")
    return table


def _signature(table: Mapping[str, object], name: str, source: str) -> bytes:
    signature = decode_base64(str(table[name]), name, source)
    if len(signature) != SIGNATURE_BYTES:
        raise CardError(f"{source}: {name} has {len(signature)} bytes, not {SIGNATURE_BYTES}")
    return signature


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(path: Path | str, what: str) -> str:
    try:
        return read_bounded(path, MAX_STATEMENT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: cannot be read as {what}: {reason(error)}") from error
