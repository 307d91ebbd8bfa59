"""Frames that a node stores until its run needs them, encrypted under a key that is never written.

A spool belongs to one session. Its key is drawn at its beginning and lives in the memory of the
process alone, so what is on the disk after the process has ended, however it ended, opens nothing.
The files have no names: the operating system frees them with the process, also after a kill.

Frames come out in the order in which they were put in, each once. They lie in segments. When the
last frame of a segment has been taken its file is closed and the key moves on by HKDF, so that
neither a copy of the disk nor the memory of the process shows it any more.
"""

import os
import tempfile
from collections import deque
from pathlib import Path
from struct import Struct
from typing import IO

from parties.errors import VaultError
from protocols.canonical import pack
from protocols.channel import MAX_FRAME_BYTES, MAX_LABEL_BYTES, Buffer
from protocols.errors import AuthenticationError
from protocols.sealing.record import KEY_BYTES, TAG_BYTES, RecordOpener, RecordSealer

SEGMENT_BYTES = 64 << 20
"""After so many bytes a new segment begins: as much of what was used may remain on the disk."""

_LENGTHS = Struct(">BI")
"""Lengths of the sealed label and of the sealed payload, before both."""
_HEAD = b"label"


class Spool:
    """First in, first out: `put` all frames, `finish`, then `take` them.

    folder: where the segments lie. sid: the session. most_bytes: how much may be stored.
    """

    def __init__(self, folder: Path, sid: bytes, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        key, context = os.urandom(KEY_BYTES), pack(b"mpc-train/spool/1", sid)
        self._sealer, self._opener = RecordSealer(key, context), RecordOpener(key, context)
        self._segments: deque[IO[bytes]] = deque()
        self._ends: deque[int] = deque()
        self._taking = False
        self.bytes_stored = 0
        """Bytes on the disk so far, of all segments."""

    def put(self, label: bytes, payload: Buffer) -> None:
        """Store one frame. Raises VaultError if it does not fit on the disk or into `most_bytes`;
        the spool is of no use afterwards."""
        if self._taking:
            raise ValueError("a spool from which frames are taken gets no more")
        size = _LENGTHS.size + len(label) + len(payload) + 2 * TAG_BYTES
        if self.bytes_stored + size > self._most_bytes:
            raise VaultError(
                f"{self._folder}: the dealer's material for this job takes more than the "
                f"{self._most_bytes / 1e9:.1f} GB that node.spool_gb allows; raise that, or agree "
                "on a job without preprocess"
            )
        try:
            segment = self._segment(size)
            head, sealed = self._sealer.seal(_HEAD, label), self._sealer.seal(label, payload)
            segment.write(_LENGTHS.pack(len(head), len(sealed)))
            segment.write(head)
            segment.write(sealed)
        except OSError as error:
            raise self._full(error) from error
        self._ends[-1] += size
        self.bytes_stored += size

    def finish(self) -> None:
        """All frames are stored: what is left in memory goes to the disk while the dealer is still
        there. Raises VaultError if it does not fit."""
        try:
            if self._segments:
                self._segments[-1].flush()
        except OSError as error:
            raise self._full(error) from error

    def _full(self, error: OSError) -> VaultError:
        return VaultError(
            f"{self._folder}: the dealer's material cannot be stored after "
            f"{self.bytes_stored / 1e9:.1f} GB ({error.strerror}); free space there, or agree on a "
            "job without preprocess"
        )

    def _segment(self, size: int) -> IO[bytes]:
        """The file that takes the next frame of `size` bytes."""
        if not self._segments or self._ends[-1] + size > SEGMENT_BYTES:
            if self._segments:
                self._segments[-1].flush()
                self._sealer.advance()
            self._segments.append(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            self._ends.append(0)
        return self._segments[-1]

    def take(self) -> tuple[bytes, memoryview]:
        """The next frame: its label, and the payload in a writable buffer of the caller's own.

        Raises VaultError if nothing is left, or if what is on the disk is not what was put there.
        """
        try:
            if not self._taking:
                self._taking = True
                self._rewind()
            while self._segments and self._segments[0].tell() == self._ends[0]:
                self._ends.popleft()
                self._segments.popleft().close()
                self._opener.advance()
                self._rewind()
            if not self._segments:
                raise VaultError("the run needs more material than the dealer stored ahead")
            head_size, size = _LENGTHS.unpack(self._read(_LENGTHS.size))
            if head_size > MAX_LABEL_BYTES + TAG_BYTES or size > MAX_FRAME_BYTES + TAG_BYTES:
                raise AuthenticationError("a frame with other lengths than it was stored with")
            label = bytes(self._opener.open(_HEAD, self._read(head_size)))
            return label, self._opener.open(label, self._read(size))
        except (AuthenticationError, OSError) as error:
            raise VaultError(
                f"{self._folder}: the dealer's stored material is damaged: {error}"
            ) from error

    def _rewind(self) -> None:
        if self._segments:
            self._segments[0].seek(0)

    def _read(self, size: int) -> bytes:
        data = self._segments[0].read(size)
        if len(data) != size:
            raise AuthenticationError("the file ends within a frame")
        return data

    def close(self) -> None:
        """Give everything back to the disk, used or not."""
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self._ends.clear()
