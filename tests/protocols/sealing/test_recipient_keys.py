"""Recipient keys of every kind: what is sealed opens, for that key and that use only; the pinned
envelopes open with a second reader, which is written from the format's description and the RFCs."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from protocols.canonical import pack, unpack
from protocols.errors import AuthenticationError, EnvelopeError
from protocols.sealing import hpke
from protocols.sealing.envelope import EnvelopeInfo, open_envelope
from protocols.sealing.recipient_keys import (
    HYBRID,
    KINDS,
    P384,
    RSA,
    P384PrivateKey,
    RecipientKey,
    RecipientPrivateKey,
    RsaPrivateKey,
    private_key,
)
from protocols.sealing.signatures import SigningKeys, VerifyKeys

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())[
    "envelopes"
]
KEYS: dict[str, RecipientPrivateKey] = {
    kind: private_key(kind, bytes.fromhex(vector["recipient_private"]))
    for kind, vector in VECTORS["by_kind"].items()
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def public(kind: str) -> RecipientKey:
    return RecipientKey(kind, KEYS[kind].public)


class Opener:
    def __init__(self, key: RecipientPrivateKey) -> None:
        self._key = key

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        return self._key.open(info, ciphertext)


# --- a second reader ---


def expand(hash_name: str, key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869)."""
    found, block, count = b"", b"", 1
    while len(found) < length:
        block = hmac.new(key, block + info + bytes([count]), hash_name).digest()
        found, count = found + block, count + 1
    return found[:length]


def hpke_open(
    kem: bytes, kdf: bytes, hash_name: str, shared: bytes, info: bytes, sealed: bytes
) -> bytes:
    """RFC 9180, 5.1 and 5.2: base mode, AES-256-GCM, the first message."""
    suite = b"HPKE" + kem + kdf + b"\x00\x02"

    def labeled_extract(salt: bytes, label: bytes, data: bytes) -> bytes:
        return hmac.new(salt, b"HPKE-v1" + suite + label + data, hash_name).digest()

    def labeled_expand(key: bytes, label: bytes, data: bytes, length: int) -> bytes:
        text = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + data
        return expand(hash_name, key, text, length)

    context = b"\0" + labeled_extract(b"", b"psk_id_hash", b"")
    context += labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")
    key = labeled_expand(secret, b"key", context, 32)
    nonce = labeled_expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, sealed, b"")


def open_p384(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """RFC 9180, 4.1: DHKEM(P-384, HKDF-SHA384)."""
    key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP384R1())
    mine = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    enc = sealed[:97]
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), enc)
    suite = b"KEM\x00\x11"
    shared = key.exchange(ec.ECDH(), peer)
    prk = hmac.new(b"", b"HPKE-v1" + suite + b"eae_prk" + shared, "sha384").digest()
    text = b"\x00\x30HPKE-v1" + suite + b"shared_secret" + enc + mine
    secret = expand("sha384", prk, text, 48)
    return hpke_open(b"\x00\x11", b"\x00\x02", "sha384", secret, info, sealed[97:])


def open_hybrid(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """draft-ietf-hpke-pq, MLKEM768-X25519: the combiner of X-Wing."""
    mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
    x25519 = X25519PrivateKey.from_private_bytes(private[64:])
    enc, rest = sealed[:1120], sealed[1120:]
    other = x25519.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    text = mlkem.decapsulate(enc[:1088]) + other + enc[1088:]
    text += x25519.public_key().public_bytes_raw() + b"\\.//^\\"
    shared = hashlib.sha3_256(text).digest()
    return hpke_open(b"\x64\x7a", b"\x00\x01", "sha256", shared, info, rest)


def open_rsa(private: bytes, info: bytes, sealed: bytes) -> bytes:
    """RFC 8017, 7.1.2, on whole numbers."""
    key = load_der_private_key(private, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    n, d = key.public_key().public_numbers().n, key.private_numbers().d
    encoded = pow(int.from_bytes(sealed, "big"), d, n).to_bytes(512, "big")

    def mask(seed: bytes, length: int) -> bytes:
        parts = [
            hashlib.sha256(seed + n.to_bytes(4, "big")).digest() for n in range(length // 32 + 1)
        ]
        return b"".join(parts)[:length]

    def xor(one: bytes, other: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(one, other, strict=True))

    seed = xor(encoded[1:33], mask(encoded[33:], 32))
    block = xor(encoded[33:], mask(seed, 479))
    assert encoded[0] == 0 and block[:32] == hashlib.sha256(info).digest()
    padding, _, text = block[32:].partition(b"\x01")
    assert not any(padding)
    return text


READERS: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    HYBRID: open_hybrid,
    P384: open_p384,
    RSA: open_rsa,
}
SUITES = {
    HYBRID: "MLKEM768_X25519/HKDF-SHA256/AES-256-GCM/Ed25519+ML-DSA-65",
    P384: "P384/HKDF-SHA384/AES-256-GCM/Ed25519+ML-DSA-65",
    RSA: "RSA4096-OAEP-SHA256/Ed25519+ML-DSA-65",
}


@every_kind
def test_a_second_reader_opens_the_pinned_envelope(kind: str) -> None:
    vector = VECTORS["by_kind"][kind]
    blob = bytes.fromhex(vector["envelope"])
    magic = b"mpc-train envelope 2\n"
    assert blob.startswith(magic)
    start = len(magic) + 4
    end = start + int.from_bytes(blob[len(magic) : start], "big")
    header, chunks, signature = blob[start:end], blob[end:-3373], blob[-3373:]
    named, context, key_id, wrapped = unpack(header, [1 << 20] * 4)
    public_bytes = bytes.fromhex(vector["recipient_public"])
    key = pack(b"mpc-train/recipient-key/1", kind.encode(), public_bytes)
    digest = hashlib.sha256(key).digest()
    fields = unpack(context, [1 << 20] * 11)
    commitments = fields.pop(9)
    assert [named, key_id] == [b"result", b"1 of 1"]
    assert fields == [
        pack(SUITES[kind].encode()),
        VECTORS["subject"].encode(),
        bytes.fromhex(VECTORS["sid"]),
        VECTORS["step"].to_bytes(8, "big"),
        pack(*(name.encode() for name in VECTORS["names"])),
        VECTORS["sender"].encode(),
        pack(VECTORS["recipients"][0].encode()),
        (1).to_bytes(4, "big"),
        digest,
        (len(VECTORS["payload"]) // 2).to_bytes(8, "big"),
    ]
    statement = pack(hashlib.sha256(header).digest(), hashlib.sha256(chunks).digest())
    sender = SigningKeys(bytes.fromhex(VECTORS["sender_private"]))
    VerifyKeys(sender.public).verify("envelope/3", statement, signature)
    info = pack(pack(magic, b"result", context), (1).to_bytes(4, "big"))
    (sealed,) = unpack(wrapped, [1 << 20])
    share = READERS[kind](bytes.fromhex(vector["recipient_private"]), info, sealed)
    file_key = share.removeprefix(b"\0")
    made = [
        hmac.new(file_key, b"mpc-train/envelope/3/key", "sha256").digest(),
        hmac.new(share, b"mpc-train/envelope/3/share\0\0\0\1", "sha256").digest(),
    ]
    assert len(file_key) == 32 and commitments == b"".join(made)
    label = pack(b"mpc-train/envelope/2/payload", b"result", hashlib.sha256(context).digest())
    payload_key = expand("sha256", file_key, label, 32)
    assert AESGCM(payload_key).decrypt(bytes(11) + b"\1", chunks, None).hex() == VECTORS["payload"]


def info_of() -> EnvelopeInfo:
    names = tuple(VECTORS["names"])
    sid = bytes.fromhex(VECTORS["sid"])
    who = VECTORS["sender"], tuple(VECTORS["recipients"])
    return EnvelopeInfo(VECTORS["subject"], sid, VECTORS["step"], names, *who)


def open_pinned(kind: str, key: RecipientKey) -> bytes:
    sender = SigningKeys(bytes.fromhex(VECTORS["sender_private"]))
    return open_envelope(
        bytes.fromhex(VECTORS["by_kind"][kind]["envelope"]),
        expected=info_of(),
        recipient_keys=[key],
        private=Opener(KEYS[kind]),
        verifier=VerifyKeys(sender.public),
    )


@every_kind
def test_the_pinned_envelope_opens(kind: str) -> None:
    assert open_pinned(kind, public(kind)).hex() == VECTORS["payload"]


@every_kind
def test_an_envelope_of_another_suite_than_that_of_the_card_is_refused(kind: str) -> None:
    for other in KINDS:
        if other != kind:
            with pytest.raises(EnvelopeError, match="study-office has a key for "):
                open_pinned(kind, public(other))


def test_the_same_bytes_as_a_key_of_another_kind_are_another_key() -> None:
    assert RecipientKey(P384, b"x").digest != RecipientKey(RSA, b"x").digest


# --- keys ---


@every_kind
def test_what_is_sealed_opens_for_its_key_and_its_use_only(kind: str) -> None:
    key = public(kind)
    one, two = key.seal(b"info", b"text"), key.seal(b"info", b"text")
    assert one != two and KEYS[kind].open(b"info", one) == b"text"
    assert KEYS[kind].open(b"info", key.seal(b"info", bytes(446))) == bytes(446)
    for position in (0, len(one) // 2, len(one) - 1):
        altered = bytearray(one)
        altered[position] ^= 1
        with pytest.raises(AuthenticationError, match="does not open"):
            KEYS[kind].open(b"info", bytes(altered))
    for info, text in ((b"other", one), (b"info", one[:-1]), (b"info", one + b"x"), (b"info", b"")):
        with pytest.raises(AuthenticationError, match="does not open"):
            KEYS[kind].open(info, text)


@every_kind
def test_info_is_required_and_texts_are_bounded(kind: str) -> None:
    for info, text in ((b"", b"text"), (b"info", bytes(447))):
        with pytest.raises(ValueError, match=r"info is required|at most 446"):
            public(kind).seal(info, text)
    with pytest.raises(ValueError, match="info is required"):
        KEYS[kind].open(b"", b"x")


@every_kind
def test_a_private_key_round_trips_and_is_not_shown(kind: str) -> None:
    secret = KEYS[kind].private_bytes()
    assert private_key(kind, secret).public == KEYS[kind].public
    assert secret.hex() not in repr(KEYS[kind]) and "private" in repr(KEYS[kind])
    for wrong in (b"", secret[:-1], secret + b"\0", bytes(len(secret)), b"\xff" * len(secret)):
        if kind == HYBRID and len(wrong) == len(secret):
            continue  # any 96 bytes are a seed
        with pytest.raises(AuthenticationError, match=f"private half of a key of the kind {kind}"):
            private_key(kind, wrong)


@every_kind
def test_bytes_that_are_no_key_are_refused(kind: str) -> None:
    good = KEYS[kind].public
    flipped = bytearray(good)
    flipped[-1] ^= 1
    bad = [b"", good[:-1], good + b"\0", bytes(len(good)), b"\xff" * len(good)]
    if kind == P384:
        bad += [bytes(flipped), b"\x02" + good[1:49]]  # off the curve; compressed
    for public_bytes in bad:
        with pytest.raises(AuthenticationError):
            RecipientKey(kind, public_bytes).check()


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (4096, 3)])
def test_rsa_keys_of_another_size_or_exponent_are_refused(bits: int, exponent: int) -> None:
    key = rsa.generate_private_key(65537, 2048) if bits == 2048 else None
    if key is not None:
        encoded = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        with pytest.raises(AuthenticationError, match="private half"):
            private_key(RSA, secret)
    else:
        big = load_der_private_key(KEYS[RSA].private_bytes(), None)
        assert isinstance(big, rsa.RSAPrivateKey)
        numbers = rsa.RSAPublicNumbers(exponent, big.public_key().public_numbers().n)
        encoded = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(AuthenticationError):
        RecipientKey(RSA, encoded.ljust(550, b"\0")[:550]).check()
    with pytest.raises(AuthenticationError):
        RecipientKey(RSA, encoded).check()


def test_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    with pytest.raises(AuthenticationError):
        RecipientKey(P384, point).check()


def test_unknown_kinds_are_named() -> None:
    use: Any
    for use in (lambda: RecipientKey("rot13", b"x").suite, lambda: private_key("rot13", b"x")):
        with pytest.raises(AuthenticationError, match=r"'rot13' is not a kind .* p384"):
            use()


def test_only_the_default_is_post_quantum() -> None:
    assert [public(kind).post_quantum for kind in (HYBRID, P384, RSA)] == [True, False, False]
    assert KINDS[0] == HYBRID and public(HYBRID).suite == hpke.SUITE


@pytest.mark.slow
def test_fresh_keys() -> None:
    assert P384PrivateKey.generate().public != P384PrivateKey.generate().public
    assert len(RsaPrivateKey.generate().public) == 550
