"""Frames of the arithmetic: labels, payloads in pieces, packed words.

A label says where a program is: tag, step, operation index, and a checksum of the names and sizes
of all operations so far. Both ends compute the expected label and compare it: diverging programs
are detected at the next frame. Lengths follow from the program, never from a frame.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

import numpy as np

from protocols.arrays import Octets, Words
from protocols.channel import MAX_FRAME_BYTES, Channel
from protocols.errors import DesyncError, FrameError
from protocols.ring.kernels import unpack

FRAME_BYTES = MAX_FRAME_BYTES
"""Longer payloads are sent as several frames."""

LABEL = struct.Struct(">4sIII")
"""Tag, step, operation, checksum."""


def send_all(channel: Channel, peer: str, label: bytes, octets: Octets) -> None:
    """Send bytes in frames of at most FRAME_BYTES."""
    view = octets.data
    for start in range(0, max(len(view), 1), FRAME_BYTES):
        channel.send(peer, label, view[start : start + FRAME_BYTES])


def receive_all(channel: Channel, peer: str, label: bytes, count: int) -> Octets:
    """Receive exactly `count` bytes that came through `send_all` under the same label."""
    if count <= FRAME_BYTES:
        return np.frombuffer(_receive_frame(channel, peer, label, count), np.uint8)
    out = np.empty(count, np.uint8)
    for start in range(0, count, FRAME_BYTES):
        size = min(FRAME_BYTES, count - start)
        frame = _receive_frame(channel, peer, label, size)
        out[start : start + size] = np.frombuffer(frame, np.uint8)
    return out


def swap(channel: Channel, peers: Collection[str], label: bytes, said: bytes) -> dict[str, bytes]:
    """Tell all peers the same few bytes; what each of them tells in return, at most as many."""
    for peer in peers:
        channel.send(peer, label, said)
    found = {}
    for peer in peers:
        theirs, payload = channel.receive(peer, len(said))
        check_label(peer, label, theirs)
        found[peer] = bytes(payload)
    return found


def _receive_frame(channel: Channel, peer: str, label: bytes, count: int) -> memoryview:
    theirs, payload = channel.receive(peer, count)
    check_label(peer, label, theirs)
    if len(payload) != count:
        raise FrameError(f"{peer}: a frame of {len(payload)} bytes; expected {count}")
    return payload


def unpack_words(octets: Octets, count: int, bits: int) -> Words:
    """`count` words from a packed array; a peer's padding bits are ignored."""
    if bits == 64:
        return octets.view(np.int64)
    words = np.empty(count, np.int64)
    unpack(octets, bits, words)
    return words


def check_label(peer: str, expected: bytes, received: bytes) -> None:
    """Raise DesyncError, naming both operations, unless the peer is where this node is."""
    if received == expected:
        return
    try:
        tag, step, operation, checksum = LABEL.unpack(received)
    except struct.error:
        raise FrameError(f"{peer}: a label of {len(received)} bytes") from None
    if len(expected) != LABEL.size:
        raise DesyncError(f"{peer} sent {tag!r}; expected {expected!r}")
    mine = LABEL.unpack(expected)
    raise DesyncError(
        f"{peer} is at {tag!r} step {step} operation {operation} (program {checksum:08x}), "
        f"this node at {mine[0]!r} step {mine[1]} operation {mine[2]} (program {mine[3]:08x})"
    )
