"""Answers measurements at a port where nodes connect: the coordinator's, or that of a doctor who
listens.

Only a connection that CURVE has admitted gets here, so every byte has a name. Each name has a
budget of bytes that refills; a message also costs MESSAGE_COST_BYTES. What comes beyond it is
answered without payload, and while a run is under way (`busy`) the budget is enough for clocks and
round trips only. The desk keeps one number per name and nothing else.

A question is a map {n, want} and a payload of at most MAX_PAYLOAD_BYTES; the answer a map and
`want` bytes. Neither says anything about a job.
"""

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from parties.errors import ControlError
from parties.wire.zmq_transport import Part
from protocols.channel import Buffer

MAX_PAYLOAD_BYTES = 64 << 10
MESSAGE_COST_BYTES = 2 << 10
BUDGET_BYTES = 64 << 20
"""Per name and minute, both directions together."""

BUSY_BUDGET_BYTES = 1 << 20
"""The same while a run is under way."""

REFILL_S = 60.0

_NOTHING = bytes(MAX_PAYLOAD_BYTES)
_Size = Annotated[int, Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
_Number = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """n: a number that the answer repeats. want: how many bytes the answer shall have."""

    n: _Number
    want: _Size = 0


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """n: as asked. at: the desk's clock, seconds since 1970. version: of the contracts there.
    quiet: nothing is sent there unless asked for, heartbeats neither. spent: the budget is used up,
    so the payload is missing. busy: a run is under way."""

    n: _Number
    at: Annotated[float, Meta(ge=0, le=1 << 40)]
    version: _Number
    quiet: bool = False
    spent: bool = False
    busy: bool = False


class Desk:
    """What a port answers. `answer` may be called by one thread."""

    def __init__(
        self,
        version: int,
        *,
        busy: Callable[[], bool] = lambda: False,
        quiet: bool = False,
        budget_bytes: int = BUDGET_BYTES,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version, self._busy, self._quiet = version, busy, quiet
        self._budget_bytes = budget_bytes
        self._clock, self._ticks = clock, ticks
        self._left: dict[str, tuple[float, float]] = {}
        """By name: bytes left, and when that was so."""
        self.names: dict[str, int] = {}
        """Who has asked, and how often."""

    def answer(self, name: str, parts: Sequence[Part]) -> Sequence[Buffer] | None:
        """The parts of the answer to `name`; None to what is not a question."""
        if not 1 <= len(parts) <= 2:
            return None
        try:
            asked = _ASK.decode(parts[0].bytes)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        given = len(parts[1]) if len(parts) == 2 else 0
        self.names[name] = self.names.get(name, 0) + 1
        busy = self._busy()
        spent = not self._pay(name, MESSAGE_COST_BYTES + given + asked.want, busy)
        told = Told(asked.n, self._clock(), self._version, self._quiet, spent, busy)
        payload = b"" if spent else memoryview(_NOTHING)[: asked.want]
        return msgspec.msgpack.encode(told), payload

    def _pay(self, name: str, count: int, busy: bool) -> bool:
        """Whether the budget of `name` had `count` bytes left."""
        most = BUSY_BUDGET_BYTES if busy else self._budget_bytes
        now = self._ticks()
        left, since = self._left.get(name, (float(most), now))
        left = min(most, left + (now - since) * most / REFILL_S)
        enough = left >= count
        self._left[name] = (left - count if enough else left, now)
        return enough


_ASK = msgspec.msgpack.Decoder(Ask)
_TOLD = msgspec.msgpack.Decoder(Told)


def question(number: int, want: int = 0, payload: Buffer = b"") -> tuple[bytes, Buffer]:
    return msgspec.msgpack.encode(Ask(number, want)), payload


def read_answer(parts: Sequence[Part], who: str) -> tuple[Told, int]:
    """The answer and the bytes of its payload. Raises ControlError."""
    if len(parts) != 2:
        raise ControlError(f"{who} sent a malformed answer to a measurement")
    try:
        return _TOLD.decode(parts[0].bytes), len(parts[1])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ControlError(f"{who} sent a malformed answer to a measurement") from error
