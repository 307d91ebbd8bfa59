"""Several envelopes for one recipient in one file: only a container.

A bundle is not signed: each envelope in it is, by its own sender, and names its step, tensors and
recipient. The reader must check that no sender is missing and none occurs twice.

    magic ‖ u32 count ‖ count × (u64 length ‖ envelope)
"""

from collections.abc import Sequence

from protocols.channel import Buffer
from protocols.errors import EnvelopeError

MAGIC = b"mpc-train bundle 1\n"
MAX_ENVELOPES = 1024


def pack_bundle(envelopes: Sequence[Buffer]) -> bytes:
    """One file from 1 to 1024 envelopes. Raises EnvelopeError for another number of them."""
    if not 1 <= len(envelopes) <= MAX_ENVELOPES:
        raise EnvelopeError(f"a bundle holds 1 to {MAX_ENVELOPES} envelopes, not {len(envelopes)}")
    parts: list[Buffer] = [MAGIC, len(envelopes).to_bytes(4, "big")]
    for envelope in envelopes:
        parts += (len(envelope).to_bytes(8, "big"), envelope)
    return b"".join(parts)


def unpack_bundle(data: Buffer) -> list[bytes]:
    """The envelopes of a bundle, in order, not opened. Raises EnvelopeError if it is not a
    bundle."""
    view = memoryview(data)
    position = len(MAGIC) + 4
    if len(view) < position or bytes(view[: len(MAGIC)]) != MAGIC:
        raise EnvelopeError("not a bundle of this version")
    count = int.from_bytes(view[len(MAGIC) : position], "big")
    if not 1 <= count <= MAX_ENVELOPES:
        raise EnvelopeError(f"a bundle holds 1 to {MAX_ENVELOPES} envelopes, this one {count}")
    envelopes: list[bytes] = []
    for number in range(count):
        start = position + 8
        end = start + int.from_bytes(view[position:start], "big")
        if start > len(view) or end > len(view):
            raise EnvelopeError(f"envelope {number + 1} of {count} is cut off")
        envelopes.append(bytes(view[start:end]))
        position = end
    if position != len(view):
        raise EnvelopeError(f"{len(view) - position} bytes follow the last envelope")
    return envelopes
