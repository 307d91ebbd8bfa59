"""Sealed files: from one named sender to one named recipient, for one step of one session.

Guarantees that only the holder of the recipient's key reads the payload, that the recipient learns
nothing from a file that its sender did not sign whole, and that a file cannot pass for one of
another session, step, sender, recipient or set of tensors. The caller must check which senders a
result needs, and that their payloads agree.

    context    suite, sid, step, names, sender, recipient, digest of the recipient's key, payload
               bytes
    suite      that of the recipient's key (`recipient_keys`) ‖ "/Ed25519+ML-DSA-65"
    key id     kind of the recipient's key ‖ ":" ‖ its digest in hexadecimal
    file key   sealed to the recipient's key, with kind and context as `info`
    trailer    signatures over "envelope/3" ‖ (SHA-256 of the header, SHA-256 of the chunks)

in the format of `container`. Every fault is an EnvelopeError.
"""

import hmac
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Protocol

from protocols.canonical import decode_text, pack, pack_texts, unpack, unpack_texts
from protocols.channel import Buffer
from protocols.errors import AuthenticationError, EnvelopeError, FrameError
from protocols.sealing import container, signatures
from protocols.sealing.container import RESULT, Header
from protocols.sealing.recipient_keys import RecipientKey
from protocols.sealing.session import HASH_BYTES, MAX_TEXT_BYTES
from protocols.sealing.signatures import Signer, Verifier
from protocols.sealing.stream import open_chunks, seal_chunks, sealed_bytes

MAX_NAMES = 65536
MAX_NAME_BYTES = 256
MAX_NAMES_BYTES = 1 << 22
MAX_PAYLOAD_BYTES = 1 << 36
"""64 GiB. Sizes are checked against the file in hand before anything is allocated."""

_PURPOSE = "envelope/3"
_BOUNDS = (
    *(MAX_TEXT_BYTES, HASH_BYTES, 8, MAX_NAMES_BYTES, MAX_TEXT_BYTES, MAX_TEXT_BYTES),
    *(HASH_BYTES, 8),
)


class Unsealer(Protocol):
    """The holder of the recipient's private key: a vault, or a key in memory."""

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Raises AuthenticationError when `ciphertext` was not sealed for this key and `info`."""


@dataclass(frozen=True)
class EnvelopeInfo:
    """What an envelope contains, from whom and for whom; public, and bound to the payload.

    `names` are the tensors inside, in order; `sender` and `recipient` are names of the roster.
    """

    sid: bytes
    step: int
    names: tuple[str, ...]
    sender: str
    recipient: str

    def __post_init__(self) -> None:
        for name in ("sender", "recipient"):
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
    payload: Buffer, *, info: EnvelopeInfo, recipient_key: RecipientKey, signer: Signer
) -> bytes:
    """Seal `payload` to `recipient_key`, signed by `signer`, who is `info.sender`.

    Raises EnvelopeError if the recipient's key is invalid, or the payload exceeds 64 GiB.
    """
    view = memoryview(payload).cast("B")
    if len(view) > MAX_PAYLOAD_BYTES:
        raise EnvelopeError(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes")
    context, file_key = _context(info, recipient_key, len(view)), container.new_file_key()
    try:
        wrapped = recipient_key.seal(container.wrap_info(RESULT, context), file_key)
    except AuthenticationError as error:
        raise EnvelopeError(f"the key of {info.recipient}: {error}") from error
    header = Header(RESULT, context, _key_id(recipient_key), wrapped)
    chunks = seal_chunks(view, header.payload_key(file_key))
    signature = signer.sign(_PURPOSE, _statement(header, chunks))
    return b"".join((header.framed(), chunks, signature))


def read_info(blob: Buffer) -> EnvelopeInfo:
    """An envelope's header, NOT verified: only for finding the sender's card.

    Raises EnvelopeError when it is not an envelope.
    """
    return _split(blob).info


def open_envelope(
    blob: Buffer,
    *,
    expected: EnvelopeInfo,
    recipient_key: RecipientKey,
    private: Unsealer,
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
    parts = _checked(blob, expected, recipient_key, verifier)  # 1 to 3
    header = parts.header
    try:
        file_key = private.unseal(header.wrap_info, header.wrapped_key)  # 4
    except AuthenticationError as error:
        raise EnvelopeError(f"the file key does not open: {error}") from error
    return open_chunks(parts.chunks, header.payload_key(file_key))  # 5


def check_envelope(
    blob: Buffer, *, expected: EnvelopeInfo, recipient_key: RecipientKey, verifier: Verifier
) -> None:
    """Steps 1 to 3 of `open_envelope`, for nodes that carry an envelope but cannot open it."""
    _checked(blob, expected, recipient_key, verifier)


def _checked(
    blob: Buffer, expected: EnvelopeInfo, recipient_key: RecipientKey, verifier: Verifier
) -> "_Parts":
    """The parts of an envelope that its sender signed and that is exactly what is expected."""
    parts = _split(blob)
    for item in fields(EnvelopeInfo):  # 1
        if getattr(parts.info, item.name) != getattr(expected, item.name):
            raise EnvelopeError(f"an envelope for another {item.name}")
    if parts.suite != _suite(recipient_key):
        raise EnvelopeError(
            f"an envelope sealed with {parts.suite}; the card of {expected.recipient} has a key "
            f"for {_suite(recipient_key)}"
        )
    context = _context(expected, recipient_key, parts.payload_bytes)
    ours = Header(RESULT, context, _key_id(recipient_key), parts.header.wrapped_key)
    if not hmac.compare_digest(ours.encoded(), parts.header.encoded()):  # 2
        raise EnvelopeError(f"an envelope for another key of {expected.recipient}")
    try:
        verifier.verify(_PURPOSE, _statement(ours, parts.chunks), bytes(parts.signature))  # 3
    except AuthenticationError as error:
        raise EnvelopeError(f"an envelope that {expected.sender} did not sign: {error}") from error
    return parts


@dataclass(frozen=True, repr=False)
class _Parts:
    suite: str
    info: EnvelopeInfo
    header: Header
    payload_bytes: int
    chunks: memoryview
    signature: memoryview


def _split(blob: Buffer) -> _Parts:
    header, body = container.split(blob, RESULT)
    try:
        suite, sid, step, names, sender, recipient, _, size = unpack(header.context, _BOUNDS)
        said = decode_text(suite)
        info = EnvelopeInfo(
            sid,
            int.from_bytes(step, "big"),
            unpack_texts(names, MAX_NAMES, MAX_NAME_BYTES),
            decode_text(sender),
            decode_text(recipient),
        )
    except FrameError as error:
        raise EnvelopeError(f"a malformed envelope: {error}") from error
    payload_bytes = int.from_bytes(size, "big")
    length = sealed_bytes(payload_bytes)
    if len(body) != length + signatures.SIGNATURE_BYTES:
        raise EnvelopeError("an envelope that is cut off or has too many bytes")
    return _Parts(said, info, header, payload_bytes, body[:length], body[length:])


def _context(info: EnvelopeInfo, recipient_key: RecipientKey, payload_bytes: int) -> bytes:
    return pack(
        _suite(recipient_key).encode(),
        info.sid,
        info.step.to_bytes(8, "big"),
        pack_texts(info.names),
        info.sender.encode(),
        info.recipient.encode(),
        recipient_key.digest,
        payload_bytes.to_bytes(8, "big"),
    )


def _suite(recipient_key: RecipientKey) -> str:
    return f"{recipient_key.suite}/{signatures.SUITE}"


def _key_id(recipient_key: RecipientKey) -> str:
    return f"{recipient_key.kind}:{recipient_key.digest.hex()}"


def _statement(header: Header, chunks: Buffer) -> bytes:
    return pack(sha256(header.encoded()).digest(), sha256(chunks).digest())
