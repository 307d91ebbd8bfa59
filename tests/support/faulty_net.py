"""A training of all roles in one process, over real data planes and a wire that misbehaves once.

Each role has a real `SecureChannel` over a real `DataPlane`; only the connections below are
queues, on which one frame of one pair meets one fault. Roles take turns (`lockstep`), so a case
repeats exactly. Records every use of a mask and of a record number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

import pytest

from parties.stop import StopFlag
from parties.wire import resume
from parties.wire.data_plane import DataPlane
from parties.wire.resume import LINK, Link
from parties.wire.secure_channel import SecureChannel
from protocols.channel import Buffer
from protocols.roles.streams import Stream
from protocols.sealing.handshake import Keys
from protocols.sealing.record import RecordSealer
from tests.support.lockstep import Baton
from tests.support.loopback import DEALER, Program, make_role

NAMES = ("p0", "p1", DEALER)
SID = bytes(range(32))
LOSSES = ("drop", "duplicate", "reorder", "delay", "stall", "cut")
"""Faults after which the run goes on."""

DAMAGES = ("truncate", "corrupt")
"""Faults that the record layer must notice, where they are not repaired."""

LIMIT_S = 30.0
DELAY_POLLS, STALL_POLLS = 5, 60


@dataclass(frozen=True)
class Fault:
    """What happens to which frame of which direction: its number in the order of sending."""

    kind: str
    sender: str
    receiver: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.sender}-{self.receiver} {self.number}"


@dataclass
class Uses:
    """Which masks and record numbers were used, and what was used twice."""

    seen: set[tuple[object, ...]] = field(default_factory=set)
    again: list[tuple[object, ...]] = field(default_factory=list)

    def add(self, *use: object) -> None:
        if use in self.seen:
            self.again.append(use)
        self.seen.add(use)


@contextmanager
def recorded_uses() -> Iterator[Uses]:
    """Records (stream, step, piece) of every piece of keystream, and (key, number) of every
    record that is sealed."""
    uses, encrypt, following = Uses(), Stream._encrypt, RecordSealer._next
    streams: list[Stream] = []  # alive, so that no other gets their place in memory

    def masking(self: Stream, octets: Any, room: Any, count: int) -> None:
        before = self._pieces
        encrypt(self, octets, room, count)
        streams.append(self)
        for piece in range(before, self._pieces):
            uses.add(id(self), self._step, piece)

    def numbering(self: RecordSealer, length: int) -> bytes:
        nonce = following(self, length)
        uses.add(self._key, nonce)
        return nonce

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "_encrypt", masking)
        patch.setattr(RecordSealer, "_next", numbering)
        # Questions are repeated at every turn: turns take no time.
        patch.setattr(resume, "AGAIN_S", 0.0)
        yield uses


class _Way:
    """One direction between two nodes."""

    def __init__(self) -> None:
        self.queue: deque[tuple[bytes, ...]] = deque()
        self.held: deque[tuple[bytes, ...]] = deque()
        self.polls_left = 0
        """How often the receiver looks in vain until what is held arrives."""
        self.is_stalled = False
        self.swapped: tuple[bytes, ...] | None = None
        self.frames = 0


class FaultyNet:
    """The nodes' channels. fault: None for an undisturbed run; counts frames by direction."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.baton = Baton()
        self.ways = {pair: _Way() for pair in permutations(NAMES, 2)}
        self.cuts: dict[frozenset[str], int] = {}
        self.struck = False
        self.labels: dict[tuple[str, str], list[bytes]] = {pair: [] for pair in self.ways}
        self.planes: dict[str, DataPlane] = {}
        self.ended: set[str] = set()
        self.deadline = time.monotonic() + LIMIT_S

    def endpoint(self, name: str) -> SecureChannel:
        plane = DataPlane(None, name, StopFlag(), reconnect_s=LIMIT_S)  # type: ignore[arg-type]
        keys = {}
        for peer in NAMES:
            if peer != name:
                there, back = (
                    f"{a}>{b}".encode().ljust(32) for a, b in ((name, peer), (peer, name))
                )
                plane._links[peer] = Link(there, back)
                plane._dialled[peer] = _End(self, name, peer)  # type: ignore[assignment]
                plane._inbox[peer], plane._inbox_bytes[peer] = deque(), 0
                keys[peer] = Keys(there, back, SID, b"x" * 32)
        self.planes[name] = plane
        channel = SecureChannel(plane, name, SID, keys, LIMIT_S)
        seal = channel._send

        def labelled(peer: str, label: bytes, payload: Buffer) -> None:
            self.labels[name, peer].append(label)
            seal(peer, label, payload)

        channel._send = labelled  # type: ignore[method-assign]
        return channel

    def turn(self) -> None:
        """Let the other roles run once."""
        assert time.monotonic() < self.deadline, f"a hang: {self.fault}"
        turns = iter((False, True))
        self.baton.wait_until(lambda: next(turns))

    def put(self, sender: str, receiver: str, parts: tuple[bytes, ...]) -> None:
        way, fault = self.ways[sender, receiver], self.fault
        is_frame = parts[0][:1] != LINK
        number, way.frames = way.frames, way.frames + is_frame
        struck = fault is not None and is_frame and not self.struck
        if (
            struck
            and fault is not None
            and (sender, receiver, number)
            == (
                fault.sender,
                fault.receiver,
                fault.number,
            )
        ):
            self.struck = True
            self._strike(fault.kind, way, parts)
            return
        if way.is_stalled:
            way.held.append(parts)
        else:
            way.queue.append(parts)
        if way.swapped is not None:
            way.queue.append(way.swapped)
            way.swapped = None

    def _strike(self, kind: str, way: _Way, parts: tuple[bytes, ...]) -> None:
        assert self.fault is not None
        if kind == "duplicate":
            way.queue += [parts, parts]
        elif kind == "reorder":
            way.swapped = parts
        elif kind in ("delay", "stall"):
            way.held.append(parts)
            way.is_stalled = kind == "stall"
            way.polls_left = STALL_POLLS if kind == "stall" else DELAY_POLLS
        elif kind == "truncate":
            way.queue.append((*parts[:-1], parts[-1][: len(parts[-1]) // 2]))
        elif kind == "corrupt":
            last = bytearray(parts[-1])
            # Each case another bit: of the head, of the label's record or of the payload's.
            place = 7919 * (self.fault.number + 1) % (8 * len(last))
            last[place // 8] ^= 1 << place % 8
            way.queue.append((*parts[:-1], bytes(last)))
        elif kind == "cut":
            pair = frozenset((self.fault.sender, self.fault.receiver))
            for one, other in (tuple(pair), tuple(pair)[::-1]):
                self.ways[one, other].queue.clear()
                self.ways[one, other].held.clear()
            self.cuts[pair] = self.cuts.get(pair, 0) + 1
        else:
            assert kind == "drop"

    def take(self, sender: str, receiver: str) -> tuple[bytes, ...] | None:
        way = self.ways[sender, receiver]
        if way.held:
            way.polls_left -= 1
            if way.polls_left <= 0:
                way.queue += way.held
                way.held.clear()
                way.is_stalled = False
        return way.queue.popleft() if way.queue else None

    def end(self, name: str) -> None:
        """Look after the connections until all roles have ended, as a node does."""
        self.ended.add(name)
        while len(self.ended) < len(NAMES):
            plane = self.planes[name]
            plane._tend()
            plane._read_ahead(64)
            self.turn()


class _Part(bytes):
    """What the data plane uses of a received part."""

    @property
    def buffer(self) -> memoryview:
        return memoryview(self)

    @property
    def bytes(self) -> bytes:
        return self[:]


class _End:
    """What the data plane uses of a `Dialled`."""

    trouble = None

    def __init__(self, net: FaultyNet, me: str, peer: str) -> None:
        self._net, self._me, self._peer = net, me, peer
        self._pair = frozenset((me, peer))
        self._known = 0
        self.lost = False

    def send(self, parts: tuple[Buffer, ...]) -> bool:
        if len(parts) > 1 or parts[0] != b"":  # what begins a connection says nothing here
            self._net.put(self._me, self._peer, tuple(bytes(part) for part in parts))
        return True

    def receive(self, *, wait: bool = True) -> list[_Part] | None:
        parts = self._net.take(self._peer, self._me)
        if parts is None and wait:
            self._net.turn()
            parts = self._net.take(self._peer, self._me)
        return None if parts is None else [_Part(part) for part in parts]

    def update(self) -> bool:
        """A cut is noticed, a new attempt begins, and the next call finds it connected."""
        if self._known != self._net.cuts.get(self._pair, 0):
            self._known = self._net.cuts[self._pair]
            self.lost = True
            return True
        self.lost = False
        return False

    def close(self, linger_s: float) -> None: ...


def train(program: Program, fault: Fault | None = None) -> tuple[list[Any], FaultyNet]:
    """The results of `program` at all roles, and the net with its transcript."""
    net = FaultyNet(fault)
    roles = [make_role(net, 2, index) for index in (0, 1, None)]  # type: ignore[arg-type]

    def work(name: str, role: Any) -> Any:
        role.begin_step(0)
        result = program(role)
        role.close()
        net.end(name)
        return result

    return net.baton.run([partial(work, *each) for each in zip(NAMES, roles, strict=True)]), net
