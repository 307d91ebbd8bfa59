"""Sealed files: from one named sender to one named recipient, for one step of one session.

Guarantees that only the holder of the recipient's key reads the payload, that the recipient learns
nothing from a file that its sender did not sign whole, and that a file cannot pass for one of
another session, step, sender, recipient or set of tensors. The caller must check which senders a
result needs, and that their payloads agree.

    magic ‖ u32 length of header ‖ header ‖ chunks ‖ signatures
    header   suite, sid, step, names, sender, recipient, SHA-256 of the recipient's key,
             payload bytes, sealed file key
    chunk k  AES-256-GCM of 1 MiB; nonce = 88-bit k ‖ last flag; key = HKDF(file key; header)
    signed   "envelope/1" ‖ (SHA-256 of the header, SHA-256 of the chunks)

The file key is sealed by HPKE with everything of the header before it as `info`. The chunking is
the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015), as in age: the index
fixes the order and the flag the end. Every fault is an EnvelopeError.
"""

import hmac
import os
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocols.canonical import decode_text, pack, pack_texts, unpack, unpack_texts
from protocols.channel import Buffer
from protocols.errors import AuthenticationError, EnvelopeError, FrameError
from protocols.sealing import hpke, signatures
from protocols.sealing.session import HASH_BYTES, MAX_TEXT_BYTES
from protocols.sealing.signatures import Signer, Verifier

MAGIC = b"mpc-train envelope 1\n"
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
MAX_NAMES = 65536
MAX_NAME_BYTES = 256
MAX_NAMES_BYTES = 1 << 22
MAX_PAYLOAD_BYTES = 1 << 36
"""64 GiB. Sizes are checked against the file in hand before anything is allocated."""

_PURPOSE = "envelope/1"
_FILE_KEY_BYTES = 32
_SEALED_KEY_BYTES = _FILE_KEY_BYTES + hpke.OVERHEAD_BYTES
_BOUNDS = (
    *(MAX_TEXT_BYTES, HASH_BYTES, 8, MAX_NAMES_BYTES, MAX_TEXT_BYTES, MAX_TEXT_BYTES),
    *(HASH_BYTES, 8, _SEALED_KEY_BYTES),
)
_MAX_HEADER_BYTES = sum(_BOUNDS) + 4 * len(_BOUNDS)


class HpkeOpener(Protocol):
    """The holder of the recipient's private key: a vault, or a key in memory."""

    def hpke_open(self, info: bytes, ciphertext: bytes) -> bytes:
        """Raises AuthenticationError when `ciphertext` was not sealed for this key and `info`."""


@dataclass(frozen=True)
class EnvelopeInfo:
    """What an envelope contains, from whom and for whom; public, and bound to the payload.

    `names` are the tensors inside, in order; `sender` and `recipient` are names of the roster.
    """

    suite: str
    sid: bytes
    step: int
    names: tuple[str, ...]
    sender: str
    recipient: str

    def __post_init__(self) -> None:
        for name in ("suite", "sender", "recipient"):
            if not 1 <= len(getattr(self, name).encode()) <= MAX_TEXT_BYTES:
                raise EnvelopeError(f"{name} must have 1 to {MAX_TEXT_BYTES} bytes")
        if len(self.sid) != HASH_BYTES or not 0 <= self.step < 1 << 64:
            raise EnvelopeError(f"a session id has {HASH_BYTES} bytes and a step fits 64 bits")
        if len(self.names) > MAX_NAMES or len(set(self.names)) != len(self.names):
            raise EnvelopeError(f"tensor names occur once each, at most {MAX_NAMES}")
        if any(not 1 <= len(name.encode()) <= MAX_NAME_BYTES for name in self.names):
            raise EnvelopeError(f"a tensor name has 1 to {MAX_NAME_BYTES} bytes")
        if len(pack_texts(self.names)) > MAX_NAMES_BYTES:
            raise EnvelopeError(f"the tensor names have more than {MAX_NAMES_BYTES} bytes")


def seal_envelope(
    payload: Buffer, *, info: EnvelopeInfo, recipient_public: bytes, signer: Signer
) -> bytes:
    """Seal `payload` to `recipient_public`, signed by `signer`, who is `info.sender`.

    Raises EnvelopeError if the recipient's key is invalid, or the payload exceeds 64 GiB.
    """
    view = memoryview(payload).cast("B")
    if len(view) > MAX_PAYLOAD_BYTES:
        raise EnvelopeError(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes")
    bound = _bound(info, recipient_public, len(view))
    file_key = os.urandom(_FILE_KEY_BYTES)
    try:
        sealed_key = hpke.seal(recipient_public, _hpke_info(bound), file_key)
    except AuthenticationError as error:
        raise EnvelopeError(f"the key of {info.recipient}: {error}") from error
    header = pack(*bound, sealed_key)
    aead = _payload_key(file_key, header)
    last = _chunk_count(len(view)) - 1
    chunks = bytearray()
    for index in range(last + 1):
        piece = view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        chunks += aead.encrypt(_nonce(index, index == last), piece, None)
    signature = signer.sign(_PURPOSE, _statement(header, memoryview(chunks)))
    return b"".join((MAGIC, len(header).to_bytes(4, "big"), header, chunks, signature))


def read_info(blob: Buffer) -> EnvelopeInfo:
    """An envelope's header, NOT verified: only for finding the sender's card.

    Raises EnvelopeError when it is not an envelope.
    """
    return _split(memoryview(blob)).info


def open_envelope(
    blob: Buffer,
    *,
    expected: EnvelopeInfo,
    recipient_public: bytes,
    private: HpkeOpener,
    verifier: Verifier,
) -> bytes:
    """The payload, after all checks. `verifier` is that of `expected.sender`.

    1. The header parses, and is exactly as expected: session, step, names, sender, recipient.
    2. It is sealed to our key, and the file has the size that the header says.
    3. The sender signed all of it; nothing was decrypted so far.
    4. The file key opens with our private key, under the same header.
    5. Every chunk verifies at its place, and the last one is the last.

    Raises EnvelopeError, which says which of these failed.
    """
    parts = _checked(blob, expected, recipient_public, verifier)  # 1 to 3
    bound, header = _bound(expected, recipient_public, parts.payload_bytes), bytes(parts.header)
    try:
        file_key = private.hpke_open(_hpke_info(bound), parts.sealed_key)  # 4
    except AuthenticationError as error:
        raise EnvelopeError(f"the file key does not open: {error}") from error
    if len(file_key) != _FILE_KEY_BYTES:
        raise EnvelopeError("the file key has the wrong length")
    return _open_chunks(_payload_key(file_key, header), parts.chunks, parts.payload_bytes)  # 5


def check_envelope(
    blob: Buffer, *, expected: EnvelopeInfo, recipient_public: bytes, verifier: Verifier
) -> None:
    """Steps 1 to 3 of `open_envelope`, for nodes that carry an envelope but cannot open it."""
    _checked(blob, expected, recipient_public, verifier)


def _checked(
    blob: Buffer, expected: EnvelopeInfo, recipient_public: bytes, verifier: Verifier
) -> "_Parts":
    """The parts of an envelope that its sender signed and that is exactly what is expected."""
    parts = _split(memoryview(blob))
    for item in fields(EnvelopeInfo):  # 1
        if getattr(parts.info, item.name) != getattr(expected, item.name):
            raise EnvelopeError(f"an envelope for another {item.name}")
    bound = _bound(expected, recipient_public, parts.payload_bytes)
    header = pack(*bound, parts.sealed_key)
    if not hmac.compare_digest(header, bytes(parts.header)):  # 2
        raise EnvelopeError(f"an envelope for another key of {expected.recipient}")
    try:
        verifier.verify(_PURPOSE, _statement(header, parts.chunks), bytes(parts.signature))  # 3
    except AuthenticationError as error:
        raise EnvelopeError(f"an envelope that {expected.sender} did not sign: {error}") from error
    return parts


def _open_chunks(aead: AESGCM, chunks: memoryview, payload_bytes: int) -> bytes:
    last = _chunk_count(payload_bytes) - 1
    step = CHUNK_BYTES + TAG_BYTES
    pieces = []
    for index in range(last + 1):
        piece = chunks[index * step : (index + 1) * step]
        try:
            pieces.append(aead.decrypt(_nonce(index, index == last), piece, None))
        except InvalidTag as error:
            raise EnvelopeError(f"chunk {index} of {last + 1} does not verify") from error
    return b"".join(pieces)


@dataclass(frozen=True, repr=False)
class _Parts:
    info: EnvelopeInfo
    header: memoryview
    sealed_key: bytes
    payload_bytes: int
    chunks: memoryview
    signature: memoryview


def _split(blob: memoryview) -> _Parts:
    start = len(MAGIC) + 4
    if bytes(blob[: len(MAGIC)]) != MAGIC or len(blob) < start:
        raise EnvelopeError("not an envelope of this version")
    header_bytes = int.from_bytes(blob[len(MAGIC) : start], "big")
    if header_bytes > min(_MAX_HEADER_BYTES, len(blob) - start):
        raise EnvelopeError("an envelope whose header is cut off or too long")
    header = blob[start : start + header_bytes]
    try:
        suite, sid, step, names, sender, recipient, _, size, sealed_key = unpack(header, _BOUNDS)
        info = EnvelopeInfo(
            decode_text(suite),
            sid,
            int.from_bytes(step, "big"),
            unpack_texts(names, MAX_NAMES, MAX_NAME_BYTES),
            decode_text(sender),
            decode_text(recipient),
        )
    except FrameError as error:
        raise EnvelopeError(f"a malformed envelope: {error}") from error
    payload_bytes = int.from_bytes(size, "big")
    sealed_bytes = payload_bytes + TAG_BYTES * _chunk_count(payload_bytes)
    if len(blob) != start + header_bytes + sealed_bytes + signatures.SIGNATURE_BYTES:
        raise EnvelopeError("an envelope that is cut off or has too many bytes")
    body = blob[start + header_bytes :]
    return _Parts(info, header, sealed_key, payload_bytes, body[:sealed_bytes], body[sealed_bytes:])


def _bound(info: EnvelopeInfo, recipient_public: bytes, payload_bytes: int) -> list[bytes]:
    return [
        info.suite.encode(),
        info.sid,
        info.step.to_bytes(8, "big"),
        pack_texts(info.names),
        info.sender.encode(),
        info.recipient.encode(),
        sha256(recipient_public).digest(),
        payload_bytes.to_bytes(8, "big"),
    ]


def _hpke_info(bound: list[bytes]) -> bytes:
    return pack(MAGIC, *bound)


def _payload_key(file_key: bytes, header: bytes) -> AESGCM:
    info = pack(b"mpc-train/envelope/1/payload", sha256(header).digest())
    return AESGCM(HKDFExpand(SHA256(), 32, info).derive(file_key))


def _statement(header: bytes, chunks: memoryview) -> bytes:
    return pack(sha256(header).digest(), sha256(chunks).digest())


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def _chunk_count(payload_bytes: int) -> int:
    """An empty payload is one empty chunk, so that its end is authenticated as well."""
    return max(1, -(-payload_bytes // CHUNK_BYTES))
