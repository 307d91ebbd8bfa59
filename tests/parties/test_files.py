"""Reading files that somebody else may have put there."""

import os
import threading
from pathlib import Path

import pytest

from parties.files import read_bounded


def test_a_pipe_that_nobody_writes_to_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.card")
    with pytest.raises(ValueError, match="is a pipe, not a file"):
        read_bounded(tmp_path / "a.card", 10)
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        read_bounded("/dev/zero", 10)


def test_a_pipe_of_the_shell_is_read_whole(tmp_path: Path) -> None:
    ours, theirs = os.pipe()

    def write() -> None:
        with os.fdopen(theirs, "wb", buffering=0) as stream:
            stream.write(b"one ")
            late.wait()
            stream.write(b"two")

    late = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    threading.Timer(0.05, late.set).start()
    try:
        assert read_bounded(f"/dev/fd/{ours}", 10) == b"one two"
    finally:
        thread.join()
        os.close(ours)
