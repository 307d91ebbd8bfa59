"""All nodes of a training in one process, session after session, with the real training program.

The nodes run in lockstep over in-memory queues, each with a vault of its own in a folder. A session
may be broken off at a chosen frame of a chosen node, as a kill does it; the next one begins with
new programs, as restarted nodes do, and goes on from the point that all evaluators offer.
`Insecure`: frames travel in the clear, and keys follow from the session's number.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.checkpoints.keeper import place_of
from mpc_train.checkpoints.state import State
from mpc_train.jobs.job import Job
from mpc_train.owners.table import Table
from mpc_train.run import program as program_module
from mpc_train.run.node_config import NodeConfig, load_node_config
from mpc_train.run.phases.notes import RunNote
from mpc_train.run.phases.shelf import VaultShelf
from mpc_train.run.program import TrainProgram
from mpc_train.shared.library import Library
from parties.agreement.contract import Acceptance, Contract, Roles, resumed_from
from parties.agreement.session import Session
from parties.audit.entries import Kind, Value
from protocols.errors import PeerLostError
from protocols.ring.fixed_point import decode
from protocols.roles import streams
from protocols.roles.frames import LABEL
from tests.support.csv_tables import load_tables
from tests.support.lockstep import LockstepEndpoint, LockstepLoopback
from tests.support.node_files import party_toml
from tests.support.node_vaults import node_vault


class Killed(PeerLostError):
    """A node ended here, and with it the session."""


@dataclass(frozen=True)
class Kill:
    """At which frame a node ends: the first that it sends at this step (or later), the `frame`-th
    from there."""

    node: str
    step: int
    frame: int = 0


class InsecureKeys:
    """Secrets of a pair in one session."""

    def __init__(self, sid: bytes, one: str, other: str) -> None:
        self._root = sid + "|".join(sorted((one, other))).encode()

    def export(self, label: str) -> bytes:
        return hashlib.sha256(self._root + label.encode()).digest()


@contextlib.contextmanager
def counted(drawn: Counter[tuple[str, bytes, bytes]], here: Callable[[], str]) -> Iterator[None]:
    """Count every piece of keystream in `drawn`, by node, key and nonce. here: the node that
    runs."""
    cipher = streams.AESGCM

    class Counting:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, cipher(key)

        def encrypt_into(self, nonce: bytes, *rest: Any) -> Any:
            drawn[here(), self._key, nonce] += 1
            return self._cipher.encrypt_into(nonce, *rest)

    streams.AESGCM = Counting  # type: ignore[assignment]
    try:
        yield
    finally:
        streams.AESGCM = cipher


class _Place(LockstepEndpoint):
    """An endpoint of which `patience` may be asked, and whose node may be killed."""

    kill: Kill | None = None
    _at = False

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        yield

    def send(self, peer: str, label: bytes, payload: Any) -> None:
        if self.kill is not None:
            step = LABEL.unpack(label)[1] if len(label) == LABEL.size else 0
            self._at |= step >= self.kill.step
            if self._at:
                if self.kill.frame == 0:
                    raise Killed(f"{self.name} was killed at step {step}")
                self.kill = Kill(self.kill.node, self.kill.step, self.kill.frame - 1)
        super().send(peer, label, payload)


@dataclass
class Rehearsal:
    """The sessions of one run of a job. folder: of the job's file, with the owners' tables."""

    path: Path
    every_s: float = 0.0
    number: int = 0
    events: list[tuple[str, Kind, Mapping[str, Value]]] = field(default_factory=list)
    """All entries of the audit logs, with the node's name."""
    drawn: Counter[tuple[str, bytes, bytes]] = field(default_factory=Counter)
    """By node, key and nonce: how often each piece of every keystream was made."""
    halves: dict[str, dict[str, Any]] = field(default_factory=dict)
    programs: dict[str, TrainProgram] = field(default_factory=dict)
    point: bytes = b""
    """The name of the checkpoint from which the last session went on; empty: it began."""

    ended: bool = False
    """Whether a session has come to the end of the run."""

    tables: Callable[[Path, Job], Sequence[Table]] = load_tables
    """Loads the owners' tables, in their order."""

    vaults: Path | None = None
    """Where the nodes' vaults are, if other jobs use them too; by default beside the job."""

    lines: str = ""
    """More sections of the nodes' files."""

    stop: str = ""
    """The node that is asked to stop."""

    net: LockstepLoopback = field(default_factory=LockstepLoopback)
    """The last session's frames, with its transcript."""

    def __post_init__(self) -> None:
        self.job: Job = load_job(self.path)
        self.folder = self.path.parent
        self.nodes = self.job.nodes
        self._here = threading.local()

    def config(self, name: str) -> NodeConfig:
        file = self.folder / f"{name}.toml"
        node = f'home = "home"\ncheckpoint_s = {self.every_s:.0f}'
        file.write_text(party_toml(name, node=node) + self.lines)
        return load_node_config(file)

    def vault_of(self, name: str) -> Any:
        return node_vault((self.vaults or self.folder / "vaults") / name, name)

    def session(self, kill: Kill | None = None) -> list[Any]:
        """Run one session to its end, or to the kill (Killed). Returns the summaries."""
        self.number += 1
        job, sid = self.job, hashlib.sha256(f"{self.number}".encode()).digest()
        roles = Roles(job.owners, job.evaluators, job.dealer, job.recipients)
        self.programs = self._programs()
        constants = {one.prepare(job.to_bytes(), roles) for one in self.programs.values()}
        assert len(constants) == 1
        accepted = {
            name: Acceptance(name, b"", b"", b"", one.checkpoints(), one.insists())
            for name, one in self.programs.items()
        }
        self.point = resumed_from(Contract.of(job.name, roles, b"", bytes(32)), accepted)
        self.net = LockstepLoopback()
        self.halves = {}
        works = [partial(self._work, self.net, name, sid, roles, kill) for name in self._order()]
        with self._recording():
            results = self.net.baton.run(works)
        self.ended = True
        for name in self.nodes:
            self.note(name).clear()
            self.shelf(name).prune(0)
        return results

    def _programs(self) -> dict[str, TrainProgram]:
        tables = dict(zip(self.job.owners, self.tables(self.folder, self.job), strict=True))
        return {
            name: TrainProgram(
                self.config(name),
                tables.get(name),
                self.shelf(name) if name in self.job.evaluators else None,
                self.note(name),
                Library(self.vault_of(name).opened),
            )
            for name in self.nodes
        }

    def shelf(self, name: str) -> VaultShelf:
        vault = self.vault_of(name)
        return VaultShelf(vault.opened, self.job.name, self.job.digest().hex())

    def note(self, name: str) -> RunNote:
        return RunNote(self.vault_of(name).opened, self.job.name, self.job.digest().hex())

    def _order(self) -> list[str]:
        return [*self.job.evaluators, *(n for n in self.nodes if n not in self.job.evaluators)]

    def _work(
        self, net: LockstepLoopback, name: str, sid: bytes, roles: Roles, kill: Kill | None
    ) -> Any:
        self._here.name = name
        place = _Place(net, name)
        if kill is not None and kill.node == name:
            place.kill = kill
        session = Session(
            name,
            sid,
            roles,
            cast(Any, place),
            cast(Any, None),
            {},
            self.folder,
            cast(Any, {peer: InsecureKeys(sid, name, peer) for peer in self.nodes}),
            on_record=lambda kind, fields: self.events.append((name, kind, fields)),
            on_mac=lambda data: hashlib.sha256(data).hexdigest(),
            resume=self.point,
            asked_to_stop=lambda: self.stop == name,
        )
        return self.programs[name].run(session)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Count every piece of keystream, and keep what is sealed instead of sealing it."""
        seal, metrics = program_module.seal_halves, program_module.seal_metrics

        def kept(session: Session, job: Job, halves: Any, findings: Any) -> None:
            self.halves[session.me] = halves

        program_module.seal_halves = kept
        program_module.seal_metrics = lambda *_: None
        try:
            with counted(self.drawn, lambda: str(self._here.name)):
                yield
        finally:
            program_module.seal_halves, program_module.seal_metrics = seal, metrics

    def words(self) -> dict[str, np.ndarray]:
        """What was sealed in the last session, opened: int64 by name."""
        first = self.halves[self.job.evaluators[0]]
        return {
            name: half.delta - sum(self.halves[one][name].lam for one in self.job.evaluators)
            for name, half in first.items()
        }

    @property
    def resumed_after(self) -> int:
        """The step after which the last session went on; -1: it began."""
        return place_of(self.point)[0] if self.point else -1

    def kept(self) -> dict[str, np.ndarray]:
        """The newest checkpoints of all evaluators, added up: int64 by name."""
        shelves = [self.shelf(name) for name in self.job.evaluators]
        newest = max(set.intersection(*(set(shelf.tokens()) for shelf in shelves)))
        parts = [State.from_bytes(shelf.read(newest)).parts for shelf in shelves]
        return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}

    def model(self) -> dict[str, np.ndarray]:
        """The weights of the last session, in the clear."""
        found = self.words()
        return {name: decode(found[name], self.job.fraction_bits) for name in self.job.shapes}

    def masks_used_twice(self) -> int:
        """Pieces of keystream that a node made twice, over all sessions: none may be."""
        return sum(times > 1 for times in self.drawn.values())


def difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
