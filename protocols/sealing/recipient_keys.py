"""The keys that results are sealed to: three kinds, behind one interface.

    x25519-mlkem768   the default: HPKE with X25519 and ML-KEM-768, see `hpke`
    p384              HPKE (RFC 9180), base mode: DHKEM(P-384), HKDF-SHA384, AES-256-GCM
    rsa-4096-oaep     RSAES-OAEP (RFC 8017) with SHA-256, and MGF1 with SHA-256

The last two are for organisations that must use them. Neither is post-quantum: what is sealed to
them today can be opened by whoever keeps it until a quantum computer breaks them. `info` binds a
sealed text to its one use with every kind: as HPKE's info, or as OAEP's label. Keys are encoded as
the hybrid key of `hpke`, an uncompressed point, a SubjectPublicKeyInfo (DER); private keys as its
96 bytes, a 48-byte scalar, a PKCS #8 structure (DER).

Leaves to the caller: which kind the recipient's card says, since a key is believed to be of the
kind that it is given with. Every fault in bytes from elsewhere is an AuthenticationError.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.sealing import hpke
from protocols.sealing.hpke import HybridPrivateKey

HYBRID, P384, RSA = "x25519-mlkem768", "p384", "rsa-4096-oaep"
DEFAULT_KIND = HYBRID
MAX_PLAINTEXT_BYTES = 446
"""OAEP holds no more; what is sealed are keys."""
MAX_SEALED_BYTES = hpke.OVERHEAD_BYTES + MAX_PLAINTEXT_BYTES

P384_PUBLIC_BYTES, P384_PRIVATE_BYTES = 97, 48
RSA_BITS, RSA_EXPONENT = 4096, 65537
RSA_PUBLIC_BYTES = 550
MAX_PRIVATE_BYTES = 2400
"""Of an RSA key; the others have fewer."""

_P384 = Suite(KEM.P384, KDF.HKDF_SHA384, AEAD.AES_256_GCM)
_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf"
    "581a0db248b0a77aecec196accc52973",
    16,
)
_NO_INFO = "info is required: it binds the sealed text to its one use"
_CLOSED = "a sealed text does not open: altered, for another key or for another use"


class RecipientPrivateKey(Protocol):
    """The private half of a recipient key of any kind."""

    public: bytes

    def private_bytes(self) -> bytes:
        """The secret bytes, for the vault that encrypts them and for nobody else."""

    def open(self, info: bytes, ciphertext: bytes) -> bytes:
        """Undo `RecipientKey.seal`. Raises AuthenticationError for another key, other info or
        altered bytes."""


class P384PrivateKey:
    """The private half of a `p384` key, from its 48-byte scalar."""

    def __init__(self, private: bytes) -> None:
        scalar = int.from_bytes(private, "big")
        if len(private) != P384_PRIVATE_BYTES or not 1 <= scalar < _ORDER:
            raise ValueError("not the private half of a p384 key")
        self._private = bytes(private)
        self._key = derive_private_key(scalar, SECP384R1())
        self.public: bytes = self._key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )

    @classmethod
    def generate(cls) -> "P384PrivateKey":
        numbers = generate_ec(SECP384R1()).private_numbers()
        return cls(numbers.private_value.to_bytes(P384_PRIVATE_BYTES, "big"))

    def private_bytes(self) -> bytes:
        return self._private

    def open(self, info: bytes, ciphertext: bytes) -> bytes:
        if not info:
            raise ValueError(_NO_INFO)
        try:
            return _P384.decrypt(ciphertext, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise AuthenticationError(_CLOSED) from error

    def __repr__(self) -> str:
        return "P384PrivateKey(private)"


class RsaPrivateKey:
    """The private half of an `rsa-4096-oaep` key, from its PKCS #8 structure."""

    def __init__(self, private: bytes) -> None:
        key = load_der_private_key(private, None)
        if not isinstance(key, RSAPrivateKey):
            raise ValueError("not the private half of an rsa-4096-oaep key")
        self._private, self._key = bytes(private), key
        self.public: bytes = key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        _rsa_public(self.public)

    @classmethod
    def generate(cls) -> "RsaPrivateKey":
        key = generate_rsa(RSA_EXPONENT, RSA_BITS)
        return cls(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))

    def private_bytes(self) -> bytes:
        return self._private

    def open(self, info: bytes, ciphertext: bytes) -> bytes:
        if not info:
            raise ValueError(_NO_INFO)
        try:
            return self._key.decrypt(bytes(ciphertext), _oaep(info))
        except ValueError as error:
            raise AuthenticationError(_CLOSED) from error

    def __repr__(self) -> str:
        return "RsaPrivateKey(private)"


def _oaep(info: bytes) -> OAEP:
    return OAEP(MGF1(SHA256()), SHA256(), label=bytes(info))


def _rsa_public(public: bytes) -> RSAPublicKey:
    """Raises ValueError unless the bytes are the one encoding of a key of the one size."""
    key = load_der_public_key(bytes(public))
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key")
    if key.key_size != RSA_BITS or key.public_numbers().e != RSA_EXPONENT:
        raise ValueError("not an RSA key of this size")
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != bytes(public):
        raise ValueError("not the canonical encoding of an RSA key")
    return key


def _seal_p384(public: bytes, info: bytes, plaintext: bytes) -> bytes:
    # Only the uncompressed encoding has this length: a key has one encoding.
    key = EllipticCurvePublicKey.from_encoded_point(SECP384R1(), bytes(public))
    return _P384.encrypt(plaintext, key, info)


def _seal_rsa(public: bytes, info: bytes, plaintext: bytes) -> bytes:
    return _rsa_public(public).encrypt(plaintext, _oaep(info))


@dataclass(frozen=True)
class _Kind:
    suite: str
    post_quantum: bool
    public_bytes: int
    private_bytes: tuple[int, int]
    seal: Callable[[bytes, bytes, bytes], bytes]
    private: Callable[[bytes], RecipientPrivateKey]
    generate: Callable[[], RecipientPrivateKey]


_KINDS = {
    HYBRID: _Kind(
        hpke.SUITE,
        True,
        hpke.PUBLIC_BYTES,
        (hpke.PRIVATE_BYTES, hpke.PRIVATE_BYTES),
        hpke.seal,
        HybridPrivateKey,
        HybridPrivateKey.generate,
    ),
    P384: _Kind(
        "P384/HKDF-SHA384/AES-256-GCM",
        False,
        P384_PUBLIC_BYTES,
        (P384_PRIVATE_BYTES, P384_PRIVATE_BYTES),
        _seal_p384,
        P384PrivateKey,
        P384PrivateKey.generate,
    ),
    RSA: _Kind(
        "RSA4096-OAEP-SHA256",
        False,
        RSA_PUBLIC_BYTES,
        (1, MAX_PRIVATE_BYTES),
        _seal_rsa,
        RsaPrivateKey,
        RsaPrivateKey.generate,
    ),
}
KINDS = tuple(_KINDS)
"""The kinds of recipient keys; the first is the default."""


def _kind(name: str) -> _Kind:
    try:
        return _KINDS[name]
    except KeyError:
        raise AuthenticationError(
            f"{name!r} is not a kind of recipient key; the kinds are {', '.join(KINDS)}"
        ) from None


def private_key(kind: str, private: bytes) -> RecipientPrivateKey:
    """The private half of a key of this kind. Raises AuthenticationError for other bytes."""
    found = _kind(kind)
    least, most = found.private_bytes
    if not least <= len(private) <= most:
        raise AuthenticationError(f"not the private half of a key of the kind {kind}")
    try:
        return found.private(private)
    except (ValueError, TypeError) as error:
        raise AuthenticationError(f"not the private half of a key of the kind {kind}") from error


def generate_key(kind: str) -> RecipientPrivateKey:
    """A fresh key from the operating system's randomness; RSA takes seconds."""
    return _kind(kind).generate()


@dataclass(frozen=True)
class RecipientKey:
    """A recipient's public key and its kind, as its card says."""

    kind: str
    public: bytes = field(repr=False)

    @property
    def suite(self) -> str:
        """The algorithms in words that a header holds."""
        return _kind(self.kind).suite

    @property
    def post_quantum(self) -> bool:
        return _kind(self.kind).post_quantum

    @property
    def digest(self) -> bytes:
        """SHA-256 of kind and key: what an envelope says it is sealed to."""
        return sha256(pack(b"mpc-train/recipient-key/1", self.kind.encode(), self.public)).digest()

    def check(self) -> None:
        """Raise AuthenticationError unless it is possible to seal to this key, which is tried."""
        self.seal(b"check", b"")

    def seal(self, info: bytes, plaintext: bytes) -> bytes:
        """Seal up to 446 bytes; only the private half, with the same `info`, opens them.

        Raises AuthenticationError when this is not a usable key of its kind.
        """
        if not info:
            raise ValueError(_NO_INFO)
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise ValueError(f"a recipient key seals at most {MAX_PLAINTEXT_BYTES} bytes")
        found = _kind(self.kind)
        if len(self.public) != found.public_bytes:
            raise AuthenticationError(
                f"a {self.kind} key has {found.public_bytes} bytes, not {len(self.public)}"
            )
        try:
            return found.seal(self.public, info, plaintext)
        except (ValueError, TypeError) as error:
            raise AuthenticationError(f"not a usable {self.kind} public key") from error
