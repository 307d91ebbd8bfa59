"""A training in one process that is broken off, and goes on in a later session from checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from mpc_train.checkpoints.keeper import Keeper
from mpc_train.jobs.job import Job
from mpc_train.owners.table import Table
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.run.phases.train import guard_of, train_model
from protocols.channel import Channel
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from protocols.shares.reveal import RevealGate
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import DEALER, combine_masked, shares_of
from tests.support.pooled import shared_rows
from tests.support.tensors import attached


class BrokenOff(Exception):
    """A node has died."""


class InsecureShelf:
    """Checkpoints in the clear, in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def tokens(self) -> tuple[bytes, ...]:
        return tuple(self.kept)

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None:
        self.kept[token] = data

    def read(self, token: bytes) -> bytes:
        return self.kept[token]

    def discard(self, token: bytes) -> None:
        self.kept.pop(token, None)

    def prune(self, newest: int) -> None:
        for token in sorted(self.kept)[:-newest]:
            del self.kept[token]

    def write_rows(self, pieces: Iterable[bytes]) -> None:
        raise NotImplementedError

    def rows(self) -> AbstractContextManager[Any]:
        raise NotImplementedError


class _Channel:
    """The channel of a role, for the names of a job."""

    def __init__(self, channel: Channel, names: Mapping[str, str]) -> None:
        self._channel, self._names = channel, names
        self.bytes_sent = self.bytes_received = 0

    def send(self, peer: str, label: bytes, payload: Any) -> None:
        self._channel.send(self._names[peer], label, payload)

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        return self._channel.receive(self._names[peer], max_bytes)


class InsecureLink:
    """A session of a test: `number` stands for its id."""

    def __init__(self, job: Job, role: Role, net: LockstepLoopback, number: int) -> None:
        names = {name: f"p{index}" for index, name in enumerate(job.evaluators)}
        names[job.dealer] = DEALER
        self.me = job.dealer if role.index is None else job.evaluators[role.index]
        self.sid = hashlib.sha256(bytes([number])).digest()
        self.channel: Any = _Channel(net.endpoint(names[self.me]), names)

    def export(self, peer: str, label: str) -> bytes:
        pair = "/".join(sorted((self.me, peer)))
        return hashlib.sha256(f"{pair} {label}".encode() + self.sid).digest()

    def asked_to_stop(self) -> bool:
        return False


def session(
    job: Job,
    tables: Sequence[Table],
    shelves: Mapping[str, InsecureShelf],
    number: int,
    resume: bytes = b"",
    stop_after: int = 0,
    every_s: float = 0.0,
    seen: Callable[[Role, int], None] = lambda role, step: None,
    sums: Callable[[Role, Keeper], Masked] | None = None,
) -> tuple[dict[str, np.ndarray], dict[int, float], list[int]]:
    """The trained weights, the losses that an evaluator knows, and the steps of this session.

    stop_after: BrokenOff at the first evaluator after this step; 0: never. sums: noisy ones of the
    preparation, shared with the rows.
    """
    net = LockstepLoopback()

    def program(role: Role) -> Any:
        with attached(role, job.fraction_bits):
            link = InsecureLink(job, role, net, number)
            keeper = Keeper(link, job, shelves.get(link.me), every_s)
            shared = shared_rows(job, role, tables)
            role.finish()
            if resume:
                keeper.resume(resume)
            if sums is not None:
                shared = replace(shared, sums=sums(role, keeper))
            steps = []

            def done(step: int) -> None:
                steps.append(step)
                seen(role, step)
                if step == stop_after and role.index == 0:
                    raise BrokenOff

            gate = RevealGate(agreed_outputs(job))
            guard = guard_of(job, role)
            trained = train_model(job, role, gate, shared, {}, done, guard, keeper)
            if guard is not None:
                guard.settle()
            found = {name: shares_of(trained.model.tensors[name].masked()) for name in job.shapes}
            return found, trained.losses, steps

    results = run_lockstep(program, len(job.evaluators), seed=number, net=net)
    weights = {
        name: decode(combine_masked([found[name] for found, _, _ in results]), job.fraction_bits)
        for name in job.shapes
    }
    return weights, results[0][1], results[0][2]
