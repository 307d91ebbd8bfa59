"""Streams: the keystream that the definition says, read forwards once."""

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import MaskReuseError
from protocols.roles.streams import CHUNK_BYTES, PIECE_BYTES, TAG_BYTES, Stream

ROOT = bytes(range(32))


def begun(step: int = 0, root: bytes = ROOT) -> Stream:
    stream = Stream(root)
    stream.begin_step(step)
    return stream


def keystream(step: int, piece: int, count: int) -> bytes:
    """From HKDF and AES-CTR themselves."""
    info = b"mpc-train stream v1" + step.to_bytes(8, "big")
    key = HKDFExpand(hashes.SHA256(), 32, info).derive(ROOT)
    first = piece.to_bytes(12, "big") + (2).to_bytes(4, "big")
    return Cipher(algorithms.AES(key), modes.CTR(first)).encryptor().update(bytes(count))


def test_vector() -> None:
    for step in (0, 7):
        assert begun(step).octets(48).tobytes() == keystream(step, 0, 48)
    assert begun().octets(8).tobytes().hex() == "0366a8109b087624"


def test_pieces_of_a_long_draw() -> None:
    count = 2 * PIECE_BYTES + 24
    stream = begun()
    sizes = (PIECE_BYTES, PIECE_BYTES, 24)
    pieces = b"".join(keystream(0, place, size) for place, size in enumerate(sizes))
    assert stream.octets(count).tobytes() == pieces
    assert stream.octets(8).tobytes() == keystream(0, 3, 8)


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=8))
def test_both_ends_draw_the_same_and_never_the_same_again(sizes: list[int]) -> None:
    mine, theirs = begun(), begun()
    drawn = [mine.octets(size).tobytes() for size in sizes]
    assert drawn == [theirs.octets(size).tobytes() for size in sizes]
    long = [part for part in drawn if len(part) >= 16]
    assert len(set(long)) == len(long)
    everything = b"".join(long)
    blocks = [part[:16] for part in long]
    assert all(everything.count(block) == 1 for block in blocks)


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=5))
def test_masked_in_one_pass(sizes: list[int]) -> None:
    """The same draw as by itself, added to bytes that stay as they are."""
    mine, theirs = begun(), begun()
    for size in sizes:
        octets = np.arange(size).astype(np.uint8)
        room = np.empty(size + TAG_BYTES, np.uint8)
        mine.xor_octets(octets, room)
        np.testing.assert_array_equal(room[:size], theirs.octets(size) ^ octets)
        np.testing.assert_array_equal(octets, np.arange(size).astype(np.uint8))
    assert mine.octets(8).tobytes() == theirs.octets(8).tobytes()


def test_draws_do_not_overlap() -> None:
    """Words drawn in small and in large pieces are all different, and stay as they were."""
    stream = begun()
    pieces = [stream.words(count) for count in (1, 3, 5000, 2, 20000, 1, 7)]
    copies = [piece.copy() for piece in pieces]
    stream.words(30000)
    for piece, copied in zip(pieces, copies, strict=True):
        np.testing.assert_array_equal(piece, copied)
    together = np.concatenate(pieces)
    assert len(np.unique(together)) == len(together)


def test_steps_and_roots_are_separate() -> None:
    first = begun(0).octets(64).tobytes()
    assert begun(1).octets(64).tobytes() != first
    assert begun(0, bytes(32)).octets(64).tobytes() != first


def test_a_step_begins_once() -> None:
    stream = begun(3)
    for step in (3, 2, 0, -1):
        with pytest.raises(MaskReuseError):
            stream.begin_step(step)
    stream.begin_step(4)


def test_nothing_before_the_first_step() -> None:
    with pytest.raises(MaskReuseError):
        Stream(ROOT).words(1)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_root_length(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(bytes(size))


def test_repr_shows_no_key() -> None:
    assert repr(begun(5)) == "Stream(step=5)"


def test_octets_are_padded_to_words() -> None:
    """Both draw in whole words, so that mixed draws stay aligned."""
    mine, theirs = begun(), begun()
    mine.octets(3)
    theirs.octets(8)
    np.testing.assert_array_equal(mine.words(4), theirs.words(4))
