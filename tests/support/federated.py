"""All nodes of a federated job, and owners that come and go, as threads of one process."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from mpc_train.admission.load import load_job
from mpc_train.federated.local import Owner
from mpc_train.federated.rounds.client import RoundsClient, Waiting
from mpc_train.federated.rounds.kept import Memory
from mpc_train.federated.rounds.program import FederatedProgram
from mpc_train.federated.rounds.told import Told
from mpc_train.federated.rules import Global
from mpc_train.jobs.job import Job
from mpc_train.node.consent import roles_of
from mpc_train.owners.table import Table
from parties.agreement.session import Session
from parties.agreement.visitors import Heard
from protocols.errors import InterruptedRunError, PeerLostError
from tests.support.loopback import Endpoint, InsecureLoopback
from tests.support.patience import PATIENCE_S
from tests.support.sessions import InsecureKeys

# Jobs name installed code: the modules of tests are installed by this line.
sys.path.append(str(Path(__file__).parent / "nets"))

OWNERS = ("ann", "bob", "cas", "dan", "eve")
JOB = """
[job]
name = "rounds"
owners = {owners}
evaluators = ["ann", "bob"]
dealer = "registry"
[data]
label = "y"
features = ["a", "b", "c"]
rows = {rows}
test_fraction = 0.2
[model]
kind = "logistic"
module = "federated_net:{module}"
{privacy}
[train]
mode = "federated"
seed = 3
[train.federated]
"""
PRIVACY = """[privacy]
epsilon = 8
delta = 0.00001
neighbours = "zeroed"
unit = "owner"
"""
SETTINGS = {
    "rounds": "3",
    "local_steps": "4",
    "batch_size": "8",
    "learning_rate": "0.1",
    "clip": "4",
    "deadline_s": "60",
}


def job_text(
    owners: Sequence[str] = OWNERS[:4],
    module: str = "network",
    rows: Mapping[str, int] | None = None,
    privacy: str = "",
    **settings: str,
) -> str:
    counts = rows or {name: 20 + 5 * place for place, name in enumerate(owners)}
    table = "{ " + ", ".join(f"{name} = {count}" for name, count in counts.items()) + " }"
    names = "[" + ", ".join(f'"{name}"' for name in owners) + "]"
    lines = [f"{key} = {value}" for key, value in (SETTINGS | settings).items()]
    head = JOB.format(owners=names, module=module, rows=table, privacy=privacy)
    return head + "\n".join(lines) + "\n"


def write_federated(folder: Path, **given: Any) -> Path:
    path = folder / "job.toml"
    path.write_text(job_text(**given))
    return path


def federated_job(folder: Path, **given: Any) -> Job:
    return load_job(write_federated(folder, **given))


def tables_of(job: Job, rows: Mapping[str, int] | None = None) -> dict[str, Table]:
    found = {}
    for place, name in enumerate(job.owners):
        rng = np.random.default_rng(100 + place)
        features = rng.normal(size=((rows or job.data.rows)[name], 3))
        labels = (features @ [1.0, -2.0, 0.5] + rng.normal(size=len(features)) > 0).astype(float)
        found[name] = Table(features, labels)
    return found


_MAKING = threading.Lock()
"""Threads have one generator of PyTorch in common, which a factory seeds; processes do not."""


class _Endpoint(Endpoint):
    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        yield


class _Visitors:
    """As `parties.agreement.visitors.Visitors`, without handshakes."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Heard | None] = queue.Queue()
        self.answers: dict[tuple[bytes, int], queue.Queue[bytes]] = {}
        self.stopped = False

    def receive(self, timeout_s: float) -> Heard | None:
        if self.stopped:
            raise InterruptedRunError("stopped")
        try:
            return self.heard.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def answer(self, visit: bytes, number: int, data: bytes) -> None:
        self.answers[visit, number].put(bytes(data))

    def knows(self, visit: bytes) -> bool:
        return True


class _Client:
    """As `parties.nodes.client.Client`, to the visitors of this process."""

    def __init__(self, house: House, name: str) -> None:
        self._house, self._name = house, name
        self._visit = name.encode().ljust(16, b".")
        self._numbers = iter(range(1, 1 << 30))
        self._lock = threading.Lock()

    def line(self, timeout_s: float) -> Any:
        house = self._house
        contract = SimpleNamespace(roles=house.roles)
        return SimpleNamespace(
            sid=house.sid,
            contract=contract,
            export=lambda evaluator, label: house.keys_of(self._name, evaluator).export(label),
        )

    def ask(
        self,
        line: Any,
        parts: Callable[[int], Mapping[str, bytes]],
        ends: Callable[[memoryview], bool],
        timeout_s: float,
        size: int = 0,
    ) -> dict[str, memoryview]:
        with self._lock:
            number = next(self._numbers)
            said = parts(number)
            waiting = {}
            for evaluator, data in said.items():
                visitors = self._house.visitors[evaluator]
                waiting[evaluator] = visitors.answers[self._visit, number] = queue.Queue()
                data = self._house.tamper(self._name, evaluator, data)
                keys = cast(Any, self._house.keys_of(self._name, evaluator))
                visitors.heard.put(
                    Heard(self._name, self._visit, number, memoryview(data), 0.0, keys)
                )
        found = {}
        for evaluator, answers in waiting.items():
            try:
                found[evaluator] = memoryview(answers.get(timeout=5.0))
            except queue.Empty:
                raise PeerLostError(f"{evaluator} is gone") from None
        return found


class Uncounted:
    """As `federated.rounds.begun.Begun`, without a vault: the sessions and runs that it heard."""

    def __init__(self) -> None:
        self.entered: list[tuple[bytes, bytes]] = []

    def enter(self, sid: bytes, run: bytes) -> None:
        self.entered.append((sid, run))


@dataclass
class House:
    """One session. absent: by visitor, the rounds in which it does not train. hostile: what an
    owner sends instead of its update's words. shelves: where evaluators keep rounds."""

    job: Job
    folder: Path
    tables: Mapping[str, Table]
    hostile: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    absent: Mapping[str, Sequence[int]] = field(default_factory=dict)
    shelves: dict[str, Memory] = field(default_factory=dict)
    resume: bytes = b""
    number: int = 1
    tamper: Callable[[str, str, bytes], bytes] = lambda name, evaluator, data: data
    told: dict[str, list[Told]] = field(default_factory=dict)
    models: dict[str, Global] = field(default_factory=dict)
    programs: dict[str, FederatedProgram] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)
    begun: dict[str, Uncounted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.roles = roles_of(self.job)
        self.sid = hashlib.sha256(f"session {self.number}".encode()).digest()
        self.net = InsecureLoopback()
        self.visitors = {name: _Visitors() for name in self.job.evaluators}

    def keys_of(self, one: str, other: str) -> InsecureKeys:
        return InsecureKeys(self.sid, one, other)

    def run(self) -> dict[str, Any]:
        """The summaries of all nodes; raises the first error of any thread."""
        found: dict[str, Any] = {}
        errors: list[BaseException] = []

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        works: list[Callable[[], None]] = [
            lambda name=name: found.update({name: self._node(name)})  # type: ignore[misc]
            for name in self.job.nodes
        ]
        works += [
            lambda name=name: self._visitor(name)  # type: ignore[misc]
            for name in self.job.visitors
        ]
        threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(0.05)
        if errors:
            for each in self.visitors.values():
                each.stopped = True
            raise errors[0]
        return found

    def _node(self, name: str) -> Any:
        shelf = self.shelves.setdefault(name, Memory()) if name in self.job.evaluators else None
        told = self.told.setdefault(name, [])
        program = self.programs[name] = FederatedProgram(
            name, self.tables.get(name), cast(Any, shelf), None, "cpu", told.append
        )
        with _MAKING:
            program.prepare(self.job.to_bytes(), self.roles)
        if name in self.tables and name in self.job.owners:
            self._prepare(cast(Any, program)._owner, name)
        session = Session(
            name,
            self.sid,
            self.roles,
            cast(Any, _Endpoint(self.net, name)),
            cast(Any, None),
            {},
            self.folder / name,
            cast(Any, {peer: self.keys_of(name, peer) for peer in self.job.nodes}),
            on_record=lambda kind, fields: self.records.append((name, kind, dict(fields))),
            resume=self.resume,
            visitors=cast(Any, self.visitors.get(name)),
        )
        return program.run(session)

    def _visitor(self, name: str) -> None:
        with _MAKING:
            owner = Owner(self.job, name, self.tables[name], "cpu")
        self._prepare(owner, name)
        told = self.told.setdefault(name, [])
        client = RoundsClient(
            cast(Any, _Client(self, name)),
            self.job,
            name,
            owner,
            Waiting(PATIENCE_S, 0.05),
            told.append,
            cast(Any, self.begun.setdefault(name, Uncounted())),
        )
        missed = self.absent.get(name, ())
        if missed:
            take_part = client._take_part

            def unless_away(line: Any, number: int) -> None:
                if number not in missed:
                    take_part(line, number)

            client._take_part = unless_away  # type: ignore[method-assign]
        self.models[name] = client.run()

    def _prepare(self, owner: Any, name: str) -> None:
        """Have an owner train while no other does, and change what it sends, if it is hostile."""
        train = owner.train

        def changed(weights: Any, number: int) -> Any:
            with _MAKING:
                update = train(weights, number)
            words = self.hostile.get(name, lambda words: words)(update.words)
            return type(update)(words, update.rows, update.factor, update.loss)

        owner.train = changed


def plain_owners(job: Job, tables: Mapping[str, Table]) -> dict[str, Owner]:
    return {name: Owner(job, name, tables[name], "cpu") for name in job.owners}
