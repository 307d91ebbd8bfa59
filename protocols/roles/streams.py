"""Keyed streams: pseudorandom ring elements that two nodes draw without communication.

One `Stream` is known to exactly two nodes: an evaluator and the dealer. Both run the same
program, so both draw the same amounts in the same order and hold the same words.

* The root is a secret of this session's handshake; it is never stored.
* Every step has its own key: HKDF-Expand(root, "stream" ‖ step), SHA-256. The keystream is AES-256
  in counter mode (NIST SP 800-38A), made in pieces of at most 128 KiB; the counter blocks of piece
  p are p (96 bits) ‖ 2, 3, … (32 bits).
* Inside a step the keystream is only read forwards. There is no seek, so no position can be read
  twice; a step begun twice raises MaskReuseError.

One key per step instead of one per operation saves a key derivation and a cipher set-up (about 15
µs) on each of the hundreds of draws of a step, for every stream; the position in the keystream is
the operation index.

These counter blocks are those of AES-GCM under the nonce p (NIST SP 800-38D), which encrypts zeros
here, or what is to be masked: with wide vectors the library's GCM is faster than its plain counter
mode (12 instead of 7 GB/s). The tags are not used and never leave a node.
"""

from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

from protocols.errors import MaskReuseError

KEY_BYTES = 32
CHUNK_BYTES = 1 << 16
"""Keystream made ahead: small draws are slices of a chunk, larger ones get their own buffer."""

PIECE_BYTES = 1 << 17
TAG_BYTES = 16
_ZEROS = memoryview(bytes(PIECE_BYTES))


@cache
def _kernels() -> ModuleType:
    """Compiled when they are first needed: an owner that only splits its words needs none."""
    return import_module("protocols.ring.kernels")


class Stream:
    """The words that one evaluator shares with the dealer, step by step.

    root: 32 secret bytes, the same at both ends, used for nothing else.
    """

    def __init__(self, root: bytes) -> None:
        if len(root) != KEY_BYTES:
            raise ValueError(f"a stream root has {KEY_BYTES} bytes, not {len(root)}")
        self._root = root
        self._step = -1
        self._cipher: AESGCM | None = None
        self._pieces = 0
        self._chunk = np.empty(0, np.uint8)
        self._used = 0

    def __repr__(self) -> str:
        return f"Stream(step={self._step})"

    def begin_step(self, step: int) -> None:
        """Move to the keystream of `step`, which has to be later than every step before."""
        if step <= self._step:
            raise MaskReuseError(f"stream: step {step} was begun already (now at {self._step})")
        self._step = step
        info = b"mpc-train stream v1" + step.to_bytes(8, "big")
        key = HKDFExpand(hashes.SHA256(), KEY_BYTES, info).derive(self._root)
        self._cipher = AESGCM(key)
        self._pieces = 0
        self._chunk = np.empty(0, np.uint8)
        self._used = 0

    def octets(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes, aligned to 8 bytes."""
        padded = (count + 7) & ~7
        if padded > CHUNK_BYTES // 4:
            return self._generate(padded)[:count]
        if self._used + padded > len(self._chunk):
            self._chunk = self._generate(CHUNK_BYTES)
            self._used = 0
        start = self._used
        self._used = start + padded
        return self._chunk[start : start + count]

    def words(self, count: int) -> NDArray[np.int64]:
        """The next `count` elements of Z_2^64 as int64."""
        return self.octets(8 * count).view(np.int64)

    def add_words(self, words: NDArray[np.int64], *, negative: bool = False) -> None:
        """Add what `Stream.words` would draw to int64[count], or subtract it: in place, piece by
        piece."""
        join = np.subtract if negative else np.add
        if 8 * words.size <= CHUNK_BYTES // 4:
            join(words, self.words(words.size), out=words)
            return
        for start in range(0, words.size, PIECE_BYTES // 8):
            piece = words[start : start + PIECE_BYTES // 8]
            join(piece, self._generate(piece.nbytes).view(np.int64), out=piece)

    def words_modulo(self, count: int, bits: int) -> NDArray[np.int64]:
        """The next `count` words modulo 2^bits, drawn as a packed array."""
        if bits == 64:
            return self.words(count)
        words, kernels = np.empty(count, np.int64), _kernels()
        kernels.unpack(self.octets(kernels.packed_size(count, bits)), bits, words)
        return words

    def xor_octets(self, octets: NDArray[np.uint8], room: NDArray[np.uint8]) -> None:
        """`octets` XOR as many of the next bytes, to the beginning of `room`.

        room: TAG_BYTES longer than `octets`, which may not lie in it; what comes behind is lost.
        Draws what `Stream.octets` would, in one pass over memory instead of three.
        """
        count = len(octets)
        if (count + 7) & ~7 > CHUNK_BYTES // 4:
            self._encrypt(octets.data, room.data, count)
        else:
            np.bitwise_xor(octets, self.octets(count), out=room[:count])

    def _generate(self, count: int) -> NDArray[np.uint8]:
        out = np.empty(count + TAG_BYTES, np.uint8)
        self._encrypt(None, out.data, count)
        return out[:count]

    def _encrypt(self, octets: memoryview | None, room: memoryview, count: int) -> None:
        """The next pieces of keystream, added to `octets` or, for None, to zeros."""
        if self._cipher is None:
            raise MaskReuseError("stream: no step has been begun")
        for start in range(0, count, PIECE_BYTES):
            size = min(PIECE_BYTES, count - start)
            nonce = self._pieces.to_bytes(12, "big")
            self._pieces += 1
            source = _ZEROS[:size] if octets is None else octets[start : start + size]
            # The next piece overwrites the tag after this one.
            self._cipher.encrypt_into(nonce, source, None, room[start : start + size + TAG_BYTES])


def one_time(root: bytes) -> Stream:
    """A stream whose root serves a single draw."""
    stream = Stream(root)
    stream.begin_step(0)
    return stream
