"""A node's identity: its keys, and the public card by which the others know it.

A card carries the node's name, its lifetime (`lifetime`) and its four public keys (Ed25519 and
ML-DSA-65 to verify, a recipient key of one of several kinds to seal to, the CURVE key of its
connections), signed by its own two signing keys. The self-signature shows that the keys belong
together and that nothing was altered on the way; only a comparison of fingerprints over another
channel than the card's shows that it is the *right organisation's* card.

An identity can be replaced by one with new keys (`succession`). Its card then has the next
`sequence` number and the same `origin`: the digest of the first identity of the line, under which
the node's audit log goes on.

Cards are TOML, so that people can read them and a roster can hold several. Signature and digest
cover the canonical list of fields, not the text, so reformatting does no harm.
"""

import base64
import binascii
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from parties.errors import CardError, IdentityError
from parties.files import read_bounded
from parties.keys import lifetime
from parties.keys.keyfile import MAGIC
from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.names import NAME
from protocols.sealing import hpke, signatures
from protocols.sealing.recipient_keys import (
    DEFAULT_KIND,
    HYBRID,
    KINDS,
    RecipientKey,
    generate_key,
    private_key,
)
from protocols.sealing.session import HASH_BYTES, identity_digest
from protocols.sealing.signatures import SigningKeys, VerifyKeys

CARD_VERSION = 3
CURVE_BYTES = 32
PRIVATE_BYTES = signatures.PRIVATE_BYTES + hpke.PRIVATE_BYTES + CURVE_BYTES
"""Of an identity whose recipient key is of the default kind."""
MAX_CARD_BYTES = 1 << 16
"""A card has about 11 kB; a file longer than this is not a card."""

MAX_SEQUENCE = (1 << 32) - 1

_PURPOSE = "card/3"
_BYTES: dict[str, int | None] = {
    "origin": HASH_BYTES,
    "ed25519": signatures.ED25519_PUBLIC_BYTES,
    "mldsa65": signatures.MLDSA65_PUBLIC_BYTES,
    "recipient": None,
    "curve": CURVE_BYTES,
    "signature": signatures.SIGNATURE_BYTES,
}
_TEXTS = ("name", "issued", "expires", "recipient_kind")
_NUMBERS = ("version", "sequence")
_FIELDS = (*_NUMBERS, *_TEXTS, *_BYTES)


def check_name(name: str) -> str:
    """Return `name` if it can name a node. Raises IdentityError.

    Names become file names and log fields. Only letters, digits and hyphens are allowed, so that no
    name can leave its directory or be mistaken for an option.
    """
    if not isinstance(name, str) or not NAME.match(name):
        raise IdentityError(
            f"{name!r} cannot name a node: use 1 to 63 of a-z, 0-9 and '-', and do not begin with "
            "'-'"
        )
    return name


def fingerprint_of(digest: bytes) -> str:
    """A card's digest in groups of 4 hexadecimal digits."""
    digits = digest.hex()
    return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))


@dataclass(frozen=True)
class Card:
    """A node's public card. Build it with `from_text` or `IdentityKeys.card`: both verify it."""

    name: str
    sequence: int
    """0 for the first identity of a line, one more for each successor."""
    issued: str
    expires: str
    """From when to when the card is valid, UTC."""
    origin: bytes = field(repr=False)
    """Name and verification keys of the line's first identity, as `identity_digest`."""
    ed25519: bytes = field(repr=False)
    mldsa65: bytes = field(repr=False)
    recipient_kind: str
    recipient: bytes = field(repr=False)
    """The key that results are sealed to, and its kind (`recipient_keys`)."""
    curve: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def signing_public(self) -> bytes:
        """Both verification keys, in the handshake's form."""
        return self.ed25519 + self.mldsa65

    @property
    def recipient_key(self) -> RecipientKey:
        """The key that results are sealed to."""
        return RecipientKey(self.recipient_kind, self.recipient)

    @property
    def recipient_keys(self) -> tuple[RecipientKey, ...]:
        """The keys that results may be sealed to, the present one first."""
        return (self.recipient_key,)

    @property
    def canonical(self) -> bytes:
        """The bytes that are signed and hashed: every field except the signature."""
        return pack(
            b"mpc-train/card",
            CARD_VERSION.to_bytes(4, "big"),
            self.name.encode(),
            self.sequence.to_bytes(4, "big"),
            self.issued.encode(),
            self.expires.encode(),
            self.origin,
            self.ed25519,
            self.mldsa65,
            self.recipient_kind.encode(),
            self.recipient,
            self.curve,
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical card."""
        return sha256(self.canonical).digest()

    @property
    def fingerprint(self) -> str:
        """The digest in the form that people compare: 16 groups of 4 hexadecimal digits."""
        return fingerprint_of(self.digest)

    def verifier(self) -> VerifyKeys:
        """The keys that verify this node's signatures."""
        return VerifyKeys(self.signing_public)

    def verify(self, source: str = "card") -> None:
        """Raise CardError unless name, dates, sizes and keys are valid and both signatures verify.

        Whether the card is valid *now* is another question: see `lifetime`.
        """
        if not NAME.match(self.name):
            raise CardError(f"{source}: {self.name!r} cannot name a node")
        lifetime.check_span(self, source)
        if not 0 <= self.sequence <= MAX_SEQUENCE:
            raise CardError(f"{source}: sequence must be 0 to {MAX_SEQUENCE}")
        for name, size in _BYTES.items():
            if size is not None and len(getattr(self, name)) != size:
                raise CardError(
                    f"{source}: {name} has {len(getattr(self, name))} bytes, not {size}"
                )
        first = identity_digest(self.name, self.signing_public)
        if (self.sequence == 0) != (self.origin == first):
            raise CardError(f"{source}: origin is not that of identity {self.sequence} of a line")
        try:
            self.verifier().verify(_PURPOSE, self.canonical, self.signature)
            self.recipient_key.check()
        except AuthenticationError as error:
            raise CardError(f"{source}: the card of {self.name} is not valid: {error}") from error

    def to_text(self) -> str:
        """The card as TOML, with the fingerprint in a comment."""
        lines = [
            f"# mpc-train card of {self.name}",
            f"# fingerprint {self.fingerprint}",
            *(f"{key} = {value}" for key, value in self.toml_items()),
        ]
        return "\n".join(lines) + "\n"

    def toml_items(self) -> list[tuple[str, str]]:
        """The keys and TOML values of the card, in order."""
        items = [
            ("version", str(CARD_VERSION)),
            ("name", f'"{self.name}"'),
            ("sequence", str(self.sequence)),
            ("issued", f'"{self.issued}"'),
            ("expires", f'"{self.expires}"'),
            ("recipient_kind", f'"{self.recipient_kind}"'),
        ]
        for name in _BYTES:
            items.append((name, f'"{base64.b64encode(getattr(self, name)).decode()}"'))
        return items

    @classmethod
    def from_text(cls, text: str, source: str = "card") -> "Card":
        """Parse and verify a card. Raises CardError, which names `source`."""
        if len(text) > MAX_CARD_BYTES:
            raise CardError(f"{source}: longer than {MAX_CARD_BYTES} characters, not a card")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise CardError(f"{source}: not a card: {error}") from error
        return cls.from_table(table, source)

    @classmethod
    def from_table(cls, table: Mapping[str, object], source: str = "card") -> "Card":
        """Check and verify a parsed card: exactly the card's keys, each with its type. Raises
        CardError."""
        # Other versions have other fields.
        if type(table.get("version")) is int and table["version"] != CARD_VERSION:
            raise CardError(
                f"{source}: a card of version {table['version']}, not {CARD_VERSION}; ask its "
                "owner for one of this release"
            )
        if not table.keys() & set(_FIELDS):
            raise CardError(f"{source}: not a card; `mpc-train identity card` prints one")
        unknown = sorted(set(table) - set(_FIELDS))
        missing = [name for name in _FIELDS if name not in table]
        if missing or unknown:
            what = [f"{name} is missing" for name in missing]
            what += [f"{name!r} is unknown" for name in unknown]
            raise CardError(f"{source}: {', '.join(what)}")
        if type(table["version"]) is not int:
            raise CardError(f"{source}: a card of version {table['version']!r}, not {CARD_VERSION}")
        sequence = table["sequence"]
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            raise CardError(f"{source}: sequence must be a number")
        texts: dict[str, str] = {}
        for name in (*_TEXTS, *_BYTES):
            value = table[name]
            if not isinstance(value, str):
                raise CardError(f"{source}: {name} must be a string")
            texts[name] = value
        keys = {name: decode_base64(texts[name], name, source) for name in _BYTES}
        card = cls(
            name=texts["name"],
            sequence=sequence,
            issued=texts["issued"],
            expires=texts["expires"],
            recipient_kind=texts["recipient_kind"],
            **keys,
        )
        card.verify(source)
        return card

    @classmethod
    def load(cls, path: Path | str) -> "Card":
        """Read and verify the card in the file `path`. Raises CardError, which names the file."""
        try:
            content = read_bounded(path, MAX_CARD_BYTES)
            if content.startswith(MAGIC):
                raise CardError(
                    f"{path}: an identity, not a card: it holds private keys, so never give it "
                    f"away; use the card beside it, {Path(path).with_suffix('.card').name}"
                )
            # Some editors put a byte-order mark before the first line.
            text = content.decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise CardError(f"{path}: cannot be read as a card: {reason(error)}") from error
        return cls.from_text(text, str(path))


class IdentityKeys:
    """The private half of an identity, in memory: 64 bytes of signing keys, the recipient key, 32
    bytes of the CURVE key; 192 bytes with a recipient key of the default kind."""

    def __init__(self, private: bytes, kind: str = DEFAULT_KIND) -> None:
        sign_end, curve_start = signatures.PRIVATE_BYTES, len(private) - CURVE_BYTES
        self.kind = kind
        self._private = bytes(private)
        try:
            self.recipient = private_key(kind, self._private[sign_end:curve_start])
        except AuthenticationError as error:
            raise IdentityError(f"not the private bytes of an identity: {error}") from error
        self.signing = SigningKeys(self._private[:sign_end])
        self.curve_secret: bytes = self._private[curve_start:]
        # A CURVE key pair is an X25519 key pair; its Z85 encoding belongs to the transport.
        curve = X25519PrivateKey.from_private_bytes(self.curve_secret)
        self.curve_public: bytes = curve.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, kind: str = DEFAULT_KIND) -> "IdentityKeys":
        """Fresh keys from the operating system's randomness; kind: of the recipient key.

        Raises IdentityError for a kind that does not exist.
        """
        if kind not in KINDS:
            raise IdentityError(f"{kind!r} is not a kind of recipient key: use {', '.join(KINDS)}")
        if kind == HYBRID:
            return cls(os.urandom(PRIVATE_BYTES), kind)
        signing, curve = os.urandom(signatures.PRIVATE_BYTES), os.urandom(CURVE_BYTES)
        return cls(signing + generate_key(kind).private_bytes() + curve, kind)

    def private_bytes(self) -> bytes:
        """The secret bytes, only for the vault that encrypts them."""
        return self._private

    def card(
        self,
        name: str,
        issued: datetime | None = None,
        days: int = lifetime.DEFAULT_DAYS,
        after: Card | None = None,
    ) -> Card:
        """Sign a card for these keys, valid for `days` from `issued` (default: now).

        after: the card of the identity that these keys succeed; None: the first of its line.
        """
        check_name(name)
        moment = issued or lifetime.now()
        unsigned = Card(
            name=name,
            sequence=0 if after is None else after.sequence + 1,
            issued=lifetime.shown(moment),
            expires=lifetime.shown(moment + timedelta(days=lifetime.check_days(days))),
            origin=identity_digest(name, self.signing.public) if after is None else after.origin,
            ed25519=self.signing.public[: signatures.ED25519_PUBLIC_BYTES],
            mldsa65=self.signing.public[signatures.ED25519_PUBLIC_BYTES :],
            recipient_kind=self.kind,
            recipient=self.recipient.public,
            curve=self.curve_public,
            signature=b"",
        )
        signature = self.signing.sign(_PURPOSE, unsigned.canonical)
        return replace(unsigned, signature=signature)

    def matches(self, card: Card) -> bool:
        """Whether `card` contains exactly these public keys."""
        ours = self.signing.public, self.kind, self.recipient.public, self.curve_public
        return ours == (card.signing_public, card.recipient_kind, card.recipient, card.curve)

    def __repr__(self) -> str:
        return "IdentityKeys(private)"


def reason(error: Exception) -> str:
    """The text of an OSError or ValueError, without the path, which the caller names already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def decode_base64(text: str, name: str, source: str) -> bytes:
    """The bytes of a field; CardError for anything but their one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CardError(f"{source}: {name} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise CardError(f"{source}: {name} is not canonical base64")
    return data
