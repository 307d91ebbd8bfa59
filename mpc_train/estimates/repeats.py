"""Steps that are alike cost the same: the first ones are run, the others are counted. So are chunks
of rows that go through a trained model.

What a step sends and computes depends on what is public: on whether it is one of the first steps of
a training (weights are public before the first one, moments begin at the second), on what the job
discloses after it, on which words the range guard compares before and after it, on how many bits
the optimizer rounds off and on which evaluator's turn it is to get corrections. Steps that agree in
this have one cost. Everything here is decided alike at all nodes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpc_train.checkpoints.points import steps_between
from mpc_train.estimates.blanks import Meter
from mpc_train.estimates.roundings import Limits, Rounding, Roundings
from mpc_train.estimates.stage import CREDIT_BYTES, CountingChannel
from mpc_train.jobs.schedule import epochs_alike, is_checked, steps_per_epoch, total_steps
from mpc_train.training.chunk_sizes import MAX_PAIRED_ROWS
from mpc_train.training.passes import parts as all_parts
from mpc_train.training.range_guard import MAX_HELD, RangeGuard
from mpc_train.training.rates import rate
from mpc_train.training.watch import GUARD, disclosed_at, looked_at
from protocols.shares.masked import Additive, Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.roles.role import Role

FIRST = 3
"""Steps that every training begins with: they may differ from the later ones."""
AT_END = "the last check"
"""Stands for what a step does at the end of training, beside what is disclosed."""
SEEN_DISCLOSED = 2
"""A step with disclosures is run twice before it is repeated: its first time may cost less (no best
model is kept yet)."""

Settled = tuple[tuple[int, int], ...] | None
"""How many words of each limit, in order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """fold: whether it trains one. disclosed: after it. settled: which words the guard compares
    before it, because a checkpoint may be written there; None if it may not. compares: which it
    compares after it, None if it does not. rounding: by the optimizer. turn: who got the last
    correction before it."""

    fold: bool
    disclosed: tuple[str, ...]
    settled: Settled
    compares: Settled
    rounding: Rounding
    turn: int


Kept = Counter[int]
"""How many words the range guard keeps, by their limit."""
Parts = dict[int, list[Masked | Additive]]
"""Words that the range guard keeps, by their limit."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step costs a node. frames: of corrections, by evaluator. turns: by how much it moves
    the turn. parts: the words that the guard keeps of it. limits: those of `parts` that
    other steps of its kind may not share."""

    rounds: int
    sent: int
    received: int
    moved: int
    products: int
    seconds: float
    frames: tuple[int, ...]
    turns: int
    parts: Parts = field(default_factory=dict)
    limits: Limits = ()

    def parts_with(self, limits: Limits) -> Parts:
        """The words that the guard keeps of another step of this kind."""
        if limits == self.limits:
            return self.parts
        others, found = dict(zip(self.limits, limits, strict=True)), Parts()
        for limit, some in self.parts.items():
            found.setdefault(others.get(limit, limit), []).extend(some)
        return found

    @classmethod
    def so_far(cls, role: Role, channel: CountingChannel, meter: Meter) -> Cost:
        return cls(
            role.rounds,
            channel.uncredited_sent,
            channel.uncredited_received,
            meter.moved,
            meter.products,
            time.thread_time(),
            role.frames(),
            role.turn,
        )

    def since(self, before: Cost) -> Cost:
        return Cost(
            self.rounds - before.rounds,
            self.sent - before.sent,
            self.received - before.received,
            self.moved - before.moved,
            self.products - before.products,
            self.seconds - before.seconds,
            tuple(x - y for x, y in zip(self.frames, before.frames, strict=True)),
            self.turns - before.turns,
        )


class RepeatedGuard(RangeGuard):
    """A range guard that can count a step that was not run."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._before: dict[int, int] = {}
        self.last: Parts = {}
        """The words of the last step that was run."""

    def begin_step(self) -> None:
        self._before = {limit: len(parts) for limit, parts in self._held.items()}

    def settle(self) -> None:
        super().settle()
        self._before = {}

    @property
    def kept(self) -> Kept:
        """How many words are kept, by their limit."""
        return sizes_of(self._held)

    def end_step(self) -> None:
        new = {limit: parts[self._before.get(limit, 0) :] for limit, parts in self._held.items()}
        self.last = {limit: parts for limit, parts in new.items() if parts}
        super().end_step()

    def compares(self, kept: int) -> bool:
        """Whether a step like the last one fills what is kept, beyond `kept` words."""
        return kept + sum_of(self.last) >= MAX_HELD

    def before_comparison(self, parts: Parts) -> int:
        """How many steps with these words come before one that compares; at least 1."""
        return max(1, -(-(MAX_HELD - self._count) // max(sum_of(parts), 1)) - 1)

    def forget(self) -> None:
        """Count a comparison of everything that is kept."""
        self._held, self._count = {}, 0

    def repeat(self, parts: Parts, times: int) -> None:
        """Count other steps with these words."""
        for limit, some in parts.items():
            self._held.setdefault(limit, []).extend(some * times)
        self._count += times * sum_of(parts)


def sizes_of(parts: Parts) -> Kept:
    """How many words these are, by their limit."""
    return Counter({limit: sum(prod(x.shape) for x in some) for limit, some in parts.items()})


def sum_of(parts: Parts) -> int:
    """How many words these are."""
    return sizes_of(parts).total()


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one training. looked_at: those after which something may be disclosed. points:
    steps from one point of checkpoints to the next; 0 without. exact: whether steps that round by
    other bits, or differ in the turn, are told apart."""

    job: Job
    steps: int
    an_epoch: int
    looked_at: list[int]
    points: int
    exact: bool

    @classmethod
    def of(cls, job: Job, exact: bool) -> Plan:
        looked = [] if job.data.fold else looked_at(job)
        if _checks_at_end(job) and looked[-1:] != [total_steps(job)]:
            looked = [*looked, total_steps(job)]
        points = 0 if job.data.fold else steps_between(job)
        return cls(job, total_steps(job), steps_per_epoch(job), looked, points, exact)

    @property
    def fold(self) -> bool:
        return bool(self.job.data.fold)

    def epoch(self, number: int) -> int:
        return (number - 1) // self.an_epoch

    def disclosed(self, number: int) -> tuple[str, ...]:
        """What is disclosed after this step."""
        place = bisect_left(self.looked_at, number)
        if place == len(self.looked_at) or self.looked_at[place] != number:
            return ()
        found = tuple(disclosed_at(self.job, number))
        return (*found, AT_END) if number == self.steps and _checks_at_end(self.job) else found

    def follows_point(self, number: int) -> bool:
        """Whether a checkpoint may be written before this step."""
        return bool(self.points) and number > 1 and (number - 1) % self.points == 0

    def rate(self, number: int) -> Fraction:
        """The learning rate of this step."""
        return rate(self.job, self.epoch(number), number)

    def alike(self, number: int) -> int:
        """How many steps from this one on have its rate, and nothing disclosed after them or after
        the next one, and no point of checkpoints between; at least 1."""
        if number < self.job.train.schedule.warmup_steps:
            return 1
        period = self.an_epoch * epochs_alike(self.job)
        last = min(self.steps, -(-number // period) * period)
        if self.points:
            last = min(last, -(-number // self.points) * self.points)
        place = bisect_left(self.looked_at, number)
        if place < len(self.looked_at):
            last = min(last, self.looked_at[place] - 2)
        return max(1, last - number + 1)


def _checks_at_end(job: Job) -> bool:
    """Whether the last model is compared with the best one, and nothing disclosed of that."""
    stopping = job.train.early_stopping
    last = job.train.epochs - 1
    return (
        stopping is not None and not job.data.fold and stopping.keep_best and is_checked(job, last)
    )


@dataclass(slots=True)
class Repeats:
    """At one node: which steps are run, and what the others cost."""

    role: Role
    channel: CountingChannel
    meter: Meter
    brief: bool = False
    guard: RepeatedGuard | None = None
    roundings: Roundings | None = None
    seconds: float = 0.0
    """Of the processor, that repeated steps would have taken here."""
    _seen: Counter[Kind] = field(default_factory=Counter)
    _costs: dict[Kind, Cost] = field(default_factory=dict)

    def steps(self, job: Job) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """The steps to run; costs of the others are added to the role's and the channel's."""
        plan, number = Plan.of(job, not self.brief), 1
        rows = np.arange(job.train.batch_size)  # which ones makes no difference
        while number <= plan.steps:
            kind = self._kind(plan, number)
            if number > FIRST and not self._is_new(kind) and not self._prepares(plan, number, kind):
                number += self._repeat(plan, number, kind)
                continue
            limits = self._limits(1, plan.rate(number))[0] if plan.exact else ()
            if self.guard is not None:
                self.guard.begin_step()
            if self.roundings is not None:
                self.roundings.begin_step()
            before = self._so_far()
            yield plan.epoch(number), number, rows
            cost = self._so_far().since(before)
            if number > FIRST:
                self._seen[kind] += 1
                parts = {} if self.guard is None else self.guard.last
                self._costs[kind] = replace(cost, parts=parts, limits=limits)
            number += 1

    def parts(
        self, job: Job, rows: NDArray[np.int64], metrics: Sequence[str]
    ) -> Iterator[NDArray[np.int64]]:
        """The chunks of rows to run through a trained model; costs of the others are added."""
        kept = "auc" in metrics and len(rows) <= MAX_PAIRED_ROWS  # chunks are kept, to be compared
        costs: dict[tuple[int, int], Cost] = {}
        for number, some in enumerate(all_parts(job, rows, metrics)):
            kind = len(some), self.role.turn
            if kind in costs and not kept:
                self._add(costs[kind])
                continue
            before = self._so_far()
            yield some
            if number:  # the first one makes the sums to which the others are added
                costs[kind] = self._so_far().since(before)

    def _is_new(self, kind: Kind) -> bool:
        return self._seen[kind] < (SEEN_DISCLOSED if kind.disclosed else 1)

    def _prepares(self, plan: Plan, number: int, kind: Kind) -> bool:
        """Whether a step with the guard of `watch` follows: a model keeps its layers' outputs for
        it, as it is told after the step before."""
        due = plan.disclosed(number + 1)
        if GUARD not in due:
            return False
        turn = (kind.turn + self._costs[kind].turns) % self.role.evaluators if plan.exact else 0
        settled, compares = self._guarded(plan, number + 1, kind)
        rounding = self._rounding(plan, number, number + 1)
        return self._is_new(Kind(plan.fold, due, settled, compares, rounding, turn))

    def _guarded(self, plan: Plan, number: int, before: Kind | None) -> tuple[Settled, Settled]:
        """Which words the guard compares before a step, and which after it besides its own.
        before: the kind of the step before, if that has not been counted yet."""
        if self.guard is None:
            return (() if plan.follows_point(number) else None), None
        kept = self.guard.kept
        if before is not None:
            kept = Counter() if before.settled is not None else kept
            kept += sizes_of(self._costs[before].parts)
            kept = Counter() if before.compares is not None else kept
        words = tuple(sorted(kept.items())) if plan.exact else ((0, kept.total()),)
        if plan.follows_point(number):
            return words, () if self.guard.compares(0) else None
        return None, words if self.guard.compares(kept.total()) else None

    def _kind(self, plan: Plan, number: int) -> Kind:
        settled, compares = self._guarded(plan, number, None)
        turn = self.role.turn % self.role.evaluators if plan.exact else 0
        rounding = self._rounding(plan, number)
        return Kind(plan.fold, plan.disclosed(number), settled, compares, rounding, turn)

    def _rounding(self, plan: Plan, *numbers: int) -> Rounding:
        """That of the last of these steps, which follow each other and are the next ones."""
        if self.roundings is None or not plan.exact:
            return ()
        return self.roundings.next([plan.rate(number) for number in numbers])[-1]

    def _repeat(self, plan: Plan, number: int, kind: Kind) -> int:
        """Add the costs of this step and of those that follow and are alike; return how many."""
        rate = plan.rate(number)
        alike = self._alike(plan, number, kind, rate)
        if self.roundings is not None:
            self.roundings.skip(alike, rate)
        return alike

    def _limits(self, most: int, rate: Fraction) -> list[Limits]:
        """Of the next steps that round alike, of at most so many."""
        return [()] * most if self.roundings is None else self.roundings.limits(most, rate)

    def _alike(self, plan: Plan, number: int, kind: Kind, rate: Fraction) -> int:
        """As `_repeat`; the optimizer does not go on."""
        if kind.disclosed or kind.compares is not None or kind.settled is not None:
            self._add(self._costs[kind])
            if self.guard is not None:
                if kind.settled is not None:
                    self.guard.forget()
                mine = self._limits(1, rate)[0] if plan.exact else ()
                self.guard.repeat(self._costs[kind].parts_with(mine), 1)
                if kind.compares is not None:
                    self.guard.forget()
            return 1
        alike = plan.alike(number)
        if self.guard is not None:
            alike = min(alike, self.guard.before_comparison(self._costs[kind].parts))
        limits = self._limits(alike, rate) if plan.exact else [()] * alike
        alike = len(limits)
        cycle = [kind]
        while plan.exact:
            turn = (cycle[-1].turn + self._costs[cycle[-1]].turns) % self.role.evaluators
            if turn == kind.turn:
                break
            following = replace(kind, turn=turn)
            if self._is_new(following):
                alike = min(alike, len(cycle))
                break
            cycle.append(following)
        for place, one in enumerate(cycle):
            times = len(range(place, alike, len(cycle)))
            self._add(self._costs[one], times)
            if self.guard is not None:
                for mine, count in Counter(limits[place : alike : len(cycle)]).items():
                    self.guard.repeat(self._costs[one].parts_with(mine), count)
        return alike

    def _add(self, cost: Cost, times: int = 1) -> None:
        self.role.rounds += times * cost.rounds
        self.channel.bytes_sent += times * cost.sent
        self.channel.bytes_received += times * cost.received
        self.meter.moved += times * cost.moved
        self.meter.products += times * cost.products
        self.seconds += times * cost.seconds
        frames = [times * count for count in cost.frames]
        credits = self.role.skip(frames, times * cost.turns)
        if self.role.is_dealer:
            self.channel.credits_received += credits
            self.channel.bytes_received += CREDIT_BYTES * credits
        else:
            self.channel.credits_sent += credits
            self.channel.bytes_sent += CREDIT_BYTES * credits

    def _so_far(self) -> Cost:
        return Cost.so_far(self.role, self.channel, self.meter)
