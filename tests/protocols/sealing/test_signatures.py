"""Paired signatures, HPKE sealing and canonical fields: properties and negatives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.canonical import decode_text, pack, pack_texts, unpack, unpack_texts
from protocols.errors import AuthenticationError, FrameError
from protocols.sealing import hpke
from protocols.sealing.hpke import HybridPrivateKey
from protocols.sealing.signatures import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKeys, VerifyKeys

KEYS = SigningKeys(b"\x07" * 64)
OTHER = SigningKeys(b"\x08" * 64)
SEAL_KEY = HybridPrivateKey(b"\x09" * 96)


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


def test_a_pair_of_signatures_verifies() -> None:
    signature = KEYS.sign("purpose", b"message")
    assert len(signature) == SIGNATURE_BYTES
    VerifyKeys(KEYS.public).verify("purpose", b"message", signature)


@pytest.mark.parametrize("position", [0, 63, 64, 2000, SIGNATURE_BYTES - 1])
def test_each_half_alone_is_not_enough(position: int) -> None:
    signature = flip(KEYS.sign("purpose", b"message"), position)
    with pytest.raises(AuthenticationError, match="purpose"):
        VerifyKeys(KEYS.public).verify("purpose", b"message", signature)


def test_halves_of_two_signers_do_not_mix() -> None:
    ours, theirs = KEYS.sign("p", b"m"), OTHER.sign("p", b"m")
    mixed = ours[:64] + theirs[64:]
    for keys in (KEYS.public, OTHER.public):
        with pytest.raises(AuthenticationError):
            VerifyKeys(keys).verify("p", b"m", mixed)
    VerifyKeys(KEYS.public[:32] + OTHER.public[32:]).verify("p", b"m", mixed)


def test_purpose_and_message_are_bound() -> None:
    signature = KEYS.sign("purpose", b"message")
    for purpose, message in (("other", b"message"), ("purpose", b"other"), ("purposem", b"essage")):
        with pytest.raises(AuthenticationError):
            VerifyKeys(KEYS.public).verify(purpose, message, signature)


@given(st.binary(max_size=100))
def test_arbitrary_signatures_and_keys_cause_only_our_error(data: bytes) -> None:
    with pytest.raises(AuthenticationError):
        VerifyKeys(KEYS.public).verify("p", b"m", data)
    with pytest.raises(AuthenticationError):
        VerifyKeys(data)


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_degenerate_verification_keys_verify_nothing(fill: int) -> None:
    with pytest.raises(AuthenticationError):
        VerifyKeys(bytes([fill]) * PUBLIC_BYTES).verify("p", b"m", bytes(SIGNATURE_BYTES))


def test_sealed_text_opens_with_the_same_info_only() -> None:
    sealed = hpke.seal(SEAL_KEY.public, b"info", b"text")
    assert len(sealed) == 4 + hpke.OVERHEAD_BYTES
    assert SEAL_KEY.open(b"info", sealed) == b"text"
    for key, info in ((SEAL_KEY, b"other"), (HybridPrivateKey.generate(), b"info")):
        with pytest.raises(AuthenticationError):
            key.open(info, sealed)


@given(st.integers(0, 4 + hpke.OVERHEAD_BYTES - 1), st.integers(1, 255))
@settings(max_examples=50)
def test_every_altered_byte_of_a_sealed_text_is_refused(position: int, mask: int) -> None:
    sealed = hpke.seal(SEAL_KEY.public, b"info", b"text")
    with pytest.raises(AuthenticationError):
        SEAL_KEY.open(b"info", flip(sealed, position, mask))


@given(st.binary(max_size=1300))
@settings(max_examples=50)
def test_arbitrary_sealed_texts_and_keys_cause_only_our_error(data: bytes) -> None:
    with pytest.raises(AuthenticationError):
        SEAL_KEY.open(b"info", data)
    with pytest.raises(AuthenticationError):
        hpke.seal(data, b"info", b"text")


@pytest.mark.parametrize(
    "public",
    [
        SEAL_KEY.public[: hpke.MLKEM_PUBLIC_BYTES] + bytes(32),
        SEAL_KEY.public[: hpke.MLKEM_PUBLIC_BYTES] + b"\x01" + bytes(31),
        b"\xff" * hpke.MLKEM_PUBLIC_BYTES + SEAL_KEY.public[hpke.MLKEM_PUBLIC_BYTES :],
        SEAL_KEY.public[:-1],
        SEAL_KEY.public + b"\0",
    ],
)
def test_unusable_public_keys_are_told_early(public: bytes) -> None:
    with pytest.raises(AuthenticationError):
        hpke.check_public(public)


@pytest.mark.parametrize(
    "point", [bytes(32), b"\x01" + bytes(31), b"\xed" + b"\xff" * 30 + b"\x7f"]
)
def test_a_low_order_point_in_a_sealed_text_is_our_error(point: bytes) -> None:
    sealed = hpke.seal(SEAL_KEY.public, b"info", b"text")
    with pytest.raises(AuthenticationError):
        SEAL_KEY.open(b"info", sealed[:1088] + point + sealed[1120:])


def test_info_is_required() -> None:
    with pytest.raises(ValueError, match="info is required"):
        hpke.seal(SEAL_KEY.public, b"", b"text")
    with pytest.raises(ValueError, match="info is required"):
        SEAL_KEY.open(b"", b"text")


def test_private_keys_do_not_show() -> None:
    shown = repr(KEYS) + repr(SEAL_KEY)
    for secret in (KEYS.private_bytes(), SEAL_KEY.private_bytes()):
        assert secret.hex() not in shown and repr(secret) not in shown


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_fields_survive(fields: list[bytes]) -> None:
    assert unpack(pack(*fields), [20] * len(fields)) == fields


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_different_fields_never_give_the_same_bytes(one: list[bytes], two: list[bytes]) -> None:
    assert (pack(*one) == pack(*two)) == (one == two)


@given(st.binary(max_size=40), st.integers(0, 4))
def test_whatever_unpacks_is_canonical(data: bytes, count: int) -> None:
    try:
        fields = unpack(data, [8] * count)
    except FrameError:
        return
    assert pack(*fields) == data and all(len(field) <= 8 for field in fields)


@given(st.binary(max_size=40))
def test_whatever_unpacks_as_texts_is_canonical(data: bytes) -> None:
    try:
        texts = unpack_texts(data, 3, 8)
    except FrameError:
        return
    assert pack_texts(texts) == data and len(texts) <= 3


def test_texts_that_are_no_texts_are_refused() -> None:
    with pytest.raises(FrameError, match="UTF-8"):
        decode_text(b"\xff")
    with pytest.raises(FrameError, match="more than 2"):
        unpack_texts(pack_texts(["a", "b", "c"]), 2, 8)
