"""A long secret as a row of authenticated chunks, written and read without holding all of it.

Guarantees that a reader with the key gets the plaintext that was written, chunk by chunk, or an
EnvelopeError: a chunk that was altered, moved, dropped, repeated or taken from another stream does
not open, and a stream that was cut off is noticed before its first byte is returned. Leaves to the
caller: a fresh key for each stream, and what the stream is (bind that into the key).

    chunk k    AES-256-GCM of 1 MiB, the last one shorter or as long; 16 bytes of tag behind it
    nonce      88-bit k ‖ 8-bit flag, 1 for the last chunk

This is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015), as in age: the
counter fixes the order, the flag the end. An empty stream is one empty chunk. A key seals one
stream, so that no nonce is used twice.
"""

import io
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.channel import Buffer
from protocols.errors import EnvelopeError

CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
KEY_BYTES = 32


def sealed_bytes(size: int) -> int:
    """The length of a stream that holds `size` bytes of plaintext."""
    return size + TAG_BYTES * _chunks(size)


def plain_bytes(sealed: int) -> int:
    """The bytes of plaintext that a stream of `sealed` bytes holds.

    Raises EnvelopeError for a length that no stream has.
    """
    chunks = max(1, -(-sealed // (CHUNK_BYTES + TAG_BYTES)))
    plain = sealed - TAG_BYTES * chunks
    if plain < 0 or sealed_bytes(plain) != sealed:
        raise EnvelopeError("a stream of sealed chunks is cut off")
    return plain


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK_BYTES))


def _nonce(index: int, is_last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([is_last])


class SealingWriter:
    """Takes plaintext and writes sealed chunks to `out`. Without `finish` the stream does not open:
    whoever fails in the middle leaves nothing that could pass for the whole."""

    def __init__(self, out: BinaryIO, key: bytes) -> None:
        self._out = out
        self._aead = AESGCM(key)
        self._held = bytearray()
        self._index = 0
        self.plain_bytes = 0

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        # A full chunk is held until more comes: only then is it known not to be the last.
        while len(self._held) + len(view) > CHUNK_BYTES:
            room = CHUNK_BYTES - len(self._held)
            if self._held:
                self._held += view[:room]
                self._seal(self._held, is_last=False)
                self._held.clear()
            else:
                self._seal(view[:room], is_last=False)
            view = view[room:]
        self._held += view
        self.plain_bytes += size
        return size

    def finish(self) -> None:
        """Seal what is held as the last chunk; `out` stays open."""
        self._seal(self._held, is_last=True)
        self._held.clear()

    def _seal(self, piece: Buffer, *, is_last: bool) -> None:
        self._out.write(self._aead.encrypt(_nonce(self._index, is_last), piece, None))
        self._index += 1


class OpeningReader(io.RawIOBase):
    """The plaintext of a stream, from any position; holds one chunk in memory.

    sealed: a file whose bytes from `start` to `end` are the stream. title: what errors call it.
    Raises EnvelopeError at once where the stream does not end as it was written, and at any chunk
    that does not verify.
    """

    def __init__(
        self, sealed: BinaryIO, key: bytes, start: int, end: int, title: str = "the stream"
    ) -> None:
        self._sealed, self._title = sealed, title
        self._start = start
        self._aead = AESGCM(key)
        self.size = plain_bytes(end - start)
        self._last = _chunks(self.size) - 1
        self._position = 0
        self._index, self._chunk = -1, b""
        self._load(self._last)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        """Fill `buffer` from one chunk; 0 at the end."""
        if self._position >= self.size:
            return 0
        index, offset = divmod(self._position, CHUNK_BYTES)
        if index != self._index:
            self._load(index)
        view = memoryview(buffer).cast("B")
        piece = memoryview(self._chunk)[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _load(self, index: int) -> None:
        is_last = index == self._last
        length = self.size - index * CHUNK_BYTES if is_last else CHUNK_BYTES
        self._sealed.seek(self._start + index * (CHUNK_BYTES + TAG_BYTES))
        piece = self._sealed.read(length + TAG_BYTES)
        try:
            self._chunk = self._aead.decrypt(_nonce(index, is_last), piece, None)
        except InvalidTag as error:
            raise EnvelopeError(
                f"{self._title}: chunk {index} of {self._last + 1} does not verify"
            ) from error
        self._index = index


def seal_chunks(payload: Buffer, key: bytes) -> bytearray:
    """A stream in memory."""
    view, aead = memoryview(payload).cast("B"), AESGCM(key)
    last, chunks = _chunks(len(view)) - 1, bytearray()
    for index in range(last + 1):
        piece = view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        chunks += aead.encrypt(_nonce(index, index == last), piece, None)
    return chunks


def open_chunks(stream: Buffer, key: bytes) -> bytes:
    """The plaintext of a stream in memory; raises EnvelopeError."""
    view, aead = memoryview(stream).cast("B"), AESGCM(key)
    last, pieces = _chunks(plain_bytes(len(view))) - 1, []
    step = CHUNK_BYTES + TAG_BYTES
    for index in range(last + 1):
        piece = view[index * step : (index + 1) * step]
        try:
            pieces.append(aead.decrypt(_nonce(index, index == last), piece, None))
        except InvalidTag as error:
            raise EnvelopeError(f"chunk {index} of {last + 1} does not verify") from error
    return b"".join(pieces)
