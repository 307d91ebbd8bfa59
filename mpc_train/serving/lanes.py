"""Material for questions that nobody has asked yet: a lane for each model and number of rows.

A lane is a program of its own between evaluators and dealer, with streams of its own: the model
under fresh masks, then one unit after the other, each the forward pass of the same number of rows.
The dealer makes units ahead, for any lane in any order, and the evaluators use them when questions
come; each unit is a step of the lane's streams, so nothing is used twice. Whatever a unit costs
follows from the model's shape alone.

    frames of the dealer   the lane's number (32 bits) before the label
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import prod
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.drift import counts, read, released
from mpc_train.evaluation.histograms import histograms
from mpc_train.serving.answer import answer
from mpc_train.serving.forward import FEATURES, PRESENT, REAL, answered, asked_shapes, network_of
from mpc_train.shared.share import Outline, returned
from protocols.channel import Buffer, Channel
from protocols.crypten_tensor.tensor import attach
from protocols.errors import FrameError
from protocols.roles.credit import CORRECTION_BYTES
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import FRAME_BYTES
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive, Masked
from protocols.shares.reveal import Ledger, Output, RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.arrays import Words

BUCKETS = (1, 16, 128)
"""Numbers of rows to which a question is padded; there are units of each."""
WIDE_ROWS = 512
"""Rows of a wide unit, for questions that wait together: they share what a unit costs beside its
rows, a third of the cost of one of 128 rows in a small network."""
MOST_WIDE = 1 << 20
"""Values of all layers and rows of a wide unit; a network that has more has no wide units, because
their material would fill memory, and its rows cost more than a unit does."""
STREAM_LABEL = "mpc-train serving stream root v1, lane {}"
ANSWER, DRIFT = "answer", "drift"
_LANE = Struct(">I")


def bucket_of(rows: int) -> int:
    """The smallest number of rows of a unit that holds so many."""
    return next(size for size in BUCKETS if size >= rows)


def unit_rows(job: Job) -> tuple[int, ...]:
    """The numbers of rows of the units of a model, the smallest first."""
    values = prod(job.graph.input_shape) + sum(prod(node.shape) for node in job.graph.nodes)
    return (*BUCKETS, WIDE_ROWS) if WIDE_ROWS * values <= MOST_WIDE else BUCKETS


def lanes_of(jobs: Iterable[Job]) -> list[tuple[int, int]]:
    """Of each lane that computes answers, by its number: the model's place, and rows of a unit."""
    return [(place, rows) for place, job in enumerate(jobs) for rows in unit_rows(job)]


class Sorted:
    """The dealer's frames at an evaluator, by lane."""

    def __init__(self, channel: Channel, dealer: str, lanes: int) -> None:
        self._net, self._dealer = channel, dealer
        self._waiting: list[deque[tuple[bytes, memoryview]]] = [deque() for _ in range(lanes)]
        self.taken = [0] * lanes
        """Bytes of each lane that were used."""

    def take(self, lane: int) -> tuple[bytes, memoryview]:
        """The lane's next frame."""
        waiting = self._waiting[lane]
        while not waiting:
            label, payload = self._net.receive(self._dealer, CORRECTION_BYTES + FRAME_BYTES)
            try:
                (number,) = _LANE.unpack(label[: _LANE.size])
                self._waiting[number].append((label[_LANE.size :], payload))
            except (StructError, IndexError):
                raise FrameError(f"{self._dealer} sent material for no lane") from None
        label, payload = waiting.popleft()
        self.taken[lane] += len(payload)
        return label, payload


class LaneStore:
    """One lane's frames, as `Evaluator.take_from` takes them."""

    def __init__(self, frames: Sorted, lane: int) -> None:
        self._frames, self._lane = frames, lane

    def put(self, label: bytes, payload: Buffer) -> None:
        raise AssertionError("the frames of a lane are sorted as they come")

    def take(self) -> tuple[bytes, memoryview]:
        return self._frames.take(self._lane)


class LaneChannel:
    """The dealer's channel for one lane."""

    def __init__(self, channel: Channel, lane: int) -> None:
        self._net, self._head = channel, _LANE.pack(lane)
        self.bytes_sent = self.bytes_received = 0  # counted by the channel itself

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        self._net.send(peer, self._head + label, payload)

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        raise AssertionError("a dealer that runs ahead hears nothing from a lane")


class Lane:
    """One lane at one node, ready for units.

    parts: this evaluator's share of the model; None at the dealer. Its rows are counted where the
    job watches drift. 1 round.
    """

    def __init__(
        self,
        job: Job,
        outline: Outline,
        rows: int,
        role: Role,
        store: LaneStore | None,
        parts: Mapping[str, Words] | None,
    ) -> None:
        self.job, self.rows, self.role = job, rows, role
        self.units = 0
        self._counted = () if job.drift is None else histograms(job)
        self._to_count: tuple[Mapping[str, Masked], Masked] | None = None
        _begin(role, store)
        attach(role, self.job.fraction_bits)
        tensors, self._parameters = returned(role, outline, parts)
        self._network = network_of(self.job, tensors)
        self._shapes = asked_shapes(self.job, rows)
        role.finish()

    def blank(self) -> dict[str, Words]:
        """This node's summands of rows that nobody asked."""
        return {name: np.zeros(shape, np.int64) for name, (shape, _) in self._shapes.items()}

    def run_blank(self) -> None:
        """The next unit, with rows that nobody asked: whole units are all that a dealer makes."""
        self.run(self.blank())
        if self._counted:
            self.count()

    def run(self, summands: Mapping[str, Words], ledger: Ledger | None = None) -> SealedHalf | None:
        """The next unit: this evaluator's half of the answers, [rows, answer_width]; None at the
        dealer.

        summands: this node's, of the rows, by `asked_shapes`. A lane that counts must `count` after
        each unit, at every node.
        """
        role = self.role
        assert self._to_count is None
        self.units += 1
        role.begin_step(self.units)
        attach(role, self.job.fraction_bits)
        asked = {
            name: remask(Additive(role, shape, role.known(summands[name]), None))
            for name, (shape, _) in self._shapes.items()
        }
        outputs = answered(self.job, self._network, self._parameters, asked)
        gate = RevealGate(frozenset({Output(ANSWER, self.units)}), ledger)
        half = gate.for_recipients(ANSWER, self.units, answer(self.job, outputs))
        if self._counted:
            self._to_count = asked, outputs
        else:
            role.finish()
        return half

    def count(self) -> Words | None:
        """This evaluator's summands of the counts of the last unit's rows, one word a bin at scale
        2^f; None at the dealer. For after the answers have left: they do not wait for it.

        A unit for which an evaluator did not hear its part of a row counts nothing of use: its
        summands must be left out by all. Rounds: those of `drift.counts`.
        """
        assert self._to_count is not None
        (asked, outputs), self._to_count = self._to_count, None
        found = counts(
            self.job,
            self._counted,
            asked[FEATURES],
            asked.get(PRESENT),
            outputs,
            asked[REAL].reshape(-1),
        ).shares()
        self.role.finish()
        return None if self.role.is_dealer else np.array(found.part.get())


class Releases:
    """The lane of a model's releases at one node: each of its units lets the counts of one window
    out, if `reveal.least_group` rows of it were real. job: one that watches drift."""

    def __init__(self, job: Job, role: Role, store: LaneStore | None) -> None:
        assert job.drift is not None
        self._job, self.role, self._counted = job, role, histograms(job)
        self._epsilon = Fraction(job.drift.epsilon)
        self.bins = sum(len(one.bins) for one in self._counted)
        self.units = 0
        _begin(role, store)
        role.finish()

    def blank(self) -> Words:
        """This node's summands of no rows."""
        return np.zeros(self.bins, np.int64)

    def run_blank(self) -> None:
        """At the dealer: the next unit."""
        self.run(self.blank())

    def run(self, window: Words, ledger: Ledger | None = None) -> dict[str, tuple[int, ...]] | None:
        """The counts with noise, by histogram, at every evaluator; None at the dealer, and
        everywhere if too few rows were counted. The counts themselves stay shares.

        window: the sum of this node's summands of all units that are counted.
        """
        role, f = self.role, self._job.fraction_bits
        self.units += 1
        role.begin_step(self.units)
        attach(role, f)
        total = remask(Additive(role, (self.bins,), role.known(window), None))
        gate = RevealGate(frozenset({Output(DRIFT, self.units)}), ledger)
        noisy = released(total, self._counted, self._job.reveal.least_group, self._epsilon, f)
        words = gate.to_everybody(DRIFT, self.units, noisy)
        role.finish()
        return None if words is None else read(words, self._counted, f)


def _begin(role: Role, store: LaneStore | None) -> None:
    role.begin_step(0)
    if isinstance(role, Dealer):
        role.run_ahead(unbounded=True)
    elif isinstance(role, Evaluator):
        assert store is not None
        role.take_from(store)
