"""Checkpoints (C2SP tlog-checkpoint): a signed note that says how long a log is, and its root.

    mpc-train-audit/NAME/16 digits that stand for its name and verification keys
    number of entries
    base64 of the root

Two signature lines of the node's identity, under the origin's name: Ed25519 of the published type
0x01, so that other tools can read it, and ML-DSA-65 of a type of our own. Here both have to hold.
A witness adds two lines of its own identity: a cosignature (C2SP tlog-cosignature, type 0x04), and
the same statement signed with ML-DSA-65.

A text begins with a printable character and all else that an identity signs with a zero byte (the
length of a field), so that no signature of the one kind serves as one of the other.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from parties.audit.merkle import HASH_BYTES
from parties.audit.note import Note, SignatureLine, key_id, read_note, strict_base64
from parties.errors import AuditTamperedError
from parties.keys.identity import Card
from parties.keys.vault import Vault
from protocols.errors import AuthenticationError
from protocols.names import NAME

ED25519 = b"\x01"
MLDSA65 = b"\xffmpc-train/ML-DSA-65"
COSIGNATURE = b"\x04"
COSIGNATURE_MLDSA65 = b"\xffmpc-train/cosignature/ML-DSA-65"
MAX_CHECKPOINT_BYTES = 1 << 14
"""As a node sends it to others: two signature lines, about 5 kB."""

_ORIGIN = "mpc-train-audit"
_LINE = re.compile(r"[0-9a-f]{16}\Z")
_TIME_BYTES = 8


@dataclass(frozen=True)
class Checkpoint:
    """What a note says; whose signatures hold is another question."""

    origin: str
    size: int
    root: bytes
    note: Note

    @property
    def node(self) -> str:
        """The name in the origin."""
        return self.origin.split("/")[1]


def origin_of(card: Card) -> str:
    """A log belongs to a line of identities: it goes on when one succeeds another, and a node that
    begins a new line begins a new log."""
    return f"{_ORIGIN}/{card.name}/{card.origin.hex()[:16]}"


def check_origin(origin: str) -> str:
    """Return it; AuditTamperedError for one that is not a log's."""
    start, *rest = origin.split("/")
    if start != _ORIGIN or len(rest) != 2 or not NAME.match(rest[0]) or not _LINE.match(rest[1]):
        raise AuditTamperedError("the origin of a log is malformed")
    return origin


def sign_checkpoint(identity: Vault, size: int, root: bytes) -> bytes:
    """The note of this identity's log."""
    card = identity.card
    origin = origin_of(card)
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    return Note(text, _signed(identity, origin, text.encode(), (ED25519, MLDSA65), b"")).to_bytes()


def read_checkpoint(data: bytes) -> Checkpoint:
    """Raises AuditTamperedError for what is not a checkpoint; no signature is verified."""
    note = read_note(data)
    lines = note.text.removesuffix("\n").split("\n")
    if len(lines) != 3:
        raise AuditTamperedError("a checkpoint has three lines")
    origin, size, root = lines
    if not (size.isascii() and size.isdecimal()) or str(int(size[:20])) != size:
        raise AuditTamperedError("a checkpoint's size is malformed")
    digest = strict_base64(root, "a checkpoint's root")
    if len(digest) != HASH_BYTES or int(size) >= 1 << 62:
        raise AuditTamperedError("a checkpoint's root or size is malformed")
    return Checkpoint(check_origin(origin), int(size), digest, note)


def verify_checkpoint(data: bytes, card: Card) -> Checkpoint:
    """A checkpoint of the log of `card`; AuditTamperedError unless both its signatures hold."""
    found = read_checkpoint(data)
    if found.origin != origin_of(card):
        raise AuditTamperedError(
            f"a checkpoint of the log {found.origin}, not of {origin_of(card)}; is the card the "
            "right one?"
        )
    try:
        _verified(found.note, card, found.origin, (ED25519, MLDSA65), cosigned=False)
    except AuthenticationError as error:
        raise AuditTamperedError(f"a checkpoint of {card.name}: {error}") from error
    return found


def verify_by_line(data: bytes, cards: Sequence[Card]) -> tuple[Checkpoint, Card]:
    """A checkpoint that one of these identities of a line has signed, and which one.

    AuditTamperedError as of `verify_checkpoint`, with what the first card says about it.
    """
    first: AuditTamperedError | None = None
    for card in cards:
        try:
            return verify_checkpoint(data, card), card
        except AuditTamperedError as error:
            first = first or error
    raise first or AuditTamperedError("a checkpoint without a card to verify it")


def cosign(data: bytes, identity: Vault, moment: int) -> bytes:
    """The checkpoint with two more lines: `identity` has seen it at `moment`, a POSIX time, and
    found it to go on from what it saw before."""
    note = read_checkpoint(data).note
    statement = _statement(moment, note.text)
    name = identity.card.name
    kinds = (COSIGNATURE, COSIGNATURE_MLDSA65)
    lines = _signed(identity, name, statement, kinds, moment.to_bytes(_TIME_BYTES, "big"))
    ours = {(line.name, line.key_id) for line in lines}
    kept = tuple(line for line in note.lines if (line.name, line.key_id) not in ours)
    return Note(note.text, (*kept, *lines)).to_bytes()


def verify_cosignature(checkpoint: Checkpoint, card: Card) -> int:
    """When the witness of `card` saw it, a POSIX time; AuditTamperedError where it did not sign."""
    try:
        return _verified(
            checkpoint.note, card, card.name, (COSIGNATURE, COSIGNATURE_MLDSA65), cosigned=True
        )
    except AuthenticationError as error:
        raise AuditTamperedError(f"the witness {card.name}: {error}") from error


def _statement(moment: int, text: str) -> bytes:
    return f"cosignature/v1\ntime {moment}\n{text}".encode()


def _signed(
    identity: Vault, name: str, message: bytes, kinds: tuple[bytes, bytes], before: bytes
) -> tuple[SignatureLine, ...]:
    card = identity.card
    keys = (card.ed25519, card.mldsa65)
    return tuple(
        SignatureLine(name, key_id(name, kind, public), before + signature)
        for kind, public, signature in zip(kinds, keys, identity.sign_text(message), strict=True)
    )


def _verified(
    note: Note, card: Card, name: str, kinds: tuple[bytes, bytes], *, cosigned: bool
) -> int:
    """Both signatures of a card hold; the time that stands before those of a witness, else 0."""
    found = []
    for kind, public in zip(kinds, (card.ed25519, card.mldsa65), strict=True):
        signatures = note.signatures(name, key_id(name, kind, public))
        if len(signatures) != 1:
            raise AuthenticationError(f"{len(signatures)} signatures of one kind, expected 1")
        found.append(signatures[0])
    moments = {each[:_TIME_BYTES] for each in found} if cosigned else {bytes(_TIME_BYTES)}
    if len(moments) != 1:
        raise AuthenticationError("its two signatures have different times")
    moment = int.from_bytes(moments.pop(), "big")
    message = _statement(moment, note.text) if cosigned else note.text.encode()
    start = _TIME_BYTES if cosigned else 0
    card.verifier().verify_text(message, found[0][start:], found[1][start:])
    return moment
