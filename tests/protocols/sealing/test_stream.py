"""Streams of sealed chunks: what was written comes out, whole and in order, or nothing does."""

import io
import os
from collections.abc import Callable
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import EnvelopeError
from protocols.sealing import stream
from protocols.sealing.stream import (
    OpeningReader,
    SealingWriter,
    open_chunks,
    plain_bytes,
    seal_chunks,
    sealed_bytes,
)

KEY = bytes(range(32))
CHUNK, TAG = 16, 16


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", CHUNK)


def sealed(plain: bytes, cuts: list[int] | None = None) -> bytes:
    """Written in pieces that end at `cuts`."""
    out = io.BytesIO()
    writer = SealingWriter(out, KEY)
    edges = [0, *sorted(cuts or []), len(plain)]
    for start, end in pairwise(edges):
        assert writer.write(plain[start:end]) == end - start
    writer.finish()
    assert writer.plain_bytes == len(plain)
    return out.getvalue()


def reader(data: bytes, key: bytes = KEY) -> OpeningReader:
    """The stream with other bytes around it."""
    return OpeningReader(io.BytesIO(b"before" + data + b"behind"), key, 6, 6 + len(data))


def by_hand(data: bytes) -> bytes:
    """The stream by its description, on the plain block cipher: counter mode from 2, no tags."""
    plain, last = b"", -(-len(data) // (CHUNK + TAG)) - 1
    for index in range(last + 1):
        piece = data[index * (CHUNK + TAG) : (index + 1) * (CHUNK + TAG)][:-TAG]
        nonce = index.to_bytes(11, "big") + (b"\1" if index == last else b"\0")
        cipher = Cipher(algorithms.AES(KEY), modes.CTR(nonce + b"\0\0\0\2"))
        plain += cipher.decryptor().update(piece)
    return plain


@given(st.binary(max_size=70), st.lists(st.integers(0, 70), max_size=4))
@settings(deadline=None)
def test_what_is_written_comes_out_however_it_is_cut(plain: bytes, cuts: list[int]) -> None:
    data = sealed(plain, [min(cut, len(plain)) for cut in cuts])
    assert data == seal_chunks(plain, KEY)
    assert len(data) == sealed_bytes(len(plain)) and plain_bytes(len(data)) == len(plain)
    assert open_chunks(data, KEY) == reader(data).read() == by_hand(data) == plain


@given(st.data())
@settings(deadline=None)
def test_any_part_can_be_read(data: st.DataObject) -> None:
    plain = bytes(range(80))[: data.draw(st.integers(0, 80))]
    opened = io.BufferedReader(reader(sealed(plain)), 8)
    for _ in range(4):
        start = data.draw(st.integers(0, 90))
        length = data.draw(st.integers(0, 40))
        opened.seek(start)
        assert opened.read(length) == plain[start : start + length]
    assert opened.seek(0, os.SEEK_END) == len(plain)
    with pytest.raises(ValueError, match="before the beginning"):
        reader(sealed(plain)).seek(-1)


PLAIN = bytes(range(50))


def moved(order: list[int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        pieces = [data[start : start + CHUNK + TAG] for start in range(0, len(data), CHUNK + TAG)]
        return b"".join(pieces[number] for number in order)

    return change


@pytest.mark.parametrize(
    "change",
    [
        moved([1, 0, 2, 3]),
        moved([0, 0, 2, 3]),
        moved([0, 1, 3]),
        moved([0, 1, 2]),
        moved([0, 1, 2, 3, 3]),
        moved([3]),
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[: -(50 % CHUNK + TAG)],
        lambda data: b"",
    ],
    ids=["swapped", "repeated", "dropped", "cut at a chunk", "last twice", "last only", "cut",
         "longer", "without the last", "nothing"],
)  # fmt: skip
def test_pieces_out_of_place_do_not_open(change: Callable[[bytes], bytes]) -> None:
    data = change(sealed(PLAIN))
    with pytest.raises(EnvelopeError):
        open_chunks(data, KEY)
    with pytest.raises(EnvelopeError):
        reader(data).read()


def test_a_stream_that_was_cut_off_gives_nothing_at_all() -> None:
    """Not its first chunks, which are whole, until the end is missed."""
    with pytest.raises(EnvelopeError, match="the stream: chunk 2 of 3 does not verify"):
        reader(moved([0, 1, 2])(sealed(PLAIN)))


def test_every_altered_byte_is_noticed() -> None:
    data = sealed(PLAIN)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(EnvelopeError, match=f"chunk {position // 32} of 4"):
            open_chunks(changed, KEY)
        with pytest.raises(EnvelopeError, match=f"chunk {position // 32} of 4"):
            reader(bytes(changed)).read()
    with pytest.raises(EnvelopeError):
        open_chunks(data, bytes(32))


def test_without_its_end_a_stream_does_not_open() -> None:
    for size in (0, 1, CHUNK, CHUNK + 1, 3 * CHUNK):
        out = io.BytesIO()
        SealingWriter(out, KEY).write(bytes(size))
        with pytest.raises(EnvelopeError):
            open_chunks(out.getvalue(), KEY)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_arbitrary_bytes_cause_only_our_error(data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        open_chunks(data, KEY)
    with pytest.raises(EnvelopeError):
        reader(data)


def test_no_nonce_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []
    made = stream._nonce

    def recorded(index: int, is_last: bool) -> bytes:
        nonces.append(made(index, is_last))
        return nonces[-1]

    monkeypatch.setattr(stream, "_nonce", recorded)
    sealed(bytes(5 * CHUNK), [3, 40])
    assert len(set(nonces)) == len(nonces) == 5
