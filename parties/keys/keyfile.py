"""Secret bytes in a file, under a passphrase: Argon2id (RFC 9106), then AES-256-GCM.

Without the passphrase the file reveals only its public header and the length of the secret. A wrong
passphrase is distinguished from a damaged file. A file from elsewhere cannot make us spend more
memory or time than the bounds below, which are checked before Argon2id runs.

    magic ‖ fields(kdf, KiB, passes, lanes, salt, header, check, nonce, ciphertext) ‖ SHA-256

The digest at the end detects only accidental damage; the ciphertext's additional data are
everything before it. `check` is a second output of the KDF: it shows that the passphrase is right
before anything is decrypted, and commits to the key, which AES-GCM alone does not.
"""

import hmac
import os
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from parties.errors import IdentityError, PassphraseError
from protocols.canonical import pack, unpack
from protocols.errors import FrameError

MAGIC = b"mpc-train identity 2\n"
"""How an identity's file begins; other secrets in this format have a beginning of their own."""
KDF_NAME = b"argon2id"
SALT_BYTES = 16
MAX_PASSPHRASE_BYTES = 4096
MAX_SECRET_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 19
"""A card and the successions that led to it."""
MAX_FILE_BYTES = 1 << 20

_BOUNDS = (32, 4, 4, 4, SALT_BYTES, MAX_HEADER_BYTES, 32, 12, MAX_SECRET_BYTES + 16)


@dataclass(frozen=True)
class KdfCost:
    """What one guess of a passphrase costs: memory in KiB, passes over it, parallel lanes."""

    memory_kib: int
    passes: int
    lanes: int


DEFAULT_COST = KdfCost(memory_kib=1 << 16, passes=3, lanes=4)
"""RFC 9106, second recommended option: 64 MiB; 0.1 s on two cores."""

MINIMUM_COST = KdfCost(memory_kib=19 * 1024, passes=1, lanes=1)
"""A file with less is refused: another program wrote it, or somebody who wants to guess the
passphrase."""

MAXIMUM_COST = KdfCost(memory_kib=1 << 20, passes=16, lanes=16)
"""1 GiB and a few seconds: the most that a hostile file can cost this machine."""


@dataclass(frozen=True, repr=False, eq=False)
class FileKey:
    """What a passphrase opens a file with, and seals its next content with: for a process that has
    opened the file, and so holds its secret anyway; nobody is asked for the passphrase again."""

    cost: KdfCost
    salt: bytes
    _check: bytes
    _key: bytes
    _magic: bytes

    @classmethod
    def derive(
        cls, passphrase: bytes, cost: KdfCost = DEFAULT_COST, magic: bytes = MAGIC
    ) -> "FileKey":
        """A new one, under a fresh salt. Raises PassphraseError for an empty or overlong
        passphrase."""
        salt = os.urandom(SALT_BYTES)
        return cls(cost, salt, *_derive(passphrase, salt, cost), magic)

    @classmethod
    def unlock(
        cls, data: bytes, passphrase: bytes, minimum: KdfCost = MINIMUM_COST, magic: bytes = MAGIC
    ) -> "FileKey":
        """That of a file's content: steps 1 and 2 of `open_secret`."""
        kdf, memory, passes, lanes, salt, _, check, nonce, _ = _fields(data, magic)  # 1
        cost = KdfCost(*(int.from_bytes(number, "big") for number in (memory, passes, lanes)))
        if kdf != KDF_NAME or len(salt) != SALT_BYTES or len(nonce) != 12:
            raise IdentityError("this version does not know the key derivation")
        for name in ("memory_kib", "passes", "lanes"):
            value, low, high = (getattr(each, name) for each in (cost, minimum, MAXIMUM_COST))
            if not low <= value <= high:
                raise IdentityError(f"the key derivation's {name} is {value}, not {low} to {high}")
        if cost.memory_kib < 8 * cost.lanes:
            raise IdentityError("the key derivation has too little memory for its lanes")
        expected, key = _derive(passphrase, salt, cost)
        if not hmac.compare_digest(expected, check):  # 2
            raise PassphraseError("the passphrase is wrong")
        return cls(cost, salt, expected, key, magic)

    def seal(self, secret: bytes, header: bytes) -> bytes:
        """The file's content: `secret` encrypted, `header` in the clear but authenticated.

        Each content has a random nonce of 96 bits; a file is written a few times in its life.
        """
        if len(secret) > MAX_SECRET_BYTES or len(header) > MAX_HEADER_BYTES:
            raise IdentityError(
                f"a secret has at most {MAX_SECRET_BYTES} bytes, its header {MAX_HEADER_BYTES}"
            )
        nonce = os.urandom(12)
        public = _public_fields(self.cost, self.salt, header, self._check, nonce)
        ciphertext = AESGCM(self._key).encrypt(nonce, secret, self._magic + pack(*public))
        body = self._magic + pack(*public, ciphertext)
        return body + sha256(body).digest()

    def open(self, data: bytes) -> tuple[bytes, bytes]:
        """Header and secret of a content that this key sealed. Raises IdentityError, also if the
        passphrase was changed meanwhile."""
        *_, salt, header, check, nonce, ciphertext = _fields(data, self._magic)
        if salt != self.salt or not hmac.compare_digest(check, self._check):
            raise IdentityError("is under another passphrase than before")
        try:
            public = _public_fields(self.cost, salt, header, check, nonce)
            return header, AESGCM(self._key).decrypt(nonce, ciphertext, self._magic + pack(*public))
        except InvalidTag as error:
            raise IdentityError("the file was altered") from error

    def __repr__(self) -> str:
        return "FileKey(redacted)"


def seal_secret(
    secret: bytes,
    passphrase: bytes,
    header: bytes,
    cost: KdfCost = DEFAULT_COST,
    magic: bytes = MAGIC,
) -> bytes:
    """The content of a new file: `secret` under `passphrase`, `header` in the clear.

    Raises PassphraseError for an empty or overlong passphrase.
    """
    return FileKey.derive(passphrase, cost, magic).seal(secret, header)


def read_header(data: bytes) -> bytes:
    """The public header, NOT authenticated before `open_secret`. Raises IdentityError."""
    return _fields(data, MAGIC)[5]


def open_secret(
    data: bytes, passphrase: bytes, minimum: KdfCost = MINIMUM_COST, magic: bytes = MAGIC
) -> tuple[bytes, bytes]:
    """Header and secret of a file's content.

    1. The file is whole, of this version, and its parameters are within bounds.
    2. The passphrase is right.
    3. Nothing was altered.

    Raises PassphraseError at 2, IdentityError at 1 and 3. Only tests of this module pass a lower
    `minimum`; a vault never does.
    """
    return FileKey.unlock(data, passphrase, minimum, magic).open(data)  # 3


def _public_fields(
    cost: KdfCost, salt: bytes, header: bytes, check: bytes, nonce: bytes
) -> list[bytes]:
    numbers = [value.to_bytes(4, "big") for value in (cost.memory_kib, cost.passes, cost.lanes)]
    return [KDF_NAME, *numbers, salt, header, check, nonce]


def _fields(data: bytes, magic: bytes) -> list[bytes]:
    if not data.startswith(magic) or len(data) > MAX_FILE_BYTES:
        raise IdentityError(f"not a file of {magic.decode().strip()}")
    body, digest = data[:-32], data[-32:]
    if not hmac.compare_digest(sha256(body).digest(), digest):
        raise IdentityError("damaged: its checksum does not match")
    try:
        return unpack(body[len(magic) :], _BOUNDS)
    except FrameError as error:
        raise IdentityError(f"malformed: {error}") from error


def _derive(passphrase: bytes, salt: bytes, cost: KdfCost) -> tuple[bytes, bytes]:
    """The check value and the key derived from a passphrase."""
    if not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    root = Argon2id(
        salt=salt,
        length=32,
        iterations=cost.passes,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(bytes(passphrase))
    check, key = (
        HKDFExpand(SHA256(), 32, b"mpc-train/keyfile/1/" + use).derive(root)
        for use in (b"check", b"key")
    )
    return check, key
