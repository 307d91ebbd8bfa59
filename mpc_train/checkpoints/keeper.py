"""Checkpoints of one run: when they are written, and how a session goes on from one.

Joined rows are kept before the first step, once, and with them a checkpoint at step 0. If one
evaluator cannot keep them, nobody writes checkpoints in this session.

The first evaluator's clock says when one is due, or a node is asked to stop: at each point the
evaluators tell each other whether one of them wants a checkpoint. Each writes its own part, says
whether that is durable, and waits for the others: no evaluator is ever more than one checkpoint
ahead, so the newest that all have is one of the two that each keeps. A part that cannot be written
is a warning, and the training goes on.

A later session goes on from a checkpoint that all evaluators have signed for (`token`). They show
each other under their pairwise keys that they hold the same Δ, and tell the dealer names and
shapes. Nothing is written by the dealer, who holds nothing that a session has not given it anew.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from struct import Struct
from typing import TYPE_CHECKING, Protocol

import msgspec

from mpc_train.checkpoints.joined import JoinedRows, Reader, restored
from mpc_train.checkpoints.live import SUMS, Live
from mpc_train.checkpoints.points import is_point
from mpc_train.checkpoints.state import Position, State
from mpc_train.checkpoints.summands import again
from mpc_train.errors import ArtifactError
from protocols.channel import MAX_FRAME_BYTES
from protocols.errors import DesyncError
from protocols.roles.frames import check_label, swap

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.preparation.sharing import Shared
    from protocols.arrays import Shape
    from protocols.channel import Channel
    from protocols.roles.role import Role
    from protocols.shares.masked import Masked

PROOF_LABEL = "mpc-train checkpoint proof v1"
DUE, WRITTEN, PROOF, POSITION = b"checkpoint due", b"checkpoint kept", b"resume", b"resume from"
ROWS = b"joined kept"
_TOKEN = Struct(">IB32s")
KEPT = 2
"""How many checkpoints an evaluator keeps."""

log = logging.getLogger(__name__)


def token_of(step: int, finished: bool, sid: bytes) -> bytes:
    """The name of a checkpoint among nodes: later states are larger. sid: of the session that wrote
    it, in which no step comes twice."""
    return _TOKEN.pack(step, finished, sid)


def place_of(token: bytes) -> tuple[int, bool]:
    """The step of a checkpoint, and whether training was over. Raises ArtifactError."""
    return parts_of(token)[:2]


def parts_of(token: bytes) -> tuple[int, bool, bytes]:
    """The same, and the session that wrote it."""
    if len(token) != _TOKEN.size:
        raise ArtifactError("not the name of a checkpoint")
    step, finished, sid = _TOKEN.unpack(token)
    return step, bool(finished), sid


class Shelf(Protocol):
    """Where a node keeps its own checkpoints of one job, encrypted."""

    def tokens(self) -> tuple[bytes, ...]:
        """The names of those that are there, whole and readable or not."""

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None:
        """Keep one; it is durable when this returns. Raises ArtifactError where it cannot be.

        rows: the digest of the joined rows without which it says nothing.
        """

    def read(self, token: bytes) -> bytes:
        """The content of one."""

    def discard(self, token: bytes) -> None:
        """Destroy one. Raises ArtifactError."""

    def prune(self, newest: int) -> None:
        """Destroy all but the newest ones; with 0 the joined rows too. Raises
        ArtifactError."""

    def write_rows(self, pieces: Iterable[bytes]) -> None:
        """Keep the joined rows. Durable, and errors, as for `write`."""

    def rows(self) -> AbstractContextManager[Reader]:
        """The joined rows. Raises ArtifactError where there are none."""


class Link(Protocol):
    """What a keeper needs of a session."""

    @property
    def me(self) -> str: ...

    @property
    def sid(self) -> bytes: ...

    @property
    def channel(self) -> Channel: ...

    def export(self, peer: str, label: str) -> bytes: ...

    @property
    def asked_to_stop(self) -> Callable[[], bool]: ...


class Keeper:
    """The checkpoints of one session at one node. shelf: an evaluator's; None at the dealer.

    every_s: seconds between two checkpoints, by the first evaluator's clock. warn: called with a
    sentence for this node's operator.
    """

    def __init__(
        self,
        session: Link,
        job: Job,
        shelf: Shelf | None,
        every_s: float,
        warn: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._job, self._shelf = session, job, shelf
        self._every_s, self._warn, self._clock = every_s, warn, clock
        self._last = clock()
        self._live: Live | None = None
        self._resumed: State | None = None
        self._position: Position | None = None
        self._joined: tuple[int, bytes] = 0, b""
        self._me = session.me
        self._peers = [name for name in job.evaluators if name != session.me]

    @property
    def writes(self) -> bool:
        """Whether this node writes checkpoints."""
        return self._shelf is not None

    @property
    def joined_before(self) -> int:
        """The number of rows that an earlier session has joined and kept; 0: none."""
        return 0 if self._position is None else self._position.joined

    @property
    def begun(self) -> int:
        """The steps that lie before this session."""
        return 0 if self._position is None else self._position.step

    @property
    def finished(self) -> bool:
        """Whether training was over before this session."""
        return self._position is not None and self._position.finished

    def resume(self, token: bytes) -> None:
        """Agree with the others on the state that `token` names; `start` puts it back.

        Raises ArtifactError if what this node or another one holds is not that state.
        """
        channel, step = self._session.channel, place_of(token)
        if self._shelf is None:
            self._position = self._told()
        else:
            state = State.from_bytes(self._shelf.read(token))
            keys = {peer: self._session.export(peer, PROOF_LABEL) for peer in self._peers}
            for peer, key in keys.items():
                channel.send(peer, PROOF, state.proof(key, self._me))
            for peer, key in keys.items():
                label, proof = channel.receive(peer, len(state.agreed))
                check_label(peer, PROOF, label)
                if not hmac.compare_digest(bytes(proof), state.proof(key, peer)):
                    raise ArtifactError(
                        f"{peer} holds another state of the training after step {step[0]} than "
                        f"{self._me}; start the job anew with --fresh at one of them"
                    )
            # The dealer learns neither losses nor anything else that was revealed to evaluators.
            told = msgspec.structs.replace(state.position, losses=())
            channel.send(self._job.dealer, POSITION, told.to_bytes())
            self._resumed, self._position = state, state.position
            self._joined = state.position.joined, state.rows
        if (self._position.step, self._position.finished) != step:
            raise ArtifactError("a checkpoint is of another step than its name says")
        if (self._position.joined > 0) != (self._job.data.join is not None):
            raise ArtifactError("a checkpoint says that rows are joined, or not, unlike the job")

    def _told(self) -> Position:
        """At the dealer: what all evaluators say of the state."""
        said = set()
        for peer in self._job.evaluators:
            label, payload = self._session.channel.receive(peer, MAX_FRAME_BYTES)
            check_label(peer, POSITION, label)
            said.add(bytes(payload))
        if len(said) != 1:
            raise DesyncError("the evaluators resume from different states")
        return Position.from_bytes(said.pop())

    def keep_rows(self, job: Job, shared: Shared) -> None:
        """Joined rows are shared and will train: keep them. job: resolved for them."""
        self._joined = job.rows, b""
        if self._shelf is None:
            return
        rows, kept = JoinedRows(job, shared, self._session.sid), True
        try:
            self._shelf.prune(0)  # what an earlier join has left
            self._shelf.write_rows(rows.pieces())
        except ArtifactError as error:
            kept = False
            self._warn(f"the run keeps no checkpoints, because the joined rows cannot be: {error}")
        others = swap(self._session.channel, self._peers, ROWS, bytes([kept]))
        lacking = sorted(name for name, said in others.items() if said != b"\1")
        if kept and not lacking:
            self._joined = job.rows, rows.digest
            return
        if lacking:
            self._warn(f"the run keeps no checkpoints, because {', '.join(lacking)} cannot")
        self._shelf.prune(0)
        self._shelf = None

    def rows(self, job: Job, role: Role) -> Shared:
        """The rows that an earlier session has joined, under fresh masks. job: resolved for them.
        Raises ArtifactError."""
        if self._shelf is None:
            return restored(job, role, None, b"")
        with self._shelf.rows() as kept:
            return restored(job, role, kept, self._joined[1])

    def sums(self, role: Role, shape: Shape) -> Masked | None:
        """Noisy sums of the preparation that an earlier session has drawn, under a fresh mask; None
        before the first step. 1 round.

        shape: that of the job's. Raises ArtifactError for a checkpoint without them.
        """
        if self._position is None or not self._position.step:
            return None
        for entry in self._position.entries:
            if entry.name == SUMS and entry.shape == shape and not entry.constant:
                words = None if self._resumed is None else self._resumed.parts[SUMS]
                return again(role, entry, words)
        raise ArtifactError(
            "a checkpoint lacks the noisy sums of [prepare]: other noise on them would tell more "
            "of the rows; start the job anew with --fresh"
        )

    def start(self, live: Live) -> None:
        """Training begins with these objects; in a resumed session they take over its state."""
        self._live = live
        if self._position is not None:
            parts = None if self._resumed is None else self._resumed.parts
            live.restore(self._position, parts)
            self._resumed = None
        elif self._joined[0]:
            live.role.finish()
            if self._shelf is not None:
                self._write(self._shelf, 0, finished=False)

    def point(self, number: int) -> None:
        """After a step: write a checkpoint if one is due here.

        Raises KeyboardInterrupt at a node that was asked to stop, once that is written, or cannot
        be: the one before serves.
        """
        if self._live is None or not is_point(self._job, number):
            return
        if self._live.guard is not None:
            self._live.guard.settle()
        shelf = self._shelf
        if shelf is not None and self._due():
            token = token_of(number, False, self._session.sid)
            # A part that others lack is of no use; without this, one full disk fills the others.
            if self._write(shelf, number, finished=False):
                self._tidy(lambda: shelf.prune(KEPT))
            else:
                self._tidy(lambda: shelf.discard(token))
            if self._session.asked_to_stop():
                raise KeyboardInterrupt

    def _tidy(self, call: Callable[[], None]) -> None:
        """Destroy what is not needed; that it cannot be destroyed now is no reason to stop."""
        try:
            call()
        except ArtifactError as error:
            self._warn(f"older checkpoints stay: {error}")

    def finish(self, number: int) -> None:
        """After the last step and its checks, before anything of the result leaves.

        Older checkpoints go: steps that are repeated round otherwise, and a second model beside one
        that has left would tell more than one. Where a part cannot be written all of them go.
        """
        if self._live is not None and self._shelf is not None:
            kept = self._write(self._shelf, number, finished=True)
            try:
                self._shelf.prune(int(kept))
            except ArtifactError as error:
                self._warn(f"checkpoints are destroyed: {error}")
                self._shelf.prune(0)

    def _due(self) -> bool:
        """Whether an evaluator wants a checkpoint; the same at each of them."""
        first = self._me == self._job.evaluators[0]
        due = self._session.asked_to_stop() or (
            first and self._clock() - self._last >= self._every_s
        )
        others = swap(self._session.channel, self._peers, DUE, bytes([due]))
        return due or b"\1" in others.values()

    def _write(self, shelf: Shelf, number: int, *, finished: bool) -> bool:
        """Keep the state; whether all evaluators have."""
        assert self._live is not None
        state = self._live.captured(number, finished, self._joined)
        kept = True
        try:
            token = token_of(number, finished, self._session.sid)
            shelf.write(token, state.to_bytes(), state.rows)
        except ArtifactError as error:
            kept = False
            self._warn(f"no checkpoint after step {number}: {error}")
        others = swap(self._session.channel, self._peers, WRITTEN, bytes([kept]))
        self._last = self._clock()
        return kept and all(said == b"\1" for said in others.values())
