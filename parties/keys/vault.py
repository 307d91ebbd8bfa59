"""The uses of a node's private keys: to sign, to open what is sealed to it, and to connect.

When an identity is rotated, one file changes at one moment: it holds the new keys, the successions
that lead to them, and of each earlier identity only the key that opens. What was sealed to it stays
readable; it signs, seals and joins nothing any more.

A vault never hands out a signing or recipient key, so a key-management service can replace the
file. `FileVault` keeps the keys encrypted under a passphrase. When it is open, the keys are in this
process's memory, and anybody who can read that memory has them.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from parties.errors import CardError, IdentityError, PassphraseError
from parties.files import locked, private_directory, read_bounded, read_private, write_atomic
from parties.keys.identity import (
    CURVE_BYTES,
    Card,
    IdentityKeys,
    check_name,
    reason,
)
from parties.keys.keyfile import MAX_FILE_BYTES, MAX_SECRET_BYTES, FileKey, read_header
from parties.keys.lifetime import DEFAULT_DAYS
from parties.keys.statements import MAX_CHAIN, MAX_STATEMENT_BYTES, Succession, check_chain
from protocols.canonical import decode_text, pack, pack_texts, unpack_list, unpack_texts
from protocols.errors import AuthenticationError, FrameError
from protocols.sealing.recipient_keys import (
    DEFAULT_KIND,
    RecipientPrivateKey,
    private_key,
)

MAX_RETIRED = 256
"""Earlier identities of which one keeps the key that opens."""


class Vault(Protocol):
    """A node's private keys, behind the three operations that use them."""

    @property
    def card(self) -> Card:
        """The public card of these keys."""

    @property
    def successions(self) -> tuple[Succession, ...]:
        """Those that led to this card, the oldest first; at most `MAX_CHAIN`."""

    def opens_for(self, digest: bytes) -> bool:
        """Whether `unseal` opens what was sealed to the card with this digest: the present one,
        or one that it succeeded."""

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is; see `signatures.SigningKeys.sign_text`."""

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to the recipient key of the card, or of one that it succeeded.
        Raises AuthenticationError."""

    def curve_secret(self) -> bytes:
        """The 32-byte secret of the CURVE connections, which the transport needs in raw form."""


@dataclass(frozen=True, repr=False, eq=False)
class Retired:
    """What is kept of an earlier identity: its card's digest, and the key that opens."""

    digest: bytes
    kind: str
    key: RecipientPrivateKey

    def __repr__(self) -> str:
        return f"Retired({self.digest[:4].hex()}…, private)"


class MemoryVault:
    """A vault of keys in memory: those of an opened file, or of a node in a test."""

    def __init__(
        self,
        keys: IdentityKeys,
        card: Card,
        successions: tuple[Succession, ...] = (),
        retired: tuple[Retired, ...] = (),
    ) -> None:
        if not keys.matches(card):
            raise IdentityError(f"the keys are not those of the card of {card.name}")
        check_chain(successions, f"the identity of {card.name}")
        if successions and successions[-1].new.digest != card.digest:
            raise IdentityError(f"the successions do not lead to the card of {card.name}")
        self._keys = keys
        self._card = card
        self._successions = successions
        self._retired = retired

    @classmethod
    def generate(cls, name: str, kind: str = DEFAULT_KIND) -> "MemoryVault":
        """A fresh identity that is never written down."""
        keys = IdentityKeys.generate(kind)
        return cls(keys, keys.card(name))

    @property
    def card(self) -> Card:
        return self._card

    @property
    def successions(self) -> tuple[Succession, ...]:
        """Those that led to this card, the oldest first."""
        return self._successions

    def opens_for(self, digest: bytes) -> bool:
        """Whether `unseal` opens what was sealed to the card with this digest."""
        return digest in (self._card.digest, *(each.digest for each in self._retired))

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""
        return self._keys.signing.sign(purpose, message)

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is."""
        return self._keys.signing.sign_text(text)

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to the recipient key of the card, or of one that it succeeded.
        Raises AuthenticationError."""
        try:
            return self._keys.recipient.open(info, ciphertext)
        except AuthenticationError:
            for each in reversed(self._retired):
                with contextlib.suppress(AuthenticationError):
                    return each.key.open(info, ciphertext)
            raise

    def curve_secret(self) -> bytes:
        """The 32-byte secret of the CURVE connections."""
        return self._keys.curve_secret

    def successor(
        self,
        days: int = DEFAULT_DAYS,
        *,
        issued: datetime | None = None,
        new_connection_key: bool = False,
    ) -> "MemoryVault":
        """A vault of new keys that succeeds this one, in memory only.

        The key of the connections stays unless `new_connection_key`: it signs and seals nothing,
        and others could not be told of a new one over connections that they would refuse. Raises
        CardError and IdentityError.
        """
        if len(self._retired) >= MAX_RETIRED:
            raise IdentityError(
                f"{self._card.name} has {MAX_RETIRED} earlier keys; make a new identity, and keep "
                "the old file for what was sealed to it"
            )
        kind = self._keys.kind
        private = IdentityKeys.generate(kind).private_bytes()
        if not new_connection_key:
            private = private[:-CURVE_BYTES] + self._keys.curve_secret
        keys = IdentityKeys(private, kind)
        card = keys.card(self._card.name, issued, days, after=self._card)
        succession = Succession.sign(self, card, keys.signing)
        retired = (*self._retired, Retired(self._card.digest, kind, self._keys.recipient))
        return MemoryVault(keys, card, (*self._successions, succession)[-MAX_CHAIN:], retired)

    def _secret(self) -> bytes:
        """What an identity file encrypts: the private keys, then of each earlier identity the
        card's digest, and kind and private half of the recipient key."""
        parts = [self._keys.private_bytes()]
        for each in self._retired:
            parts += (each.digest, each.kind.encode(), each.key.private_bytes())
        return pack(*parts)

    def _header(self) -> bytes:
        """What an identity file shows: the card, then the successions."""
        return pack_texts([self._card.to_text(), *(each.to_text() for each in self._successions)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._card.name}, {self._card.fingerprint[:9]}…)"


class FileVault(MemoryVault):
    """`<name>.identity`, encrypted under a passphrase, with `<name>.card` beside it."""

    def __init__(self, made: MemoryVault, path: Path, file_key: FileKey) -> None:
        super().__init__(made._keys, made.card, made.successions, made._retired)
        self.path = path
        self._file_key = file_key

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
        first = MemoryVault(keys, keys.card(name, issued, days))
        made = cls(first, path, FileKey.derive(passphrase))
        try:
            private_directory(path.parent)
            made._write(replace=False)
        except FileExistsError as error:
            raise IdentityError(f"{path}: exists; an identity is never overwritten") from error
        except OSError as error:
            raise IdentityError(f"{path}: cannot be written: {reason(error)}") from error
        return made

    @classmethod
    def open(cls, path: Path | str, passphrase: bytes) -> "FileVault":
        """Decrypt an identity file, and check that its keys are those of the card inside.

        Raises PassphraseError for a wrong passphrase and IdentityError for everything else, also
        for a file that others may read; both name the file. Deliberately takes about 0.1 s and 64
        MiB.
        """
        try:
            data = _read(path, read_private)
            return cls._opened(Path(path), data, FileKey.unlock(data, passphrase))
        except PassphraseError as error:
            raise PassphraseError(f"{path}: {error}") from error
        except (IdentityError, CardError) as error:
            raise IdentityError(f"{path}: {error}") from error

    def reopen(self) -> "FileVault":
        """The identity as the file holds it now, which may have been rotated; no passphrase is
        needed. Raises IdentityError."""
        try:
            return self._opened(self.path, _read(self.path, read_private), self._file_key)
        except (IdentityError, CardError) as error:
            raise IdentityError(f"{self.path}: {error}") from error

    @classmethod
    def _opened(cls, path: Path, data: bytes, file_key: FileKey) -> "FileVault":
        header, secret = file_key.open(data)
        card, successions = _parse_header(header, str(path))
        private, retired = _parse_secret(secret)
        keys = IdentityKeys(private, card.recipient_kind)
        return cls(MemoryVault(keys, card, successions, retired), path, file_key)

    def rotate(self, days: int = DEFAULT_DAYS, *, new_connection_key: bool = False) -> "FileVault":
        """Replace this identity by a successor with new keys, under the same passphrase.

        1. One process at a time rotates; the file must still hold the identity that was opened.
        2. The new keys and the succession are made in memory.
        3. One rename makes them the identity: before it the old one is in force, after it the new.
        4. The card beside it follows; what a crash leaves there is put right when it is next read.

        Raises IdentityError and CardError; then the old identity is in force.
        """
        try:
            with locked(self.path.with_name(f".{self.path.name}.lock")):  # 1
                if self.reopen().card != self.card:
                    raise IdentityError(f"{self.path}: was rotated meanwhile")
                made = self.successor(days, new_connection_key=new_connection_key)  # 2
                found = FileVault(made, self.path, self._file_key)
                found._write(replace=True)  # 3, 4
                return found
        except OSError as error:
            raise IdentityError(f"{self.path}: cannot be written: {reason(error)}") from error

    def _write(self, *, replace: bool) -> None:
        data = self._file_key.seal(self._secret(), self._header())
        write_atomic(self.path, data, 0o600, replace=replace)
        write_atomic(self.path.with_suffix(".card"), self.card.to_text().encode(), 0o644)


def _parse_secret(secret: bytes) -> tuple[bytes, tuple[Retired, ...]]:
    """What `MemoryVault._secret` packed; raises IdentityError."""
    try:
        fields = unpack_list(secret, 1 + 3 * MAX_RETIRED, MAX_SECRET_BYTES)
        private, *rest = fields
        retired = []
        for digest, kind, key in zip(*[iter(rest)] * 3, strict=True):
            name = decode_text(kind)
            retired.append(Retired(digest, name, private_key(name, key)))
    except (FrameError, AuthenticationError, ValueError) as error:
        raise IdentityError("its secret is malformed") from error
    return private, tuple(retired)


def read_card(path: Path | str) -> Card:
    """The card inside an identity file, without a passphrase. Raises IdentityError.

    The card's own signatures are verified; only opening the file shows that its keys match the
    card. The card file beside it is put right if a rotation was interrupted.
    """
    return read_line(path)[0]


def read_line(path: Path | str) -> tuple[Card, tuple[Succession, ...]]:
    """The card inside an identity file and the successions that led to it; see `read_card`."""
    try:
        header = read_header(_read(path, read_bounded))
        card, successions = _parse_header(header, str(path))
    except (IdentityError, CardError) as error:
        raise IdentityError(f"{path}: {error}") from error
    beside, text = Path(path).with_suffix(".card"), card.to_text().encode()
    with contextlib.suppress(OSError):
        if beside.exists() and beside.read_bytes() != text:
            write_atomic(beside, text, 0o644)
    return card, successions


def _parse_header(header: bytes, source: str) -> tuple[Card, tuple[Succession, ...]]:
    try:
        texts = unpack_texts(header, 1 + MAX_CHAIN, MAX_STATEMENT_BYTES)
    except FrameError as error:
        raise IdentityError(f"its header is malformed: {error}") from error
    if not texts:
        raise IdentityError("its header is empty")
    card, *chain = texts
    return Card.from_text(card, source), tuple(Succession.from_text(each, source) for each in chain)


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
