"""Two signatures for one statement: Ed25519 and ML-DSA-65 (FIPS 204), and both must verify.

Ed25519 alone is not post-quantum, and ML-DSA alone would rely on a young scheme. Both keys sign the
same bytes: a fixed prefix that names the pair of algorithms, the purpose and the message,
length-prefixed. The prefix keeps one half of a pair from passing for a signature of that algorithm
alone, and the purpose keeps a signature made for one use from serving another. A pair is a
concatenation of fixed lengths: 64 bytes Ed25519, then 3309 bytes ML-DSA-65.
"""

import os
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from protocols.canonical import pack
from protocols.errors import AuthenticationError

ED25519_PUBLIC_BYTES = 32
MLDSA65_PUBLIC_BYTES = 1952
PUBLIC_BYTES = ED25519_PUBLIC_BYTES + MLDSA65_PUBLIC_BYTES
PRIVATE_BYTES = 64
SIGNATURE_BYTES = 64 + 3309

SUITE = "Ed25519+ML-DSA-65"

_PREFIX = b"mpc-train/signature/1/Ed25519+ML-DSA-65"


class Signer(Protocol):
    """The holder of a pair of signing keys: a vault, or `SigningKeys` in memory."""

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""


class Verifier(Protocol):
    """The holder of a pair of public keys."""

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Raises AuthenticationError unless both signatures over (purpose, message) hold."""


def _statement(purpose: str, message: bytes) -> bytes:
    return pack(_PREFIX, purpose.encode(), message)


def _check_text(text: bytes) -> None:
    if not text or text[0] < 0x20:
        raise ValueError("a text begins with a printable character")


class SigningKeys:
    """The private pair, from 64 secret bytes: 32 for Ed25519, 32 for the ML-DSA seed."""

    def __init__(self, private: bytes) -> None:
        if len(private) != PRIVATE_BYTES:
            raise ValueError(f"a signing key pair has {PRIVATE_BYTES} bytes, not {len(private)}")
        self._private = bytes(private)
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(private[:32])
        self._mldsa = MLDSA65PrivateKey.from_seed_bytes(private[32:])
        self.public: bytes = (
            self._ed25519.public_key().public_bytes_raw()
            + self._mldsa.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> "SigningKeys":
        return cls(os.urandom(PRIVATE_BYTES))

    def private_bytes(self) -> bytes:
        """The 64 secret bytes, for the vault that encrypts them and for nobody else."""
        return self._private

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""
        statement = _statement(purpose, message)
        return self._ed25519.sign(statement) + self._mldsa.sign(statement)

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is, for formats that other tools read.

        What `sign` signs begins with a zero byte. Raises ValueError for a text that does not begin
        with a printable character, which could be taken for that.
        """
        _check_text(text)
        return self._ed25519.sign(text), self._mldsa.sign(text)

    def __repr__(self) -> str:
        return "SigningKeys(Ed25519+ML-DSA-65, private)"


class VerifyKeys:
    """The public pair: 32 bytes Ed25519, then 1952 bytes ML-DSA-65.

    Raises AuthenticationError when the bytes are not such a pair.
    """

    def __init__(self, public: bytes) -> None:
        if len(public) != PUBLIC_BYTES:
            raise AuthenticationError(
                f"a pair of verification keys has {PUBLIC_BYTES} bytes, not {len(public)}"
            )
        self.public = bytes(public)
        try:
            self._ed25519 = Ed25519PublicKey.from_public_bytes(self.public[:32])
            self._mldsa = MLDSA65PublicKey.from_public_bytes(self.public[32:])
        except ValueError as error:
            raise AuthenticationError("not a pair of verification keys") from error

    def verify(self, purpose: str, message: bytes, signature: bytes) -> None:
        """Raises AuthenticationError unless both signatures over (purpose, message) hold."""
        if len(signature) != SIGNATURE_BYTES:
            raise AuthenticationError(
                f"{purpose}: a pair of signatures has {SIGNATURE_BYTES} bytes, not {len(signature)}"
            )
        statement = _statement(purpose, message)
        signature = bytes(signature)
        try:
            self._ed25519.verify(signature[:64], statement)
            self._mldsa.verify(signature[64:], statement)
        except InvalidSignature as error:
            raise AuthenticationError(f"{purpose}: a signature does not verify") from error

    def verify_text(self, text: bytes, ed25519: bytes, mldsa65: bytes) -> None:
        """Raises AuthenticationError unless both signatures of `SigningKeys.sign_text` hold."""
        try:
            _check_text(text)
            self._ed25519.verify(bytes(ed25519), text)
            self._mldsa.verify(bytes(mldsa65), text)
        except (InvalidSignature, ValueError) as error:
            raise AuthenticationError("a signature of a text does not verify") from error

    def __repr__(self) -> str:
        return f"VerifyKeys(Ed25519+ML-DSA-65, {self.public[:4].hex()}…)"
