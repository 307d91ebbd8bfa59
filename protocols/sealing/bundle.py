"""Several envelopes for one recipient and the record of their run in one file: only a container.

A bundle is not signed: each envelope in it is, by its own sender, and names its step, tensors and
recipient; the record, which is opaque here, holds the signatures of all nodes of the run and the
digests of the envelopes. The reader must check that these fit, that no sender is missing and none
occurs twice.

    magic ‖ u64 length ‖ record ‖ u32 count ‖ count × (u64 length ‖ envelope)
"""

from collections.abc import Sequence
from typing import NamedTuple

from protocols.channel import Buffer
from protocols.errors import EnvelopeError

MAGIC = b"mpc-train bundle 2\n"
MAX_ENVELOPES = 1024


class Bundle(NamedTuple):
    """record: of the run. envelopes: in order, not opened."""

    record: bytes
    envelopes: list[bytes]


def pack_bundle(record: Buffer, envelopes: Sequence[Buffer]) -> bytes:
    """One file from a record and 1 to 1024 envelopes. Raises EnvelopeError for another number of
    them."""
    if not 1 <= len(envelopes) <= MAX_ENVELOPES:
        raise EnvelopeError(f"a bundle holds 1 to {MAX_ENVELOPES} envelopes, not {len(envelopes)}")
    parts: list[Buffer] = [MAGIC, len(record).to_bytes(8, "big"), record]
    parts.append(len(envelopes).to_bytes(4, "big"))
    for envelope in envelopes:
        parts += (len(envelope).to_bytes(8, "big"), envelope)
    return b"".join(parts)


def unpack_bundle(data: Buffer) -> Bundle:
    """Record and envelopes, neither verified. Raises EnvelopeError if it is not a bundle."""
    view = memoryview(data)
    start = len(MAGIC) + 8
    if len(view) < start or bytes(view[: len(MAGIC)]) != MAGIC:
        raise EnvelopeError("not a bundle of this version")
    end = start + int.from_bytes(view[len(MAGIC) : start], "big")
    if end + 4 > len(view):
        raise EnvelopeError("a bundle whose record is cut off")
    record, position = bytes(view[start:end]), end + 4
    count = int.from_bytes(view[end:position], "big")
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
    return Bundle(record, envelopes)
