"""A whole service in one process: `ServeProgram` at all evaluators and the dealer, in lockstep.

Questions are given to the evaluators by hand, those that one step lists together at once; when
nobody can go on, the session ends. `Insecure`: frames travel in the clear, and keys follow from
names.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from mpc_train.serving import lanes, messages
from mpc_train.serving import program as program_module
from mpc_train.serving.answer import answer_width, values
from mpc_train.serving.desk import Answers
from mpc_train.serving.forward import asked_shapes, asked_values
from mpc_train.serving.lanes import bucket_of
from mpc_train.serving.offered import Offered
from mpc_train.serving.program import Desk, NoDesk, ServeProgram
from mpc_train.serving.service import Agreed
from mpc_train.shared.description import Description
from mpc_train.shared.share import ModelShare
from parties.agreement.session import Session
from parties.agreement.visitors import Heard
from parties.audit.entries import Kind
from protocols.errors import PeerLostError
from protocols.ring.fixed_point import encode
from tests.support.lockstep import LockstepEndpoint, LockstepLoopback
from tests.support.sessions import InsecureKeys, counted

Parts = dict[str, Heard]
"""A question: what each evaluator hears."""


class Place(LockstepEndpoint):
    """An endpoint of which `patience` may be asked."""

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        yield


class Queue:
    """What an evaluator hears, as `Visitors`. At the first one a wait brings the next step."""

    def __init__(self, house: House, me: str) -> None:
        self._house, self._me = house, me
        self.heard: deque[Heard] = deque()
        self.answers: dict[tuple[bytes, int], list[bytes]] = defaultdict(list)

    def receive(self, timeout_s: float) -> Heard | None:
        if not self.heard and timeout_s and self._me == self._house.names[0]:
            self._house.next_step()
        return self.heard.popleft() if self.heard else None

    def answer(self, visit: bytes, number: int, data: bytes) -> None:
        self.answers[visit, number].append(data)

    def knows(self, visit: bytes) -> bool:
        return visit not in self._house.gone


@dataclass
class Asker:
    """A client in one visit. seed: of its rows' summands."""

    name: str
    house: House
    visit: bytes = b""
    number: int = 0

    def __post_init__(self) -> None:
        self.visit = self.visit or hashlib.sha256(self.name.encode()).digest()[:16]
        names = self.house.names
        self.keys = {name: InsecureKeys(self.visit, self.name, name) for name in names}

    def asks(self, model: Offered, rows: Any, name: bytes = b"") -> Parts:
        """The parts of a question, as `asking.client` makes them; with the name of an earlier one
        it is a repetition."""
        job, count = model.job, len(rows.values)
        brought, words = asked_values(job, rows), {}
        for key, (shape, bits) in asked_shapes(job, bucket_of(count)).items():
            words[key] = np.zeros(shape, np.int64)
            words[key][:count] = encode(brought[key], bits)
        return self.asks_words(model, words, name)

    def asks_words(
        self, model: Offered, words: Mapping[str, np.ndarray], name: bytes = b""
    ) -> Parts:
        self.number += 1
        label = messages.ROOT_LABEL.format(self.number)
        roots = [self.keys[name].export(label) for name in self.house.names[:-1]]
        said = messages.question_parts(model.digest, words, roots, name or secrets.token_bytes(16))
        return self.sends(dict(zip(self.house.names, said, strict=True)))

    def sends(self, said: Mapping[str, bytes]) -> Parts:
        """Anything, under its last number."""
        return {
            name: Heard(
                self.name,
                self.visit,
                self.number,
                memoryview(data),
                time.monotonic(),
                cast(Any, self.keys[name]),
            )
            for name, data in said.items()
        }

    def answer(self, model: Offered, number: int, count: int) -> np.ndarray | list[str]:
        """The answers to its question of this number; the refusals, if there are any."""
        width = answer_width(model.job)
        total, refused = np.zeros((bucket_of(count), width), np.int64), []
        for name in self.house.names:
            for data in self.house.queues[name].answers[self.visit, number]:
                said = messages.answer_from(name, memoryview(data), total.shape)
                if isinstance(said, messages.Refused):
                    left = f", {said.left} left" if said.code == "quota" else ""
                    refused.append(f"{name}: {said.code}{left}")
                else:
                    with np.errstate(over="ignore"):
                        total += said
        return refused or values(model.job, total[:count])


@dataclass
class House:
    """shares: of each model, one for each evaluator. seed: of the session's keys."""

    shares: Sequence[Sequence[ModelShare]]
    seed: int = 1
    clients: tuple[str, ...] = ()
    desks: dict[str, Desk] = field(default_factory=dict)
    keeps: Callable[[str, Offered], bool] = lambda name, model: True
    """Whether an evaluator still has its share."""
    answers: dict[str, Answers] = field(default_factory=lambda: defaultdict(Answers))
    drawn: Counter[tuple[str, bytes, bytes]] = field(default_factory=Counter)
    gone: set[bytes] = field(default_factory=set)
    """Visits that have ended."""
    net: LockstepLoopback = field(default_factory=LockstepLoopback)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: dict[str, list[tuple[Kind, Mapping[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    marks: list[dict[tuple[str, str], int]] = field(default_factory=list)
    """How many frames each had sent another when each step began."""

    def __post_init__(self) -> None:
        abouts = [shares[0].about for shares in self.shares]
        jobs = [Description(about.job, about.public.sid) for about in abouts]
        self.agreed = Agreed.of("house", jobs, self.clients)
        self.names = self.agreed.roles.evaluators
        self.queues = {name: Queue(self, name) for name in self.names}
        self._steps: deque[Sequence[Parts]] = deque()
        self._here = threading.local()

    @property
    def models(self) -> tuple[Offered, ...]:
        return self.agreed.offered

    def serve(self, *steps: Sequence[Parts]) -> None:
        """One session, in which each step's questions come when those before are answered."""
        self._steps, self.marks = deque(steps), []
        self.net = LockstepLoopback()
        dealer = self.agreed.roles.dealer
        works = [partial(self._work, name) for name in (*self.names, dealer)]
        with (
            counted(self.drawn, lambda: str(self._here.name)),
            patch("mpc_train.serving.figures.NEWS_S", 0.0),  # every report is one
        ):
            try:
                self.net.baton.run(works, 300)
            except PeerLostError as error:
                if "nobody will send" not in str(error) or self._steps:
                    raise

    def next_step(self) -> None:
        self.marks.append({pair: len(sent) for pair, sent in self.net.transcript.items()})
        if not self._steps:
            self.net.baton.wait_until(lambda: False)
        for parts in self._steps.popleft():
            for name, heard in parts.items():
                self.queues[name].heard.append(heard)

    def _work(self, name: str) -> Any:
        self._here.name = name
        place, held = Place(self.net, name), {}
        if name in self.names:
            mine = [shares[self.names.index(name)] for shares in self.shares]
            held = {share.about.digest: [share] for share in mine}
        program = ServeProgram(
            name,
            held.__getitem__,
            desk=self.desks.get(name, NoDesk()),
            keeps=partial(self.keeps, name),
        )
        program._answers = self.answers[name]  # kept over all sessions of a process
        program.prepare(self.agreed.to_bytes(), self.agreed.roles)
        roles, sid = self.agreed.roles, self.seed.to_bytes(32, "big")
        keys = {peer: InsecureKeys(sid, name, peer) for peer in roles.nodes}
        session = Session(
            name,
            sid,
            roles,
            cast(Any, place),
            cast(Any, None),
            {},
            Path(),
            cast(Any, keys),
            on_progress=lambda fields: self.reports.__setitem__(name, dict(fields)),
            on_record=lambda kind, fields: self.log[name].append((kind, fields)),
            visitors=cast(Any, self.queues.get(name)),
        )
        return program.run(session)

    def used_twice(self) -> int:
        return sum(times > 1 for times in self.drawn.values())


def in_no_time(patch: Any) -> None:
    """No evaluator waits for what is late: in lockstep nothing comes meanwhile."""
    patch.setattr(program_module, "LATE_S", 0.0)


def only_units_of(rows: int, patch: Any) -> None:
    """Units of one size: opening all sizes takes longer."""
    for room in (lanes, program_module):
        patch.setattr(room, "BUCKETS", (rows,))
    patch.setattr(lanes, "MOST_WIDE", 0)
