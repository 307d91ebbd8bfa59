"""A key service in a file: 256-bit keys under a passphrase (Argon2id), on this machine.

Wrapping is AES-256-GCM with a random 96-bit nonce and the object as additional data; a key wraps
at most 2^32 file keys before two nonces are likely to meet (NIST SP 800-38D), and rotation by
number comes long before. While open, the keys are in this process's memory.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from parties.errors import IdentityError, KeyServiceError, PassphraseError, RetiredKeyError
from parties.files import private_directory, read_private, write_atomic
from parties.keys.identity import reason
from parties.keys.keyfile import MAX_FILE_BYTES, open_secret, seal_secret

SCHEME = "file"
MAGIC = b"mpc-train vault keys 1\n"
MAX_KEYS = 500
_NONCE_BYTES = 12


class _Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Key by number; the last one is current."""

    keys: dict[int, bytes]


class FileService:
    """`file:PATH`, opened with a passphrase; `create` makes the file."""

    def __init__(self, path: Path, passphrase: bytes) -> None:
        self._path, self._passphrase = path, passphrase
        self._keys = self._read()

    @classmethod
    def create(cls, path: Path, passphrase: bytes) -> "FileService":
        """Make the file with one key; it never replaces one."""
        content = _sealed({1: os.urandom(32)}, passphrase)
        try:
            private_directory(path.parent)
            write_atomic(path, content, 0o600, replace=False)
        except FileExistsError as error:
            raise KeyServiceError(f"{path}: exists; keys are never overwritten") from error
        except OSError as error:
            raise KeyServiceError(f"{path}: cannot be written: {reason(error)}") from error
        return cls(path, passphrase)

    @property
    def uri(self) -> str:
        return f"{SCHEME}:{self._path}"

    @property
    def current(self) -> str:
        return _id(max(self._keys))

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(_NONCE_BYTES)
        return self.current, nonce + AESGCM(self._keys[max(self._keys)]).encrypt(
            nonce, file_key, info
        )

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        scheme, _, number = key_id.partition(":")
        key = self._keys.get(int(number)) if scheme == SCHEME and number.isdecimal() else None
        if key is None:
            raise RetiredKeyError(f"{self._path} does not have the key {key_id}")
        try:
            return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], info)
        except (InvalidTag, ValueError) as error:
            raise KeyServiceError(
                f"the file key does not open with {key_id} of {self._path}: altered, or another's"
            ) from error

    def rotate(self) -> str:
        with self._changing() as keys:
            if len(keys) >= MAX_KEYS:
                raise KeyServiceError(f"{self._path} has {MAX_KEYS} keys; retire old ones first")
            keys[max(keys) + 1] = os.urandom(32)
        return self.current

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        with self._changing() as keys:
            gone = [n for n in keys if n != max(keys) and _id(n) not in needed]
            for number in gone:
                del keys[number]
        return tuple(map(_id, gone))

    @contextmanager
    def _changing(self) -> Iterator[dict[int, bytes]]:
        """The keys as the file has them now, which are written when the block ends well."""
        try:
            lock = os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise KeyServiceError(f"{self._path}: cannot be locked: {reason(error)}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self._read()
            yield keys
            write_atomic(self._path, _sealed(keys, self._passphrase), 0o600)
            self._keys = keys
        except OSError as error:
            raise KeyServiceError(f"{self._path}: cannot be written: {reason(error)}") from error
        finally:
            os.close(lock)

    def _read(self) -> dict[int, bytes]:
        try:
            data = read_private(self._path, MAX_FILE_BYTES)
            _, secret = open_secret(data, self._passphrase, magic=MAGIC)
            keys = msgspec.msgpack.decode(secret, type=_Keys).keys
        except PassphraseError as error:
            raise PassphraseError(f"{self._path}: {error}") from error
        except (IdentityError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise KeyServiceError(f"{self._path}: {reason(error)}") from error
        if not keys or any(number < 1 or len(key) != 32 for number, key in keys.items()):
            raise KeyServiceError(f"{self._path}: holds no keys of this version")
        return keys

    def __repr__(self) -> str:
        return f"FileService({self._path})"


def _id(number: int) -> str:
    return f"{SCHEME}:{number}"


def _sealed(keys: dict[int, bytes], passphrase: bytes) -> bytes:
    return seal_secret(msgspec.msgpack.encode(_Keys(keys)), passphrase, b"", magic=MAGIC)
