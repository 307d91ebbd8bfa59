"""A training while it runs: what a checkpoint is taken of, and put back into.

    tensor/NAME     parameters and running statistics of the model
    optimizer/NAME  momentum, running means
    best/NAME       the best checked model, with early stopping; watch/least, watch/waited
    regression/NAME what a regression needs besides
    guard/outside   how many values have left their range so far
    prepare/sums    sums with noise, from which the inputs' centers and scales follow

The dealer takes part with λ' alone and needs no checkpoint; it is told the names and shapes, which
it checks against the job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from mpc_train.checkpoints.state import Entry, Position, State
from mpc_train.checkpoints.summands import again, entry_of, kept, summands_of
from mpc_train.errors import ArtifactError
from protocols.arrays import Shape, Words
from protocols.canonical import pack
from protocols.shares.masked import Additive, Masked

if TYPE_CHECKING:
    from mpc_train.training.range_guard import RangeGuard
    from mpc_train.training.trainer import Trainer
    from mpc_train.training.watch import Watch
    from protocols.roles.role import Role

TENSOR, OPTIMIZER, BEST, WATCH, GUARD = "tensor/", "optimizer/", "best/", "watch/", "guard/"
OUTSIDE = f"{GUARD}outside"
SUMS = "prepare/sums"


class Course(Protocol):
    """A training of one kind, without its guard."""

    @property
    def passes(self) -> int:
        """How often the model was applied to a batch."""

    @property
    def losses(self) -> dict[int, float]:
        """Those that were revealed, by step; empty at the dealer."""

    def tensors(self) -> dict[str, Masked | Additive]:
        """The shared state by name. All of it is there, once the role has finished."""

    def numbers(self) -> dict[str, str]:
        """Public numbers, fractions as text."""

    def check(self, entries: Collection[Entry], *, finished: bool) -> None:
        """Raise ArtifactError unless names and shapes are those of a state of this job."""

    def restore(self, position: Position, found: Mapping[str, Masked | Additive]) -> None:
        """Continue from the state `found`, which `check` has passed, under fresh masks."""


@dataclass(frozen=True, slots=True)
class NetworkCourse:
    """The training of a network by gradients."""

    trainer: Trainer
    watch: Watch | None

    @property
    def passes(self) -> int:
        return self.trainer.model.step

    @property
    def losses(self) -> dict[int, float]:
        return {} if self.watch is None else self.watch.losses

    def tensors(self) -> dict[str, Masked | Additive]:
        found: dict[str, Masked | Additive] = {
            TENSOR + name: tensor.masked() for name, tensor in self.trainer.model.secret.items()
        }
        found |= {OPTIMIZER + name: x for name, x in self.trainer.optimizer.state().items()}
        if self.watch is not None:
            best, numbers = self.watch.state()
            found |= {BEST + name: x for name, x in best.items()}
            found |= {WATCH + name: x for name, x in numbers.items()}
        return found

    def numbers(self) -> dict[str, str]:
        return {name: str(x) for name, x in self.trainer.optimizer.numbers().items()}

    def check(self, entries: Collection[Entry], *, finished: bool) -> None:
        tensors = {name: tensor.shape for name, tensor in self.trainer.model.secret.items()}
        every = (sum(prod(tensor.shape) for tensor in self.trainer.parameters.values()),)
        for entry in entries:
            kind, _, name = entry.name.partition("/")
            allowed: set[Shape] = {()} if kind == "watch" else set()
            if kind in ("tensor", "best", "optimizer") and name in tensors:
                allowed.add(tuple(tensors[name]))
            if kind == "optimizer":
                allowed.add(every)
            if entry.shape not in allowed:
                raise stranger(entry)
        complete(entries, {TENSOR + name for name in tensors})

    def restore(self, position: Position, found: Mapping[str, Masked | Additive]) -> None:
        for name, x in _under(found, TENSOR).items():
            tensor = self.trainer.model.tensors[name]
            tensor.copy_(tensor.with_value(x))
        self.trainer.model.step = position.passes
        numbers = {name: Fraction(text) for name, text in position.numbers.items()}
        if numbers.keys() != self.trainer.optimizer.numbers().keys():
            raise ArtifactError("a checkpoint is of another optimizer than the job's")
        self.trainer.optimizer.restore(_under(found, OPTIMIZER), numbers)
        if self.watch is not None:
            best, watched = _under(found, BEST), _under(found, WATCH)
            self.watch.restore(position.step, best, watched, dict(position.losses))


@dataclass(frozen=True, slots=True)
class Live:
    """A training and its guard. sums: noisy ones of the preparation, drawn once in a run."""

    role: Role
    course: Course
    guard: RangeGuard | None
    sums: Masked | None = None

    def tensors(self) -> dict[str, Masked | Additive]:
        found = self.course.tensors()
        if self.guard is not None and self.guard.outside is not None:
            found[OUTSIDE] = self.guard.outside
        if self.sums is not None:
            found[SUMS] = self.sums
        return found

    def captured(self, step: int, finished: bool, joined: tuple[int, bytes] = (0, b"")) -> State:
        """This evaluator's part of the state after `step`. No communication but what is pending.

        Before the first step there is nothing to keep. joined: the number of joined rows and their
        digest.
        """
        self.role.finish()
        tensors = self.tensors() if step else {}
        rows, digest = joined
        parts, seen = {}, hashlib.sha256(pack(step.to_bytes(8, "big"), digest))
        for name, x in sorted(tensors.items()):
            parts[name] = kept(entry_of(name, x), x, seen)
        position = self._position(step, finished, tensors, rows)
        return State(position, parts, seen.digest(), digest)

    def _position(
        self, step: int, finished: bool, tensors: Mapping[str, Masked | Additive], joined: int
    ) -> Position:
        return Position(
            step,
            finished,
            tuple(entry_of(name, x) for name, x in sorted(tensors.items())),
            self.course.numbers(),
            0 if self.guard is None else self.guard.drawn,
            self.course.passes,
            tuple(self.course.losses.items()),
            joined,
        )

    def restore(self, position: Position, parts: Mapping[str, Words] | None) -> None:
        """Put a state back, its secrets under fresh masks. 1 round, opens 8 bytes an element.

        parts: this evaluator's; None at the dealer. Raises ArtifactError for a state that is not
        one of this job.
        """
        if not position.step and not position.entries:
            return
        entries = {entry.name: entry for entry in position.entries}
        if len(entries) != len(position.entries):
            raise ArtifactError("a checkpoint has one of its tensors twice")
        counted = entries.pop(OUTSIDE, None)
        if counted is not None and counted.shape != ():
            raise stranger(counted)
        drawn = entries.pop(SUMS, None)  # taken before rows were shared (`Keeper.sums`)
        if drawn is not None and self.sums is None:
            raise stranger(drawn)
        self.course.check(entries.values(), finished=position.finished)
        found: dict[str, Masked | Additive] = {}
        for entry in position.entries:
            if entry.name == SUMS:
                continue
            words = None if parts is None else parts[entry.name]
            # The guard adds to what it has counted, and needs no Δ of it.
            restored = summands_of if entry.name == OUTSIDE else again
            found[entry.name] = restored(self.role, entry, words)
        outside = found.pop(OUTSIDE, None)
        self.course.restore(position, found)
        if self.guard is not None:
            assert outside is None or isinstance(outside, Additive)
            self.guard.restore(outside, position.drawn)


def stranger(entry: Entry) -> ArtifactError:
    return ArtifactError(
        f"a checkpoint has a tensor {entry.name[:80]!r} of shape {list(entry.shape)}, "
        "which the job has not"
    )


def complete(entries: Iterable[Entry], wanted: Collection[str]) -> None:
    """Raises ArtifactError if a tensor is missing."""
    if set(wanted) - {entry.name for entry in entries}:
        raise ArtifactError("a checkpoint lacks tensors of the job")


def _under(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
