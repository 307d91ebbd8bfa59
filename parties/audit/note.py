"""Signed notes (C2SP signed-note): a text, and lines with signatures under it.

    text, which ends in a newline
    (empty line)
    — NAME base64(key id ‖ signature)

The key id is the first 4 bytes of SHA-256(name ‖ newline ‖ signature type ‖ public key): it says
which key to try, and proves nothing. Signatures of keys that a verifier does not know are ignored.
"""

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256

from parties.errors import AuditTamperedError

KEY_ID_BYTES = 4
MAX_LINES = 64
MAX_NOTE_BYTES = 1 << 18
"""64 witnesses with a signature line of ML-DSA-65 are more than a note has."""


@dataclass(frozen=True)
class SignatureLine:
    name: str
    key_id: bytes
    signature: bytes

    def text(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True)
class Note:
    """text: with its last newline, which the signatures cover."""

    text: str
    lines: tuple[SignatureLine, ...]

    def to_bytes(self) -> bytes:
        return f"{self.text}\n{''.join(line.text() for line in self.lines)}".encode()

    def signatures(self, name: str, key_id: bytes) -> list[bytes]:
        """What stands under this key's name and id."""
        return [each.signature for each in self.lines if (each.name, each.key_id) == (name, key_id)]


def key_id(name: str, kind: bytes, public: bytes) -> bytes:
    """kind: the signature type, one byte, or 0xff and a longer name."""
    return sha256(name.encode() + b"\n" + kind + public).digest()[:KEY_ID_BYTES]


def read_note(data: bytes) -> Note:
    """Raises AuditTamperedError for what is not a note; no signature is verified."""
    if len(data) > MAX_NOTE_BYTES:
        raise AuditTamperedError("a signed note is too long")
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise AuditTamperedError("a signed note is not UTF-8") from error
    if any(ord(letter) < 0x20 and letter != "\n" for letter in whole):
        raise AuditTamperedError("a signed note has a control character")
    text, sign, below = whole.rpartition("\n\n")
    if not sign or not text or not below.endswith("\n"):
        raise AuditTamperedError("a signed note has a text, an empty line and signatures")
    lines = below.removesuffix("\n").split("\n")
    if len(lines) > MAX_LINES:
        raise AuditTamperedError(f"a signed note has more than {MAX_LINES} signatures")
    return Note(text + "\n", tuple(map(_line, lines)))


def _line(line: str) -> SignatureLine:
    words = line.split(" ")
    if len(words) != 3 or words[0] != "—" or not words[1] or "+" in words[1]:
        raise AuditTamperedError("a signature line of a note is malformed")
    if any(letter.isspace() for letter in words[1]):
        raise AuditTamperedError("the name in a signature line has a space")
    signature = strict_base64(words[2], "a signature of a note")
    if len(signature) <= KEY_ID_BYTES:
        raise AuditTamperedError("a signature line of a note has no signature")
    return SignatureLine(words[1], signature[:KEY_ID_BYTES], signature[KEY_ID_BYTES:])


def strict_base64(text: str, what: str) -> bytes:
    """Standard base64 with padding, in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AuditTamperedError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise AuditTamperedError(f"{what} is not canonical base64")
    return data
