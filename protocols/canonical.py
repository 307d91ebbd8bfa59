"""A unique byte string for each list of fields, so that hashes and signatures have one meaning.

Each field is preceded by its length (32 bits, big endian). Two different lists never give the
same bytes: no field can borrow bytes from its neighbour, which plain concatenation would allow.
`unpack` accepts exactly what `pack` writes and nothing longer than the caller expects.
"""

from collections.abc import Iterable, Sequence

from protocols.errors import FrameError

LENGTH_BYTES = 4
MAX_FIELD_BYTES = (1 << 32) - 1


def pack(*fields: bytes | bytearray | memoryview) -> bytes:
    """Join `fields`, each with its length before it."""
    parts: list[bytes | bytearray | memoryview] = []
    for field in fields:
        parts.append(len(field).to_bytes(LENGTH_BYTES, "big"))
        parts.append(field)
    return b"".join(parts)


def unpack(data: bytes | bytearray | memoryview, max_bytes: Sequence[int]) -> list[bytes]:
    """Split the output of `pack`: as many fields as bounds, field k at most `max_bytes[k]` long.

    Raises FrameError if a field is cut off or too long, or if bytes are left over.
    """
    view = memoryview(data)
    fields: list[bytes] = []
    position = 0
    for number, bound in enumerate(max_bytes):
        start = position + LENGTH_BYTES
        if start > len(view):
            raise FrameError(f"field {number} of {len(max_bytes)} is missing")
        length = int.from_bytes(view[position:start], "big")
        if length > bound:
            raise FrameError(f"field {number} has {length} bytes, at most {bound} are allowed")
        position = start + length
        if position > len(view):
            raise FrameError(f"field {number} is cut off")
        fields.append(bytes(view[start:position]))
    if position != len(view):
        raise FrameError(f"{len(view) - position} bytes follow the last field")
    return fields


def unpack_list(data: bytes, max_count: int, max_bytes: int) -> list[bytes]:
    """Split the output of `pack` of up to `max_count` fields. Raises FrameError like `unpack`."""
    fields: list[bytes] = []
    position = 0
    while position < len(data):
        if len(fields) == max_count:
            raise FrameError(f"more than {max_count} fields")
        end = position + LENGTH_BYTES + int.from_bytes(data[position : position + LENGTH_BYTES])
        fields += unpack(data[position:end], [max_bytes])
        position = end
    return fields


def pack_texts(texts: Iterable[str]) -> bytes:
    """Join texts, UTF-8, as one field list."""
    return pack(*(text.encode() for text in texts))


def unpack_texts(data: bytes, max_count: int, max_bytes: int) -> tuple[str, ...]:
    """Split the output of `pack_texts`. Raises FrameError like `unpack`, and for invalid UTF-8."""
    return tuple(decode_text(text) for text in unpack_list(data, max_count, max_bytes))


def decode_text(data: bytes) -> str:
    """UTF-8 to str. Raises FrameError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError("a text is not UTF-8") from error
