"""An evaluator's desk for owners that run no node: takes their updates, hands out what was opened.

A thread of its own answers them, so that they are heard while the node trains or computes. What an
owner sends can replace its own update and nothing else; what is malformed is answered with a word.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.errors import ArtifactError
from mpc_train.federated.rounds import messages
from mpc_train.federated.rounds.messages import (
    FETCH,
    PIECE_BYTES,
    PLACE,
    ROUND,
    UPDATE_BYTES,
    Arrived,
    State,
)
from protocols.errors import InterruptedRunError

if TYPE_CHECKING:
    from mpc_train.federated.rounds.kept import Kept
    from parties.agreement.visitors import Heard, Visitors
    from protocols.arrays import Words

log = logging.getLogger(__name__)

WAIT_S = 0.25
MAX_PIECES = 1 << 20


@dataclass(repr=False)
class _Incoming:
    """The update of one owner. visit, number: of the question with which it began. octets: the
    masked words, at the first evaluator, to which they are sent."""

    arrived: Arrived
    visit: bytes
    number: int
    octets: np.ndarray | None = None
    pieces: set[int] = field(default_factory=set)

    def is_whole(self) -> bool:
        return self.octets is None or len(self.pieces) * PIECE_BYTES >= self.octets.nbytes


class Desk:
    """A context manager, inside which owners are answered.

    words: of an update. owners: who may send one. kept: the rounds that were opened. root: of this
    evaluator's share of the mask of an update, which its owner is told.
    """

    def __init__(
        self,
        visitors: Visitors,
        words: int,
        owners: Collection[str],
        kept: Kept,
        root: Callable[[Arrived], bytes],
        *,
        leads: bool,
    ) -> None:
        self._root = root
        self._visitors, self._words, self._owners = visitors, words, frozenset(owners)
        self._kept, self._leads = kept, leads
        self._changed = threading.Condition()
        self._incoming: dict[str, _Incoming] = {}
        self._gathering = 0
        self._fetched: dict[str, int] = {}
        self._closing = False
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    def __enter__(self) -> Desk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._thread.join(10 * WAIT_S)

    def open_round(self, number: int) -> None:
        """From now on updates of this round are taken.

        Others than the first may have heard the beginning of one already, and forget none: the
        first says which of them counts.
        """
        with self._changed:
            if self._leads:
                self._incoming.clear()
            self._gathering = number

    def gather(self, deadline: float, check: Callable[[], None]) -> tuple[Arrived, ...]:
        """At the first evaluator: the updates that are whole, when all are or at the deadline, as
        `time.monotonic` has it. check: called now and then, raises if the node must stop."""
        while True:
            check()
            with self._changed:
                here = tuple(one.arrived for one in self._incoming.values() if one.is_whole())
                if len(here) == len(self._owners) or time.monotonic() >= deadline:
                    self._gathering = 0
                    return tuple(sorted(here, key=lambda one: one.owner))
                self._changed.wait(WAIT_S)
            if self.fault is not None:
                raise self.fault

    def holds(self, arrived: Sequence[Arrived]) -> tuple[bool, ...]:
        """Of which of these updates this evaluator has told the root of a mask."""
        with self._changed:
            self._gathering = 0
            found = []
            for one in arrived:
                mine = self._incoming.get(one.owner)
                found.append(mine is not None and mine.arrived == one and mine.is_whole())
            return tuple(found)

    def take(self, arrived: Arrived) -> Words | None:
        """The masked words of an update that is there, once: int64[words] at the first evaluator,
        None at every other one, which the first tells them."""
        with self._changed:
            one = self._incoming.pop(arrived.owner)
        return None if one.octets is None else one.octets.view(np.int64)

    def end(self, owners: Collection[str], number: int, patience_s: float) -> None:
        """All rounds are over: wait until these owners have fetched the last one, or have left."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            while time.monotonic() < deadline and self.fault is None:
                if all(self._fetched.get(owner, 0) >= number for owner in owners):
                    return
                self._changed.wait(WAIT_S)

    def _run(self) -> None:
        while not self._closing:
            try:
                heard = self._visitors.receive(WAIT_S)
            except InterruptedRunError as error:
                self.fault = error
                return
            if heard is None:
                continue
            try:
                said = self._answer(heard)
            except (ArtifactError, OSError) as error:
                log.warning("a round that was opened cannot be read: %s", error)
                said = messages.refusal("unknown")
            except Exception as error:
                self.fault = error
                return
            self._visitors.answer(heard.visit, heard.number, said)

    def _answer(self, heard: Heard) -> bytes:
        kind, data = bytes(heard.data[:1]), heard.data[1:]
        if heard.client not in self._owners:
            return messages.refusal("malformed")
        if kind == messages.STATE and not data:
            with self._changed:
                state = State(self._kept.opened, self._gathering, self._kept.run)
                return messages.answer(messages.encoded(state))
        if kind == messages.BEGIN and len(data) == ROUND.size + UPDATE_BYTES:
            (number,) = ROUND.unpack(data[: ROUND.size])
            return self._begin(heard, number, bytes(data[ROUND.size :]))
        if kind == messages.PIECE and self._leads and len(data) > PLACE.size:
            number, offset = PLACE.unpack(data[: PLACE.size])
            return self._piece(heard, number, offset, data[PLACE.size :])
        if kind == messages.KEY and len(data) == ROUND.size:
            (number,) = ROUND.unpack(data)
            if not 1 <= number <= self._kept.opened:
                return messages.refusal("unknown")
            record, content = self._kept.read(number)
            pad = b"" if self._leads else bytes(content)
            return messages.answer(messages.key_answer(record, pad))
        if kind == messages.GET and self._leads and len(data) == FETCH.size:
            return self._get(heard.client, *FETCH.unpack(data))
        return messages.refusal("malformed")

    def _begin(self, heard: Heard, number: int, update: bytes) -> bytes:
        arrived = Arrived(heard.client, update)
        with self._changed:
            # The others than the first learn later which round it is, and need not know it now.
            if self._leads and number != self._gathering:
                return messages.refusal("late")
            octets = np.empty(8 * self._words, np.uint8) if self._leads else None
            self._incoming[heard.client] = _Incoming(arrived, heard.visit, heard.number, octets)
            self._changed.notify_all()
        return messages.answer(self._root(arrived))

    def _piece(self, heard: Heard, number: int, offset: int, data: memoryview) -> bytes:
        with self._changed:
            one = self._incoming.get(heard.client)
            if one is None or (one.visit, one.number) != (heard.visit, number):
                return messages.refusal("unknown")
            if not self._gathering:
                return messages.refusal("late")
            assert one.octets is not None
            expected = min(PIECE_BYTES, one.octets.nbytes - offset)
            if offset % PIECE_BYTES or expected <= 0 or len(data) != expected:
                return messages.refusal("malformed")
            if offset in one.pieces:
                return messages.refusal("malformed")
            one.octets[offset : offset + expected] = np.frombuffer(data, np.uint8)
            one.pieces.add(offset)
            if one.is_whole():
                self._changed.notify_all()
        return messages.answer(b"")

    def _get(self, owner: str, number: int, offset: int) -> bytes:
        if not 1 <= number <= self._kept.opened:
            return messages.refusal("unknown")
        content = memoryview(self._kept.read(number)[1])
        if offset % PIECE_BYTES or offset >= len(content):
            return messages.refusal("malformed")
        with self._changed:
            if offset + PIECE_BYTES >= len(content):
                self._fetched[owner] = max(number, self._fetched.get(owner, 0))
                self._changed.notify_all()
        return messages.answer(content[offset : offset + PIECE_BYTES])
