"""The uses of a node's private keys: to sign, to open what is sealed to it, and to connect.

A vault never hands out a signing or recipient key, so a key-management service can replace the
file. `FileVault` keeps the keys encrypted under a passphrase. When it is open, the keys are in this
process's memory, and anybody who can read that memory has them.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from parties.errors import CardError, IdentityError, PassphraseError
from parties.files import private_directory, read_bounded, read_private, write_atomic
from parties.keys.identity import Card, IdentityKeys, check_name, reason
from parties.keys.keyfile import MAX_FILE_BYTES, open_secret, read_header, seal_secret
from parties.keys.lifetime import DEFAULT_DAYS
from protocols.sealing.recipient_keys import DEFAULT_KIND


class Vault(Protocol):
    """A node's private keys, behind the three operations that use them."""

    @property
    def card(self) -> Card:
        """The public card of these keys."""

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is; see `signatures.SigningKeys.sign_text`."""

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to the card's recipient key. Raises AuthenticationError."""

    def curve_secret(self) -> bytes:
        """The 32-byte secret of the CURVE connections, which the transport needs in raw form."""


class MemoryVault:
    """A vault of keys in memory: those of an opened file, or of a node in a test."""

    def __init__(self, keys: IdentityKeys, card: Card) -> None:
        if not keys.matches(card):
            raise IdentityError(f"the keys are not those of the card of {card.name}")
        self._keys = keys
        self._card = card

    @classmethod
    def generate(cls, name: str, kind: str = DEFAULT_KIND) -> "MemoryVault":
        """A fresh identity that is never written down."""
        keys = IdentityKeys.generate(kind)
        return cls(keys, keys.card(name))

    @property
    def card(self) -> Card:
        return self._card

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""
        return self._keys.signing.sign(purpose, message)

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is."""
        return self._keys.signing.sign_text(text)

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to the card's recipient key. Raises AuthenticationError."""
        return self._keys.recipient.open(info, ciphertext)

    def curve_secret(self) -> bytes:
        """The 32-byte secret of the CURVE connections."""
        return self._keys.curve_secret

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._card.name}, {self._card.fingerprint[:9]}…)"


class FileVault(MemoryVault):
    """`<name>.identity`, encrypted under a passphrase, with `<name>.card` beside it."""

    @classmethod
    def create(
        cls,
        home: Path | str,
        name: str,
        passphrase: bytes,
        *,
        issued: datetime | None = None,
        days: int = DEFAULT_DAYS,
        kind: str = DEFAULT_KIND,
    ) -> "FileVault":
        """Make a new identity and write both files; `home` is made if it is missing. kind: of the
        recipient key.

        The identity file gets its name when it is complete on disk, and never replaces another:
        without the old identity nobody can open what was sealed to it. Raises IdentityError and
        PassphraseError.
        """
        path = identity_path(home, name)
        keys = IdentityKeys.generate(kind)
        card = keys.card(name, issued, days)
        data = seal_secret(keys.private_bytes(), passphrase, card.to_text().encode())
        try:
            private_directory(path.parent)
            write_atomic(path, data, 0o600, replace=False)
            write_atomic(card_path(home, name), card.to_text().encode(), 0o644)
        except FileExistsError as error:
            raise IdentityError(f"{path}: exists; an identity is never overwritten") from error
        except OSError as error:
            raise IdentityError(f"{path}: cannot be written: {reason(error)}") from error
        return cls(keys, card)

    @classmethod
    def open(cls, path: Path | str, passphrase: bytes) -> "FileVault":
        """Decrypt an identity file, and check that its keys are those of the card inside.

        Raises PassphraseError for a wrong passphrase and IdentityError for everything else, also
        for a file that others may read; both name the file. Deliberately takes about 0.1 s and 64
        MiB.
        """
        try:
            header, secret = open_secret(_read(path, read_private), passphrase)
            card = Card.from_text(header.decode(), str(path))
            return cls(IdentityKeys(secret, card.recipient_kind), card)
        except PassphraseError as error:
            raise PassphraseError(f"{path}: {error}") from error
        except (IdentityError, CardError, UnicodeDecodeError) as error:
            raise IdentityError(f"{path}: {error}") from error


def read_card(path: Path | str) -> Card:
    """The card inside an identity file, without a passphrase. Raises IdentityError.

    The card's own signatures are verified; only opening the file shows that its keys match the
    card.
    """
    try:
        return Card.from_text(read_header(_read(path, read_bounded)).decode(), str(path))
    except (IdentityError, CardError, UnicodeDecodeError) as error:
        raise IdentityError(f"{path}: {error}") from error


def identity_path(home: Path | str, name: str) -> Path:
    """The path of the identity `name`. Raises IdentityError for an invalid name."""
    return Path(home) / f"{check_name(name)}.identity"


def card_path(home: Path | str, name: str) -> Path:
    """The path of the public card of `name`. Raises IdentityError for an invalid name."""
    return Path(home) / f"{check_name(name)}.card"


def _read(path: Path | str, read: Callable[[Path | str, int], bytes]) -> bytes:
    try:
        return read(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise IdentityError(f"cannot be read: {reason(error)}") from error
