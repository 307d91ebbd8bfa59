"""AEAD records: vectors, properties, and every way in which a record may not fit."""

import copy
import hmac
import json
from array import array
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import AuthenticationError, FrameError, MaskReuseError
from protocols.sealing import record
from protocols.sealing.record import RecordOpener, RecordSealer, record_context

KEY = bytes(range(32))
CONTEXT = record_context(b"s" * 32, "hospital-a", "bank-b")
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())


def pair() -> tuple[RecordSealer, RecordOpener]:
    return RecordSealer(KEY, CONTEXT), RecordOpener(KEY, CONTEXT)


def second_implementation(
    key: bytes, context: bytes, number: int, label: bytes, text: bytes
) -> bytes:
    nonce = number.to_bytes(12, "big")
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(len(context).to_bytes(4, "big") + context + label)
    return encryptor.update(text) + encryptor.finalize() + encryptor.tag


def test_vectors_agree_with_a_second_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = VECTORS["records"]
    key, context = bytes.fromhex(vector["key"]), bytes.fromhex(vector["context"])
    monkeypatch.setattr(record, "REKEY_RECORDS", vector["rekey_records"])
    opener, sealer = RecordOpener(key, context), RecordSealer(key, context)
    current = key
    for number, entry in enumerate(vector["records"]):
        if number and number % vector["rekey_records"] == 0:
            current = hmac.digest(current, b"mpc-train/record/1/rekey\x01", "sha256")
        label, text = entry["label"].encode(), bytes.fromhex(entry["payload"])
        sealed = bytes.fromhex(entry["sealed"])
        assert sealed == second_implementation(current, context, number, label, text)
        assert sealer.seal(label, text) == sealed
        assert opener.open(label, sealed) == text


@given(st.lists(st.tuples(st.binary(max_size=64), st.binary(max_size=300)), max_size=12))
def test_what_is_sealed_opens_in_order(frames: list[tuple[bytes, bytes]]) -> None:
    sealer, opener = pair()
    sealed = [sealer.seal(label, payload) for label, payload in frames]
    for (label, payload), ciphertext in zip(frames, sealed, strict=True):
        assert opener.open(label, ciphertext) == payload
        assert len(ciphertext) == len(payload) + record.TAG_BYTES


def test_any_buffer_is_sealed_and_what_opens_is_writable() -> None:
    sealer, opener = pair()
    numbers = array("q", range(100))
    for payload in (numbers.tobytes(), bytearray(numbers), memoryview(numbers)):
        opened = opener.open(b"x", memoryview(sealer.seal(b"x", payload)))
        assert opened.cast("q").tolist() == list(range(100))
        opened[0] = 1


def test_volume_rekeys_both_ends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "REKEY_BYTES", 100)
    sealer, opener = pair()
    seen = {sealer._key}
    for size in (60, 40, 1, 99, 1, 500, 0, 1):
        assert opener.open(b"", sealer.seal(b"", bytes(size))) == bytes(size)
        seen.add(sealer._key)
        assert sealer._key == opener._key
    assert len(seen) == 5  # a new key before the sizes 1, 1, 500 and 0 that do not fit the volume


def test_equal_frames_never_give_equal_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "REKEY_RECORDS", 7)
    sealer, _ = pair()
    assert len({sealer.seal(b"l", b"same") for _ in range(100)}) == 100


@given(st.data())
def test_one_changed_byte_is_refused_and_ends_the_direction(data: st.DataObject) -> None:
    sealer, opener = pair()
    payload = data.draw(st.binary(max_size=100))
    sealed = bytearray(sealer.seal(b"label", payload))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuthenticationError):
        opener.open(b"label", sealed)
    with pytest.raises(AuthenticationError):
        opener.open(b"label", sealer.seal(b"label", payload))


@pytest.mark.parametrize(
    ("accepted", "refused"),
    [([0], 0), ([], 1), ([0], 2), ([0, 1], 0), ([0, 1], 1)],
    ids=["replayed", "first dropped", "dropped", "replayed later", "replayed last"],
)
def test_replayed_dropped_and_reordered_records_are_refused(
    accepted: list[int], refused: int
) -> None:
    sealer, opener = pair()
    sealed = [sealer.seal(b"l", b"text") for _ in range(3)]
    for number in accepted:
        opener.open(b"l", sealed[number])
    with pytest.raises(AuthenticationError):
        opener.open(b"l", sealed[refused])


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 20])
def test_truncated_and_extended_records_are_refused(cut: int) -> None:
    sealer, opener = pair()
    with pytest.raises(AuthenticationError):
        opener.open(b"l", sealer.seal(b"l", b"text")[:-cut])
    sealer, opener = pair()
    with pytest.raises(AuthenticationError):
        opener.open(b"l", sealer.seal(b"l", b"text") + bytes(cut))


@pytest.mark.parametrize(
    "context",
    [
        record_context(b"t" * 32, "hospital-a", "bank-b"),
        record_context(b"s" * 32, "bank-b", "hospital-a"),
        record_context(b"s" * 32, "hospital-a", "bank-c"),
        record_context(b"s" * 32, "hospital-", "abank-b"),
    ],
)
def test_a_record_of_another_session_direction_or_pair_is_refused(context: bytes) -> None:
    with pytest.raises(AuthenticationError):
        RecordOpener(KEY, context).open(b"l", RecordSealer(KEY, CONTEXT).seal(b"l", b"text"))


def test_another_label_or_key_is_refused() -> None:
    sealer, opener = pair()
    with pytest.raises(AuthenticationError):
        opener.open(b"step-2", sealer.seal(b"step-1", b"text"))
    with pytest.raises(AuthenticationError):
        RecordOpener(bytes(32), CONTEXT).open(b"l", RecordSealer(KEY, CONTEXT).seal(b"l", b"t"))


def test_context_and_label_cannot_borrow_bytes_from_each_other() -> None:
    sealed = RecordSealer(KEY, b"context").seal(b"label", b"text")
    with pytest.raises(AuthenticationError):
        RecordOpener(KEY, b"contextl").open(b"abel", sealed)


def test_bounds_are_refused_without_using_up_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 100)
    sealer, opener = pair()
    with pytest.raises(FrameError):
        sealer.seal(b"x" * 65, b"")
    with pytest.raises(FrameError):
        sealer.seal(b"x", bytes(101))
    assert opener.open(b"x" * 64, sealer.seal(b"x" * 64, bytes(100))) == bytes(100)
    with pytest.raises(AuthenticationError):
        opener.open(b"", bytes(117))


def test_a_call_that_failed_half_way_ends_the_direction() -> None:
    sealer, _ = pair()
    with pytest.raises((TypeError, BufferError)):
        sealer.seal(b"l", "text")  # type: ignore[arg-type]
    with pytest.raises(MaskReuseError):
        sealer.seal(b"l", b"text")


def test_a_direction_is_never_copied() -> None:
    for direction in pair():
        for attempt in (copy.copy, copy.deepcopy, type(direction).__reduce__):
            with pytest.raises(TypeError, match="never copied"):
                attempt(direction)


def test_repr_and_wrong_keys_show_no_secret() -> None:
    sealer, _ = pair()
    assert KEY.hex() not in repr(sealer) and repr(KEY) not in repr(sealer)
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        RecordSealer(KEY[:31], CONTEXT)


@given(st.binary(max_size=200), st.binary(max_size=80))
def test_arbitrary_bytes_cause_only_our_error(ciphertext: bytes, label: bytes) -> None:
    with pytest.raises(AuthenticationError):
        pair()[1].open(label, ciphertext)


def test_a_key_is_replaced_on_demand_and_numbers_go_on() -> None:
    """By HKDF of itself or by a fresh one: no nonce meets a key twice."""
    sealer, opener = pair()
    used: list[tuple[bytes, int]] = []
    for step in range(6):
        for _ in range(2):
            used.append((sealer._key, sealer._records))
            assert bytes(opener.open(b"label", sealer.seal(b"label", b"text"))) == b"text"
        for end in (sealer, opener):
            if step % 2:
                end.replace(bytes([step]) * 32)
            else:
                end.advance()
        assert sealer._epoch_records == 0
    assert len({key for key, _ in used}) == 6
    assert [number for _, number in used] == list(range(12))
    assert sealer._key not in {key for key, _ in used}
    with pytest.raises(ValueError, match="has 32 bytes"):
        sealer.replace(bytes(31))


def test_ends_that_replace_at_different_records_part() -> None:
    sealer, opener = pair()
    sealer.advance()
    with pytest.raises(AuthenticationError):
        opener.open(b"label", sealer.seal(b"label", b"text"))
