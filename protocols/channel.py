"""The interface between the arithmetic and the transport.

A `Channel` carries labelled frames to named peers. An implementation guarantees that the frames of
one peer and direction arrive once, in order, unaltered and unread by others, or that `receive`
raises. The arithmetic guarantees that both ends expect the same label: a label names step,
operation and stage, so that two programs that diverge are detected at the first frame.
"""

from typing import Protocol

MAX_LABEL_BYTES = 64
"""Labels are small fixed-size headers; anything longer is malformed."""

MAX_FRAME_BYTES = 1 << 20
"""The largest payload of one frame; longer ones are sent as several frames. A connection counts as
alive while whole frames arrive, and breaks after 5 s without one: 1 MiB arrives in time from 2
Mbit/s on. This size also limits how far the dealer runs ahead and how much a queue of frames can
hold, and lets sealing, sending and opening overlap; larger frames cost as much CPU."""

Buffer = bytes | bytearray | memoryview


class Channel(Protocol):
    """Ordered, authenticated, encrypted frames to named peers."""

    bytes_sent: int
    """Bytes handed to the network so far: payloads, labels and record overhead."""

    bytes_received: int

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        """Queue one frame. Does not wait for the peer; afterwards the caller may reuse
        `payload`."""

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        """Wait for the next frame of `peer`: its label and a payload of at most `max_bytes`.

        Raises PeerTimeoutError, PeerLostError, AuthenticationError, FrameError or
        InterruptedRunError, each naming the peer.
        """
