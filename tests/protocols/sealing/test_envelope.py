"""Sealed envelopes and bundles: whatever is altered, foreign or misplaced is one EnvelopeError."""

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.canonical import pack, unpack
from protocols.errors import EnvelopeError, ProtocolError
from protocols.sealing import bundle, container, envelope, stream
from protocols.sealing.bundle import pack_bundle, unpack_bundle
from protocols.sealing.container import MAGIC
from protocols.sealing.envelope import (
    EnvelopeInfo,
    open_envelope,
    open_share,
    open_together,
    read_info,
    seal_envelope,
)
from protocols.sealing.hpke import HybridPrivateKey
from protocols.sealing.recipient_keys import HYBRID, RecipientKey
from protocols.sealing.signatures import SIGNATURE_BYTES, SigningKeys, VerifyKeys

SENDER, EVE = SigningKeys(b"\x01" * 64), SigningKeys(b"\x02" * 64)
RECIPIENT, OUTSIDER = HybridPrivateKey(b"\x03" * 96), HybridPrivateKey(b"\x04" * 96)
KEY = RecipientKey(HYBRID, RECIPIENT.public)
INFO = EnvelopeInfo("a model", b"s" * 32, 40, ("weight", "bias"), "hospital-a", ("study-office",))
PAYLOAD = bytes(range(256)) * 3


class Opener:
    """The recipient's key, behind the seam that a vault has; counts its uses."""

    def __init__(self, key: HybridPrivateKey = RECIPIENT) -> None:
        self.key = key
        self.uses = 0

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        self.uses += 1
        return self.key.open(info, ciphertext)


def seal(
    payload: bytes = PAYLOAD, info: EnvelopeInfo = INFO, signer: SigningKeys = SENDER
) -> bytes:
    return seal_envelope(payload, info=info, recipient_keys=[KEY], signer=signer)


def unseal(
    blob: bytes,
    *,
    expected: EnvelopeInfo = INFO,
    key: HybridPrivateKey = RECIPIENT,
    public: RecipientKey = KEY,
    sender: SigningKeys = SENDER,
    opener: Opener | None = None,
) -> bytes:
    return open_envelope(
        blob,
        expected=expected,
        recipient_keys=[public],
        private=opener or Opener(key),
        verifier=VerifyKeys(sender.public),
    )


def split(blob: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, chunks and signatures."""
    start = len(MAGIC) + 4
    end = start + int.from_bytes(blob[len(MAGIC) : start], "big")
    return blob[start:end], blob[end:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]


def join(header: bytes, chunks: bytes, signer: SigningKeys) -> bytes:
    """Signed anew: what a sender that does not follow the format could produce."""
    statement = pack(sha256(header).digest(), sha256(chunks).digest())
    signature = signer.sign("envelope/3", statement)
    return MAGIC + len(header).to_bytes(4, "big") + header + chunks + signature


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


@given(st.integers(0, 70))
@settings(max_examples=30, deadline=None)
def test_what_is_sealed_opens(size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_BYTES", 16)
        assert unseal(seal(bytes(range(size)))) == bytes(range(size))


def test_large_payloads_and_views_open() -> None:
    payload = bytes(range(256)) * 8193  # a little more than two chunks
    assert unseal(seal(memoryview(bytearray(payload)))) == payload  # type: ignore[arg-type]


def test_sealing_twice_gives_other_bytes() -> None:
    one, two = split(seal()), split(seal())
    assert one[0] != two[0] and one[1] != two[1]


def test_an_envelope_says_what_it_is() -> None:
    assert read_info(seal()) == INFO


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sid", b"t" * 32),
        ("step", 41),
        ("names", ("weight",)),
        ("names", ("bias", "weight")),
        ("sender", "bank-b"),
        ("recipients", ("bank-b",)),
    ],
)
def test_an_envelope_for_another_use_is_refused(field: str, value: object) -> None:
    with pytest.raises(EnvelopeError, match=f"without the expected {field}"):
        unseal(seal(), expected=replace(INFO, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sid", b"t" * 32),
        ("step", 41),
        ("names", ("w",)),
        ("sender", "eve"),
        ("recipients", ("eve",)),
    ],
)
def test_a_header_rewritten_and_signed_anew_does_not_open(field: str, value: object) -> None:
    """Eve passes another's sealed payload for her own, or for another step: HPKE's info differs."""
    changed = replace(INFO, **{field: value})  # type: ignore[arg-type]
    header, chunks, _ = split(seal())
    kind, _, key_id, wrapped_key = unpack(header, [1 << 20] * 4)
    context = envelope._context(changed, [KEY], envelope._split(seal()).commitments, len(PAYLOAD))
    other = pack(kind, context, key_id, wrapped_key)
    with pytest.raises(EnvelopeError, match="file key does not open"):
        unseal(join(other, chunks, EVE), expected=changed, sender=EVE)


def test_another_key_of_the_recipient_is_refused() -> None:
    with pytest.raises(EnvelopeError, match="another key of study-office"):
        unseal(seal(), key=OUTSIDER, public=RecipientKey(HYBRID, OUTSIDER.public))
    with pytest.raises(EnvelopeError, match="file key does not open"):
        unseal(seal(), key=OUTSIDER)


def test_another_sender_is_refused_before_anything_is_decrypted() -> None:
    opener = Opener()
    for blob in (
        seal(signer=EVE),
        flip(seal(), -1),
        flip(seal(), len(seal()) - SIGNATURE_BYTES - 1),
    ):
        with pytest.raises(EnvelopeError, match="hospital-a did not sign"):
            unseal(blob, opener=opener)
    assert opener.uses == 0


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_altered_byte_is_refused(data: st.DataObject) -> None:
    blob = SEALED
    position = data.draw(st.integers(0, len(blob) - 1))
    with pytest.raises(EnvelopeError):
        unseal(flip(blob, position, data.draw(st.integers(1, 255))))


def test_every_altered_header_byte_is_refused() -> None:
    end = len(MAGIC) + 4 + len(split(SEALED)[0])
    for position in range(0, end, 7):
        with pytest.raises(EnvelopeError):
            unseal(flip(SEALED, position))


@given(st.integers(0, 5500))
@settings(max_examples=60, deadline=None)
def test_truncated_and_extended_files_are_refused(size: int) -> None:
    with pytest.raises(EnvelopeError):
        unseal(SEALED[: min(size, len(SEALED) - 1)])
    with pytest.raises(EnvelopeError):
        unseal(SEALED + bytes(size + 1))


@pytest.mark.parametrize(
    ("order", "failing"), [([1, 0, 2], 0), ([0, 2, 1], 1), ([0, 0, 2], 1), ([2, 1, 0], 0)]
)
def test_chunks_out_of_place_do_not_open_even_if_signed(
    monkeypatch: pytest.MonkeyPatch, order: list[int], failing: int
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 16)
    header, chunks, _ = split(seal(bytes(48)))
    pieces = [chunks[start : start + 32] for start in range(0, 96, 32)]
    shuffled = b"".join(pieces[number] for number in order)
    with pytest.raises(EnvelopeError, match=f"chunk {failing} of 3"):
        unseal(join(header, shuffled, SENDER))


def test_sizes_that_do_not_fit_the_file_are_refused_before_allocation() -> None:
    header, chunks, _ = split(seal())
    kind, context, *rest = unpack(header, [1 << 20] * 4)
    for size in (0, 767, 769, 1 << 36, (1 << 64) - 1):
        other = pack(kind, context[:-8] + size.to_bytes(8, "big"), *rest)
        with pytest.raises(EnvelopeError, match="cut off or has too many bytes"):
            unseal(join(other, chunks, SENDER))


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_cause_only_our_error(data: bytes, with_magic: bool) -> None:
    blob = MAGIC + len(data).to_bytes(4, "big") + data if with_magic else data
    for attempt in (read_info, unseal, unpack_bundle):
        with pytest.raises(EnvelopeError):
            attempt(blob)


@given(st.lists(st.binary(max_size=40), min_size=4, max_size=4))
def test_arbitrary_header_fields_cause_only_our_error(fields: list[bytes]) -> None:
    with pytest.raises(EnvelopeError):
        unseal(join(pack(*fields), b"", SENDER))


@pytest.mark.parametrize(
    "change",
    [
        {"sid": b""},
        {"step": -1},
        {"step": 1 << 64},
        {"sender": "x" * 129},
        {"names": ("twice", "twice")},
        {"names": ("",)},
        {"names": ("x" * 257,)},
        {"names": tuple(f"{n:0250d}" for n in range(17000))},
        {"names": tuple(str(n) for n in range(65537))},
    ],
)
def test_bad_facts_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(EnvelopeError):
        replace(INFO, **change)  # type: ignore[arg-type]


def test_a_bad_recipient_key_is_refused() -> None:
    for public in (b"", bytes(1216), RECIPIENT.public[:-1], RECIPIENT.public[:-32] + bytes(32)):
        with pytest.raises(EnvelopeError, match="the key of study-office"):
            key = RecipientKey(HYBRID, public)
            seal_envelope(b"x", info=INFO, recipient_keys=[key], signer=SENDER)


# --- several recipients together ---

NAMES = ("ann", "bob", "cleo")
PRIVATE = {name: HybridPrivateKey(bytes([number]) * 96) for number, name in enumerate(NAMES, 5)}
GROUP_KEYS = [RecipientKey(HYBRID, PRIVATE[name].public) for name in NAMES]
TOGETHER = replace(INFO, recipients=NAMES, threshold=2)


def sealed_to_group(info: EnvelopeInfo = TOGETHER) -> bytes:
    return seal_envelope(PAYLOAD, info=info, recipient_keys=GROUP_KEYS, signer=SENDER)


def share_of(name: str, blob: bytes, key: HybridPrivateKey | None = None) -> bytes:
    return open_share(
        blob,
        me=name,
        expected=TOGETHER,
        recipient_keys=GROUP_KEYS,
        private=Opener(key or PRIVATE[name]),
        verifier=VerifyKeys(SENDER.public),
    )


def together(blob: bytes, shares: dict[str, bytes]) -> bytes:
    return open_together(
        blob,
        shares,
        expected=TOGETHER,
        recipient_keys=GROUP_KEYS,
        verifier=VerifyKeys(SENDER.public),
    )


def test_any_two_of_three_open_it_and_one_does_not() -> None:
    blob = sealed_to_group()
    shares = {name: share_of(name, blob) for name in NAMES}
    for left_out in NAMES:
        some = {name: share for name, share in shares.items() if name != left_out}
        assert together(blob, some) == PAYLOAD
        with pytest.raises(EnvelopeError, match="2 of ann, bob, cleo open it together"):
            together(blob, {left_out: shares[left_out]})
    assert together(blob, shares) == PAYLOAD
    with pytest.raises(EnvelopeError, match="without the expected threshold"):
        open_together(
            blob,
            {"ann": shares["ann"]},
            expected=replace(INFO, recipients=NAMES, threshold=3),
            recipient_keys=GROUP_KEYS,
            verifier=VerifyKeys(SENDER.public),
        )


def test_a_share_is_not_the_key() -> None:
    """One recipient's share says nothing: it opens no chunk, as key or by its bytes."""
    blob = sealed_to_group()
    header, _ = container.split(blob, container.RESULT)
    share = share_of("ann", blob)
    parts = envelope._split(blob)
    for guess in (share[:32], share[1:]):
        with pytest.raises(EnvelopeError, match="does not verify"):
            stream.open_chunks(parts.chunks, header.payload_key(guess))


def test_a_wrong_share_is_named() -> None:
    blob = sealed_to_group()
    shares = {name: share_of(name, blob) for name in NAMES}
    for wrong in (flip(shares["bob"], 5), shares["cleo"], share_of("bob", sealed_to_group()), b""):
        with pytest.raises(EnvelopeError, match="the share of bob is not the one"):
            together(blob, {**shares, "bob": wrong})


def test_a_share_opens_for_its_recipient_only() -> None:
    blob = sealed_to_group()
    with pytest.raises(EnvelopeError, match="file key does not open"):
        share_of("ann", blob, PRIVATE["bob"])


def test_a_sender_whose_shares_do_not_fit_together_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise two choices of recipients could open two models."""
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "split_secret", lambda *_: [bytes([0, *[n] * 32]) for n in NUMBERS])
        blob = sealed_to_group()
    shares = {name: share_of(name, blob) for name in NAMES}
    with pytest.raises(EnvelopeError, match="the shares that hospital-a sealed: they give another"):
        together(blob, shares)
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "_commitments", lambda key, shares: [b"\0" * 32] * 4)
        blob = sealed_to_group()
    with pytest.raises(EnvelopeError, match="hospital-a sealed to ann a share that it did not"):
        share_of("ann", blob)


NUMBERS = (1, 7, 9)


def test_a_group_of_recipients_is_bound_to_the_envelope() -> None:
    blob = sealed_to_group()
    with pytest.raises(EnvelopeError, match="without the expected recipients"):
        unseal(blob)
    for change in (
        {"recipients": ("ann", "ann")},
        {"recipients": ()},
        {"threshold": 4},
        {"threshold": 0},
        {"threshold": 1},
        {"recipients": tuple(f"r{n}" for n in range(65))},
    ):
        with pytest.raises(EnvelopeError):
            replace(TOGETHER, **change)
    with pytest.raises(EnvelopeError, match="one key for each recipient"):
        seal_envelope(PAYLOAD, info=TOGETHER, recipient_keys=GROUP_KEYS[:2], signer=SENDER)


def test_every_altered_byte_of_a_group_header_is_refused() -> None:
    blob = sealed_to_group()
    end = len(MAGIC) + 4 + len(split(blob)[0])
    for position in range(0, end, 41):
        with pytest.raises(EnvelopeError):
            share_of("ann", flip(blob, position))


def test_errors_show_nothing_of_the_payload() -> None:
    payload = b"the secret weight of the model"
    blob = seal(payload)
    for position in range(0, len(blob), 97):
        with pytest.raises(EnvelopeError) as caught:
            unseal(flip(blob, position))
        assert "secret weight" not in str(caught.value)


@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), min_size=1, max_size=6))
def test_bundles_unpack_to_what_was_packed(record: bytes, envelopes: list[bytes]) -> None:
    data = pack_bundle(record, envelopes)
    assert unpack_bundle(data) == (record, envelopes)
    for cut in range(len(data)):
        with pytest.raises(EnvelopeError):
            unpack_bundle(data[:cut])
    with pytest.raises(EnvelopeError, match="follow the last"):
        unpack_bundle(data + b"\0")


@given(st.binary(max_size=60))
def test_whatever_unpacks_as_a_bundle_is_canonical(data: bytes) -> None:
    try:
        record, envelopes = unpack_bundle(bundle.MAGIC + data)
    except ProtocolError as error:
        assert type(error) is EnvelopeError
        return
    assert pack_bundle(record, envelopes) == bundle.MAGIC + data


def test_bundles_have_bounds() -> None:
    for count in (0, bundle.MAX_ENVELOPES + 1):
        with pytest.raises(EnvelopeError, match="holds 1 to"):
            pack_bundle(b"", [b""] * count)
        with pytest.raises(EnvelopeError, match="holds 1 to"):
            unpack_bundle(bundle.MAGIC + bytes(8) + count.to_bytes(4, "big") + bytes(8 * count))
    for huge in (bytes(8) + b"\0\0\0\1" + b"\xff" * 8, b"\xff" * 12):
        with pytest.raises(EnvelopeError, match="cut off"):
            unpack_bundle(bundle.MAGIC + huge)


SEALED = seal()
