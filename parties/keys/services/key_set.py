"""Numbered 256-bit keys that one secret holds: what the services in a file and a keyring share.

Wrapping is AES-256-GCM with a random 96-bit nonce and the object as additional data; a key wraps
at most 2^32 file keys before two nonces are likely to meet (NIST SP 800-38D), and rotation by
number comes long before. While open, the keys are in this process's memory.
"""

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from hashlib import sha256

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from parties.errors import KeyServiceError, RetiredKeyError
from parties.keys.services.service import does_not_open, own_part

_NONCE_BYTES = 12


class _Set(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Key by number; the last one is current."""

    keys: dict[int, bytes]


def first_keys() -> dict[int, bytes]:
    """A new set with one key."""
    return {1: os.urandom(32)}


def encoded(keys: dict[int, bytes]) -> bytes:
    """A secret: what the set is kept as."""
    return msgspec.msgpack.encode(_Set(keys))


def decoded(secret: bytes) -> dict[int, bytes]:
    """Undo `encoded`; raises ValueError, which does not quote the secret."""
    try:
        keys = msgspec.msgpack.decode(secret, type=_Set).keys
    except (msgspec.MsgspecError, ValueError):
        keys = {}
    if not keys or any(number < 1 or len(key) != 32 for number, key in keys.items()):
        raise ValueError("holds no keys of this version")
    return keys


class KeySetService(ABC):
    """A service over a set of keys, which `_read` fetches and `_changing` replaces.

    prefix: how the ids of its keys begin. max_keys: how many it can hold.
    """

    def __init__(self, uri: str, prefix: str, max_keys: int) -> None:
        self._uri, self._prefix, self._max_keys = uri, prefix, max_keys
        self._keys = self._read()

    @abstractmethod
    def _read(self) -> dict[int, bytes]:
        """The keys as they are kept now."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[dict[int, bytes]]:
        """The keys as they are kept now, for one process at a time; kept, and taken into
        `_keys`, when the block ends well."""

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def current(self) -> str:
        return self._id(max(self._keys), self._keys[max(self._keys)])

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._keys[max(self._keys)]).encrypt(nonce, file_key, info)
        return self.current, nonce + sealed

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        own_part(self.uri, self._prefix, key_id)
        found = [key for number, key in self._keys.items() if self._id(number, key) == key_id]
        if not found:
            raise RetiredKeyError(f"{self.uri} does not have the key {key_id}: it was destroyed")
        try:
            return AESGCM(found[0]).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], info)
        except (InvalidTag, ValueError) as error:
            raise does_not_open(self.uri, key_id) from error

    def rotate(self) -> str:
        with self._changing() as keys:
            self._check_room(keys)
            keys[max(keys) + 1] = os.urandom(32)
        return self.current

    def check_rotation(self) -> None:
        self._check_room(self._read())

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        with self._changing() as keys:
            gone = {
                number: self._id(number, key)
                for number, key in keys.items()
                if number != max(keys) and self._id(number, key) not in needed
            }
            for number in gone:
                del keys[number]
        return tuple(gone.values())

    def _check_room(self, keys: dict[int, bytes]) -> None:
        if len(keys) >= self._max_keys:
            raise KeyServiceError(f"{self.uri} has {len(keys)} keys; retire old ones first")

    def _id(self, number: int, key: bytes) -> str:
        """A hash tells keys of one number apart: of two files, or of a set that was made anew."""
        return f"{self._prefix}{number}-{sha256(b'mpc-train/key id/1' + key).hexdigest()[:16]}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri})"
