"""The one format of everything that lies encrypted on a disk: sealed results and stored objects.

    magic ‖ u32 length of header ‖ header ‖ chunks ‖ trailer
    header   kind, context, id of the wrapping key, wrapped file key
    chunks   `stream`, under HKDF(file key; kind, context)

Guarantees that a payload opens only as what it was sealed as: kind and context are bound into the
wrapping of the file key and into the payload's key. The wrapping is bound into neither, so that a
file key can be wrapped anew without touching the payload. What the context says, how the file key
is wrapped and what the trailer holds is the business of the kinds:

    result   `envelope`: HPKE to a recipient, signed by its sender; the trailer is the signature
    object   `stored`: a key service of the node's; no trailer, and the header may lie in a file
             of its own
"""

import os
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from protocols.canonical import decode_text, pack, unpack
from protocols.channel import Buffer
from protocols.errors import EnvelopeError, FrameError
from protocols.sealing.stream import KEY_BYTES

MAGIC = b"mpc-train envelope 2\n"
RESULT, OBJECT = "result", "object"
FILE_KEY_BYTES = 32
MAX_CONTEXT_BYTES = 1 << 23
MAX_KEY_ID_BYTES = 2048
MAX_WRAPPED_BYTES = 1 << 17
"""Key services return up to a few kB for 32 bytes; a result has a share for each recipient."""
_BOUNDS = (16, MAX_CONTEXT_BYTES, MAX_KEY_ID_BYTES, MAX_WRAPPED_BYTES)
MAX_HEADER_BYTES = sum(_BOUNDS) + 4 * len(_BOUNDS)


def new_file_key() -> bytes:
    """A fresh key for one payload."""
    return os.urandom(FILE_KEY_BYTES)


def wrap_info(kind: str, context: bytes) -> bytes:
    """What the wrapping of a file key is bound to."""
    return pack(MAGIC, kind.encode(), context)


def payload_key(file_key: bytes, kind: str, context: bytes) -> bytes:
    """The key of the chunks; raises EnvelopeError for a file key of another length."""
    if len(file_key) != FILE_KEY_BYTES:
        raise EnvelopeError("the file key has the wrong length")
    info = pack(b"mpc-train/envelope/2/payload", kind.encode(), sha256(context).digest())
    return HKDFExpand(SHA256(), KEY_BYTES, info).derive(file_key)


@dataclass(frozen=True, repr=False)
class Header:
    """key_id: says which key wraps the file key, in the words of the kind."""

    kind: str
    context: bytes
    key_id: str
    wrapped_key: bytes

    @property
    def wrap_info(self) -> bytes:
        return wrap_info(self.kind, self.context)

    def payload_key(self, file_key: bytes) -> bytes:
        return payload_key(file_key, self.kind, self.context)

    def encoded(self) -> bytes:
        """The header without what frames it."""
        return pack(self.kind.encode(), self.context, self.key_id.encode(), self.wrapped_key)

    def framed(self) -> bytes:
        """What stands before the chunks."""
        header = self.encoded()
        return MAGIC + len(header).to_bytes(4, "big") + header


def split(blob: Buffer, kind: str) -> tuple[Header, memoryview]:
    """The header and what follows it. NOT verified. Raises EnvelopeError where it is none of this
    kind."""
    view = memoryview(blob).cast("B")
    start = len(MAGIC) + 4
    if len(view) < start or bytes(view[: len(MAGIC)]) != MAGIC:
        raise EnvelopeError("not an envelope of this version")
    length = int.from_bytes(view[len(MAGIC) : start], "big")
    if length > min(MAX_HEADER_BYTES, len(view) - start):
        raise EnvelopeError("an envelope whose header is cut off or too long")
    try:
        named, context, key_id, wrapped = unpack(view[start : start + length], _BOUNDS)
        header = Header(decode_text(named), context, decode_text(key_id), wrapped)
    except FrameError as error:
        raise EnvelopeError(f"a malformed envelope: {error}") from error
    if header.kind != kind:
        raise EnvelopeError(f"an envelope of another kind than {kind}")
    if not header.key_id.isprintable():
        # It is shown before anything is verified.
        raise EnvelopeError("the id of the wrapping key has control characters")
    return header, view[start + length :]
