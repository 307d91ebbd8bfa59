"""Frames between two nodes over connections that break: each arrives once, in order.

Each direction numbers its frames, from 0 for the first of the session. The sender keeps each frame,
as it was sealed, until the receiver has acknowledged it. After a break it sends the same bytes
again, from the number that the receiver names: nothing is sealed a second time, and record numbers
never go back. The receiver takes the frame that is due and drops every other one: an earlier number
is a copy; a later one shows that frames were lost, and the receiver asks for them.

A frame carries its own number and how many frames its sender had received, which acknowledges
them. Neither is authenticated, nor needs to be: the record number inside `secure_channel` decides
which frame is the next. A wrong number leads to a frame that does not verify, or to one that never
comes; a wrong acknowledgement to a sender that cannot send again what was lost. In every case the
run ends with an error, and nothing is accepted in the place of what is missing.

Messages about the connection travel among the frames, 26 octets each:

    FF ‖ kind (1) ‖ number (8) ‖ first 16 bytes of HMAC-SHA256(key; kind ‖ number)

    ACK     the sender has received the frames below `number`
    RESUME  the same; send those from `number` on again
    ASK     the same; and answer with RESUME, for the connection is new
    SENT    the sender has sent the frames below `number`: ask for what did not arrive
    BYE     the same; and no more will come, since the sender closes the connection

Each direction of a pair has its own key, which depends on the session (`admission.link_key`). A
copy of an old message does no harm, because numbers only grow.
"""

import hmac
import time

from protocols.channel import Buffer
from protocols.errors import AuthenticationError, FrameError

LINK = b"\xff"
"""The first byte of a message about the connection; that of a frame is the length of its label."""

ACK, RESUME, ASK, SENT, BYE = range(1, 6)

MESSAGE_BYTES = 26
NUMBER_BYTES = 8

MAX_KEPT_BYTES = 64 << 20
"""How many bytes of frames to one peer may wait for acknowledgement; then sending waits. It fills a
connection of 1 Gbit/s over 0.5 s."""

KEPT_COST_BYTES = 512
"""What a kept frame costs beyond its payload."""

ACK_BYTES = 4 << 20
FRAME_ACK_BYTES = ACK_BYTES // 64
"""The receiver of frames that sends none acknowledges after this much, or sooner when nothing more
comes; each frame counts as this much more than its payload."""

MAX_AGAIN = 2
"""How often frames are handed a second time to a connection that has not broken and loses none."""
AGAIN_S = 3.0
"""How long after a question without an answer it is asked again."""


class Link:
    """One peer's frames in both directions, whatever connection carries them. For one thread.

    send_key, receive_key: those of `admission.link_key`.
    """

    __slots__ = (
        "_again",
        "_asked",
        "_kept",
        "_keys",
        "_probed",
        "ack_in",
        "acknowledged",
        "closed",
        "down_since",
        "held",
        "lossy",
        "passed",
        "received",
        "repeated",
        "reported",
        "room",
        "sent",
    )

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._keys = send_key, receive_key
        self._kept: dict[int, tuple[int, tuple[Buffer, ...]]] = {}
        self.sent = self.acknowledged = 0
        self.passed = 0
        """The number of the next frame to hand to the connection."""
        self.room = MAX_KEPT_BYTES
        """How many bytes may be kept beyond those that are."""
        self.received = self.reported = 0
        """Frames taken, and how many of them were acknowledged."""
        self.ack_in = ACK_BYTES
        """After how many more bytes to acknowledge."""
        self.held = False
        """Whether frames are only kept, because the peer has not said what it received."""
        self.lossy = False
        """Whether frames may get lost on the way although the connection does not break, as in the
        coordinator's relay."""
        self.closed = False
        """Whether the peer said that no more comes."""
        self.down_since: float | None = None
        """Since when there is no connection that both ends agree on; None: there is one."""
        self.repeated = 0
        """Frames that were handed to a connection a second time."""
        self._again = (MAX_AGAIN, -1)
        """How often frames may still be handed over a second time to a connection that has not
        broken, and from which number on they were last."""
        self._asked = (0.0, -1)
        self._probed = (0.0, -1)

    def keep(self, parts: tuple[Buffer, ...], size: int) -> None:
        """Keep one more frame to send, of `size` bytes; its parts acknowledge what was received."""
        cost = KEPT_COST_BYTES + size
        self._kept[self.sent] = cost, parts
        self.sent += 1
        self.room -= cost
        self.reported, self.ack_in = self.received, ACK_BYTES

    def frame(self, number: int) -> tuple[Buffer, ...]:
        """The parts of a kept frame."""
        return self._kept[number][1]

    def message(self, kind: int) -> bytes:
        """A message about the connection, with the number that belongs to its kind."""
        number = self.sent if kind in (SENT, BYE) else self.received
        if kind in (ACK, RESUME, ASK):
            self.reported, self.ack_in = number, ACK_BYTES
        said = bytes((kind,)) + number.to_bytes(NUMBER_BYTES, "big")
        return LINK + said + hmac.digest(self._keys[0], said, "sha256")[:16]

    def read(self, data: bytes) -> int | None:
        """Take in a message about the connection; returns the kind of message that answers it.

        Raises AuthenticationError and FrameError, without the peer's name.
        """
        said = data[1 : 2 + NUMBER_BYTES]
        tag = hmac.digest(self._keys[1], said, "sha256")[:16]
        if len(data) != MESSAGE_BYTES or not hmac.compare_digest(tag, data[2 + NUMBER_BYTES :]):
            raise AuthenticationError("a message about the connection does not verify")
        kind, number = said[0], int.from_bytes(said[1:], "big")
        if kind in (SENT, BYE):
            self.closed = self.closed or kind == BYE
            if number > self.received:
                return self.asks()
            return ACK if kind == SENT else None
        if not ACK <= kind <= ASK:
            raise FrameError(f"a message about the connection has the unknown kind {kind}")
        self.forget(number)
        # Below what was acknowledged: an old copy, of which nothing is left to send.
        if kind != ACK and number >= self.acknowledged and self._may_repeat(number):
            self.repeated += self.passed - number if self.passed > number else 0
            self.passed = number
            self.held = False
            self.down_since = None
        return RESUME if kind == ASK else None

    def _may_repeat(self, number: int) -> bool:
        """Whether frames from this number on are handed over again, which a peer asks for.

        Over a connection that has not broken they are on their way, if nothing unheard of happened:
        a peer that asks again and again, and reads nothing, would fill the queues with copies.
        """
        if self.held:
            self._again = MAX_AGAIN, number
        elif not self.lossy:
            left, last = self._again
            if not left or number == last:
                return False
            self._again = left - 1, number
        return True

    def forget(self, number: int) -> None:
        """The peer has the frames below `number`. Raises FrameError if they were never sent."""
        if number > self.sent:
            raise FrameError(f"{number} frames are said to have arrived, but {self.sent} were sent")
        while self.acknowledged < number:
            self.room += self._kept.pop(self.acknowledged)[0]
            self.acknowledged += 1
        self.passed = max(self.passed, self.acknowledged)

    def asks(self) -> int | None:
        """RESUME, unless the same was asked a moment ago."""
        now = time.monotonic()
        asked_at, number = self._asked
        if number == self.received and now - asked_at < AGAIN_S:
            return None
        self._asked = now, self.received
        return RESUME

    def probes(self, now: float) -> bool:
        """Whether to say SENT: frames wait for acknowledgement, and none came for a while."""
        since, acknowledged = self._probed
        if self.passed == self.acknowledged or acknowledged != self.acknowledged:
            self._probed = now, self.acknowledged
            return False
        if now - since < AGAIN_S:
            return False
        self._probed = now, self.acknowledged
        return True

    def restart(self) -> None:
        """Before the peer has said anything: all frames go out once more."""
        self.passed = self.acknowledged

    def breaks(self, now: float) -> None:
        """The connection is gone: keep frames back until the peer says what it received."""
        self.held = True
        if self.down_since is None:
            self.down_since = now

    def __repr__(self) -> str:
        return f"Link({self.sent} sent, {self.acknowledged} acknowledged, {self.received} received)"
