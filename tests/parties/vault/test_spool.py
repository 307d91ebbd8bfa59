"""Frames stored ahead: in order, each once, bounded, and worth nothing without the process."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.errors import VaultError
from parties.vault import spool as module
from parties.vault.spool import Spool

SID = b"s" * 32
FRAMES = [(b"label %d" % k, os.urandom(k * 100)) for k in range(20)]


def opened(folder: Path, most: int = 1 << 30) -> Spool:
    return Spool(folder, SID, most)


def filled(folder: Path) -> Spool:
    spool = opened(folder)
    for label, payload in FRAMES:
        spool.put(label, payload)
    return spool


@pytest.mark.parametrize("segment", [1, 1000, 64 << 20])
def test_frames_come_back_in_order_and_once(
    tmp_path: Path, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", segment)
    spool = filled(tmp_path)
    found = [spool.take() for _ in FRAMES]
    assert [(label, bytes(payload)) for label, payload in found] == FRAMES
    with pytest.raises(VaultError, match="more material than the dealer stored"):
        spool.take()


@given(frames=st.lists(st.tuples(st.binary(max_size=64), st.binary(max_size=300)), max_size=20))
def test_any_frames(frames: list[tuple[bytes, bytes]], tmp_path_factory: Any) -> None:
    spool = opened(tmp_path_factory.mktemp("spool"))
    for label, payload in frames:
        spool.put(label, payload)
    assert [(label, bytes(found)) for label, found in (spool.take() for _ in frames)] == frames


def test_nothing_is_put_after_the_first_is_taken(tmp_path: Path) -> None:
    spool = filled(tmp_path)
    spool.take()
    with pytest.raises(ValueError, match="gets no more"):
        spool.put(b"late", b"")


def test_the_folder_shows_no_file_and_no_plaintext(tmp_path: Path) -> None:
    """Whoever reads the open file finds neither a label nor a payload; after it, there is none."""
    secret = b"a correction of the dealer" * 100
    spool = opened(tmp_path)
    spool.put(b"a telling label", secret)
    assert not list(tmp_path.iterdir())
    (segment,) = spool._segments
    segment.flush()
    kept = os.pread(segment.fileno(), 1 << 20, 0)
    assert len(kept) == spool.bytes_stored
    assert secret[:16] not in kept
    assert b"telling" not in kept
    spool.close()
    assert segment.closed


def test_two_spools_of_one_session_have_different_keys(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        spool = opened(tmp_path)
        spool.put(b"label", bytes(64))
        spool._segments[0].flush()
        kept.append(os.pread(spool._segments[0].fileno(), 1 << 20, 0))
    assert kept[0] != kept[1]
    # What another spool holds opens nothing here.
    os.pwrite(spool._segments[0].fileno(), kept[0], 0)
    with pytest.raises(VaultError, match="damaged"):
        spool.take()


def test_a_used_segment_is_closed_and_its_key_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1)
    spool = filled(tmp_path)
    first, key = spool._segments[0], spool._opener._key
    spool.take()
    spool.take()
    assert first.closed
    assert spool._opener._key != key


@pytest.mark.parametrize("place", [0, 3, 5, 30, -1])
def test_a_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    spool = filled(tmp_path)
    (segment,) = spool._segments
    segment.flush()
    at = place % spool.bytes_stored
    (byte,) = os.pread(segment.fileno(), 1, at)
    os.pwrite(segment.fileno(), bytes([byte ^ 1]), at)
    with pytest.raises(VaultError, match="damaged"):
        for _ in FRAMES:
            spool.take()


def test_a_shortened_file_is_noticed(tmp_path: Path) -> None:
    spool = filled(tmp_path)
    (segment,) = spool._segments
    segment.flush()
    os.ftruncate(segment.fileno(), spool.bytes_stored - 1)
    with pytest.raises(VaultError, match="damaged: the file ends within a frame"):
        for _ in FRAMES:
            spool.take()


def test_more_than_is_allowed_is_refused_before_it_is_written(tmp_path: Path) -> None:
    spool = opened(tmp_path, most=1000)
    spool.put(b"label", bytes(900))
    with pytest.raises(VaultError, match=r"node\.spool_gb allows; raise that"):
        spool.put(b"label", bytes(900))


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(VaultError, match=r"cannot be stored .*No space left"):
        opened(tmp_path).put(b"label", b"payload")


def test_a_disk_that_is_full_at_the_last_byte_is_noticed_before_the_dealer_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda dir: Full())
    spool = opened(tmp_path)
    spool.finish()
    spool.put(b"label", b"payload")
    with pytest.raises(VaultError, match=r"cannot be stored .*No space left"):
        spool.finish()
