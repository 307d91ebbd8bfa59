"""What stands in for the network, the session and the tables of a dry run.

Frames keep their labels and lengths, as a sealed channel has them; the bytes of small ones are
carried, those of blank ones are not.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.checkpoints.state import Entry
from mpc_train.estimates import blanks
from mpc_train.estimates.blanks import Blank, Held, Meter
from mpc_train.estimates.lockstep import Baton
from mpc_train.owners.cells import WORD_BITS
from mpc_train.owners.columns import part_of
from mpc_train.owners.table import Table
from mpc_train.preparation.fitted import input_bits
from mpc_train.shared.share import About, ModelShare, Public, expected_shapes
from protocols.channel import Buffer
from protocols.errors import FrameError
from protocols.linkage.intersection import ITEM_BYTES
from protocols.roles.frames import LABEL
from protocols.sealing.record import TAG_BYTES

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.shared.share import ModelShare

CREDIT = b"cred"
CREDIT_BYTES = LABEL.size + 2 * TAG_BYTES
"""An empty frame, sealed: its label and two tags."""


@dataclass(slots=True)
class Frame:
    """label, payload: its bytes, or None for blank ones. held: what the receiver's queue takes."""

    label: bytes
    size: int
    payload: bytes | None
    held: Held


class Wires:
    """The frames under way between the nodes of one dry run."""

    def __init__(self) -> None:
        self.baton = Baton()
        self.queues: dict[tuple[str, str], deque[Frame]] = {}
        self.meters: dict[str, Meter] = {}

    def queue(self, sender: str, receiver: str) -> deque[Frame]:
        return self.queues.setdefault((sender, receiver), deque())


class CountingChannel:
    """One node's end: counts what `parties.wire.secure_channel` would send."""

    def __init__(self, wires: Wires, me: str) -> None:
        self._wires, self._me = wires, me
        self.bytes_sent = self.bytes_received = 0
        self.credits_sent = self.credits_received = 0

    @property
    def uncredited_sent(self) -> int:
        return self.bytes_sent - CREDIT_BYTES * self.credits_sent

    @property
    def uncredited_received(self) -> int:
        return self.bytes_received - CREDIT_BYTES * self.credits_received

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        yield

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        view = memoryview(payload)
        size = view.nbytes
        self.bytes_sent += len(label) + size + 2 * TAG_BYTES
        self.credits_sent += label[:4] == CREDIT
        content = None if isinstance(view.obj, Blank) else bytes(view)
        held = self._wires.meters[peer].hold(size)
        self._wires.queue(self._me, peer).append(Frame(label, size, content, held))

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        incoming = self._wires.queue(peer, self._me)
        self._wires.baton.wait_until(lambda: bool(incoming))
        frame = incoming.popleft()
        if frame.size > max_bytes:
            raise FrameError(f"{peer} sent {frame.size} bytes; expected at most {max_bytes}")
        self.bytes_received += len(frame.label) + frame.size + 2 * TAG_BYTES
        self.credits_received += frame.label[:4] == CREDIT
        if frame.payload is not None:
            return frame.label, memoryview(frame.payload)
        return frame.label, np.empty(frame.size, np.uint8).data


class NoShelf:
    """Checkpoints that are not kept."""

    def tokens(self) -> tuple[bytes, ...]:
        return ()

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None: ...

    def read(self, token: bytes) -> bytes:
        return b""

    def discard(self, token: bytes) -> None: ...

    def prune(self, newest: int) -> None: ...

    def write_rows(self, pieces: Iterable[bytes]) -> None: ...

    @contextlib.contextmanager
    def rows(self) -> Iterator[Any]:
        yield None


class NoLibrary:
    """Shares of models that are not kept."""

    def keep(self, share: ModelShare) -> None: ...

    def settle(self, share: ModelShare) -> None: ...


class Anybody(dict[str, Any]):
    """Cards of names that nobody needs."""

    def __missing__(self, name: str) -> Any:
        return SimpleNamespace(recipient_key=b"")


@dataclass(frozen=True, slots=True)
class DrySession:
    """The parts of `parties.agreement.session.Session` that a program uses. roles: the job, which
    names them alike."""

    me: str
    roles: Job
    channel: CountingChannel
    sid: bytes = bytes(32)
    vault: None = None
    cards: Any = field(default_factory=Anybody)
    run_dir: Path = Path()
    resume: bytes = b""

    @property
    def is_evaluator(self) -> bool:
        return self.me in self.roles.evaluators

    @property
    def is_dealer(self) -> bool:
        return self.me == self.roles.dealer

    def export(self, peer: str, label: str) -> bytes:
        return bytes(32)

    def asked_to_stop(self) -> bool:
        return False

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        yield

    def progress(self, **fields: object) -> None: ...

    def record(self, kind: object, **fields: object) -> None: ...

    def mac(self, data: bytes) -> str:
        return ""

    def emit(self, kind: str, name: str, blob: bytes) -> None: ...


def blank_table(job: Job, owner: str, joined: int) -> Table:
    """A table of the owner's shape. joined: how many of its records all owners have."""
    part, rows = part_of(job, owner), job.data.rows[owner]
    labels = blanks.made((rows if part.label else 0,), np.float64)
    weights = blanks.made((rows if part.weight else 0,), np.float64)
    features = blanks.made((rows, len(part.terms)), np.float64)
    present = blanks.made((rows, len(part.filled)), np.float64)
    tokens = None
    if job.data.link is not None:
        tokens = _tokens(rows, joined, job.owners.index(owner))
    return Table(features, labels, present, tokens, weights)


def blank_share(job: Job) -> ModelShare:
    """A share of the model that the job starts from, by its shapes."""
    shapes = expected_shapes(job)
    entries = tuple(Entry(name, shape) for name, shape in shapes.items())
    about = About(job, Public("", "", entries, WORD_BITS, input_bits(1)))
    parts = {name: blanks.made(shape, np.int64) for name, shape in shapes.items()}
    return ModelShare(about, parts, bytes(32))


def _tokens(rows: int, joined: int, owner: int) -> Any:
    """Different tokens, of which the first `joined` are those of all owners."""
    numbers = np.arange(rows, dtype=np.uint64)
    tokens = blanks.zeros_real((rows, ITEM_BYTES // 8), np.uint64)
    tokens[:, 0] = numbers
    tokens[joined:, 1] = owner + 1
    return tokens.view(np.uint8)
