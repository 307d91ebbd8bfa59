"""Sealing to a public key: HPKE (RFC 9180), base mode, ML-KEM-768 with X25519, AES-256-GCM.

What is sealed today stays sealed unless ML-KEM *and* X25519 are both broken. The library leaves
three things open that are closed here: the hybrid key has no serialisation of its own (1184 bytes
ML-KEM, then 32 bytes X25519), `info` may be forgotten (here it is required: it binds the use), and
bad input surfaces as ValueError or InvalidTag depending on which half is bad and when. Here every
fault in bytes from elsewhere is an AuthenticationError.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from protocols.errors import AuthenticationError

SUITE = "MLKEM768_X25519/HKDF-SHA256/AES-256-GCM"
MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + 32
PRIVATE_BYTES = 64 + 32
OVERHEAD_BYTES = KEM.MLKEM768_X25519.enc_length() + 16
"""A sealed text is this much longer than its plaintext: the encapsulation and the tag."""

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def check_public(public: bytes) -> None:
    """Raise AuthenticationError unless it is possible to seal to `public`.

    The library imports a low-order X25519 key (such as 32 bytes of zero) and fails only when
    something is sealed to it; sealing once here detects this early.
    """
    seal(public, b"check", b"")


def seal(public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """Seal `plaintext` to the 1216-byte key `public`; only `open` with the same `info` undoes it.

    Raises AuthenticationError when `public` is not a usable hybrid key.
    """
    if not info:
        raise ValueError("info is required: it binds the sealed text to its one use")
    if len(public) != PUBLIC_BYTES:
        raise AuthenticationError(f"a hybrid key has {PUBLIC_BYTES} bytes, not {len(public)}")
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(bytes(public[:MLKEM_PUBLIC_BYTES])),
            X25519PublicKey.from_public_bytes(bytes(public[MLKEM_PUBLIC_BYTES:])),
        )
        return _SUITE.encrypt(plaintext, key, info)
    except ValueError as error:
        raise AuthenticationError("not a usable hybrid public key") from error


class HybridPrivateKey:
    """The private half, from 96 secret bytes: the 64-byte ML-KEM seed, then 32 for X25519."""

    def __init__(self, private: bytes) -> None:
        if len(private) != PRIVATE_BYTES:
            raise ValueError(f"a hybrid private key has {PRIVATE_BYTES} bytes, not {len(private)}")
        self._private = bytes(private)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
        x25519 = X25519PrivateKey.from_private_bytes(private[64:])
        self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public: bytes = (
            mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> "HybridPrivateKey":
        return cls(os.urandom(PRIVATE_BYTES))

    def private_bytes(self) -> bytes:
        """The 96 secret bytes, for the vault that encrypts them and for nobody else."""
        return self._private

    def open(self, info: bytes, ciphertext: bytes) -> bytes:
        """Undo `seal`. Raises AuthenticationError for another key, other info or altered bytes."""
        if not info:
            raise ValueError("info is required: it binds the sealed text to its one use")
        try:
            return _SUITE.decrypt(ciphertext, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise AuthenticationError(
                "a sealed text does not open: altered, for another key or for another use"
            ) from error

    def __repr__(self) -> str:
        return "HybridPrivateKey(ML-KEM-768+X25519, private)"
