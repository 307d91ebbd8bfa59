"""Objects that a node keeps: encrypted under a key of its own, bound to what they are.

Guarantees that an object opens only with the node's key service and only as what it was kept as:
node, kind, name, version, job and time are bound into the wrapping of its file key and into the
key of its chunks, so that no object can be put in another's place. Leaves to the caller: where the
header and the chunks lie, and that the newest version has not been taken away.

    context    node, kind, name, version, job, time
    file key   wrapped by the key service, with kind and context as additional data
    trailer    none

in the format of `container`. To wrap the file key anew changes the header only.
"""

import hmac
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from protocols.canonical import decode_text, pack, unpack
from protocols.channel import Buffer
from protocols.errors import EnvelopeError, FrameError
from protocols.sealing import container
from protocols.sealing.container import MAX_KEY_ID_BYTES, OBJECT, Header
from protocols.sealing.stream import OpeningReader, SealingWriter

MAX_TEXT_BYTES = 255
_BOUNDS = (MAX_TEXT_BYTES, MAX_TEXT_BYTES, MAX_TEXT_BYTES, 8, MAX_TEXT_BYTES, MAX_TEXT_BYTES)


class KeyWrapper(Protocol):
    """What keeps the keys that wrap file keys; it never hands one of them out."""

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        """Wrap 32 bytes under the current key; return that key's id, and the wrapped bytes."""

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        """Undo `wrap`; raises an error of its own where the key is gone or `info` is another."""


@dataclass(frozen=True)
class ObjectInfo:
    """What an object is; public, and bound to it.

    node: whose it is. kind: "table", "model", … job: the job that it belongs to, or nothing.
    created: ISO 8601, UTC.
    """

    node: str
    kind: str
    name: str
    version: int
    job: str
    created: str

    def __post_init__(self) -> None:
        for text in (self.node, self.kind, self.name, self.job, self.created):
            if len(text.encode()) > MAX_TEXT_BYTES:
                raise EnvelopeError(f"a text of an object has at most {MAX_TEXT_BYTES} bytes")
            if not text.isprintable():
                # It is shown before anything is verified.
                raise EnvelopeError("a text of an object has control characters")
        if not 1 <= self.version < 1 << 63:
            raise EnvelopeError("versions of an object count from 1")

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}, version {self.version}"

    def context(self) -> bytes:
        return pack(
            self.node.encode(),
            self.kind.encode(),
            self.name.encode(),
            self.version.to_bytes(8, "big"),
            self.job.encode(),
            self.created.encode(),
        )

    @classmethod
    def of(cls, context: bytes) -> "ObjectInfo":
        """Raises EnvelopeError."""
        try:
            node, kind, name, version, job, created = unpack(context, _BOUNDS)
            return cls(
                decode_text(node),
                decode_text(kind),
                decode_text(name),
                int.from_bytes(version, "big"),
                decode_text(job),
                decode_text(created),
            )
        except FrameError as error:
            raise EnvelopeError(f"a malformed object: {error}") from error


def seal_object(out: BinaryIO, info: ObjectInfo, keys: KeyWrapper) -> tuple[Header, SealingWriter]:
    """The header of a new object, and what takes its content and writes chunks to `out`.

    Raises EnvelopeError, and what the key service raises.
    """
    file_key, context = container.new_file_key(), info.context()
    header = wrapped_anew(Header(OBJECT, context, "", b""), file_key, keys)
    return header, SealingWriter(out, header.payload_key(file_key))


def read_header(data: Buffer) -> tuple[Header, ObjectInfo]:
    """An object's header and what it says of itself, NOT verified; raises EnvelopeError."""
    header, rest = container.split(data, OBJECT)
    if len(rest):
        raise EnvelopeError("bytes follow the header of an object")
    return header, ObjectInfo.of(header.context)


def open_object(header: Header, chunks: BinaryIO, size: int, keys: KeyWrapper) -> OpeningReader:
    """The content of an object whose chunks are the first `size` bytes of `chunks`.

    Raises EnvelopeError, and what the key service raises.
    """
    file_key = keys.unwrap(header.key_id, header.wrapped_key, header.wrap_info)
    title = ObjectInfo.of(header.context).title
    return OpeningReader(chunks, header.payload_key(file_key), 0, size, title)


def rewrap(header: Header, old: KeyWrapper, new: KeyWrapper) -> Header:
    """The header with the file key wrapped under the current key of `new`."""
    file_key = old.unwrap(header.key_id, header.wrapped_key, header.wrap_info)
    return wrapped_anew(header, file_key, new)


def wrapped_anew(header: Header, file_key: bytes, keys: KeyWrapper) -> Header:
    """The header with its file key wrapped under the current key, which was tried: once the
    plaintext or the old header is gone, a wrapped key that does not open would be the loss of the
    object.

    Raises EnvelopeError.
    """
    key_id, wrapped = keys.wrap(file_key, header.wrap_info)
    if len(wrapped) > container.MAX_WRAPPED_BYTES or len(key_id.encode()) > MAX_KEY_ID_BYTES:
        raise EnvelopeError("the key service returned more than a header holds")
    if not key_id.isprintable():
        raise EnvelopeError("the key service returned an id with control characters")
    if not hmac.compare_digest(keys.unwrap(key_id, wrapped, header.wrap_info), file_key):
        raise EnvelopeError("the key service returned a wrapped key that opens as another")
    return replace(header, key_id=key_id, wrapped_key=wrapped)
