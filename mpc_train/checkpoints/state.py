"""The state of a training as one evaluator keeps it, and the same under fresh masks later.

Nothing masked survives a session: a checkpoint holds this evaluator's summand of each tensor,
(Δ at the first evaluator) − [λ]_i, of which all together give the secret and fewer give nothing. In
the later session they are opened under masks that nobody has used: W + λ' = Σ summands + Σ [λ']_i.
The dealer takes part with λ' alone and needs no checkpoint; it is told the names and shapes, which
it checks against the job.

    tensor/NAME     parameters and running statistics of the network
    optimizer/NAME  momentum, running means
    best/NAME       the best checked model, with early stopping; watch/least, watch/waited
    guard/outside   how many values have left their range so far
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mpc_train.errors import ArtifactError
from protocols.arrays import Shape, Words
from protocols.canonical import pack
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive, Masked, public

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.range_guard import RangeGuard
    from mpc_train.training.trainer import Trainer
    from mpc_train.training.watch import Watch
    from protocols.roles.role import Role

TENSOR, OPTIMIZER, BEST, WATCH, GUARD = "tensor/", "optimizer/", "best/", "watch/", "guard/"
OUTSIDE = f"{GUARD}outside"
_PUBLIC = "public"
_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Ratio = Annotated[str, Meta(pattern=r"^[0-9]{1,400}(/[1-9][0-9]{0,399})?\Z")]
"""Of 64 significant bits; without a bound, 1e999999999 would take all memory at the dealer."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the state. constant: every node knows its words; otherwise it is a secret."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is public about a state. finished: no step follows. numbers: of the optimizer, fractions
    as text; drawn: samples of the range guard; passes: of the network in training; losses: those
    revealed so far, by step, empty at the dealer."""

    step: _Count
    finished: bool
    entries: tuple[Entry, ...]
    numbers: dict[str, _Ratio]
    drawn: _Count
    passes: _Count
    losses: tuple[tuple[int, float], ...] = ()

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self, order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> Position:
        """Raises ArtifactError."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ArtifactError(f"a checkpoint's public part is malformed: {error}") from error


@dataclass(frozen=True, slots=True, repr=False)
class State:
    """A checkpoint's content. parts: this evaluator's summand of each secret, the words of each
    constant. agreed: a digest of all Δ, the same at every evaluator and at nobody else."""

    position: Position
    parts: dict[str, Words]
    agreed: bytes

    def to_bytes(self) -> bytes:
        public_part = np.frombuffer(self.position.to_bytes(), np.uint8)
        agreed = np.frombuffer(self.agreed, np.uint8)
        return bytes(save_tensors({_PUBLIC: public_part, "agreed": agreed, **self.parts}))

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Raises ArtifactError for anything that `to_bytes` did not write."""
        try:
            found = load_tensors(data)
            position = Position.from_bytes(found.pop(_PUBLIC).tobytes())
            agreed = found.pop("agreed").tobytes()
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError("a checkpoint's content is malformed") from error
        shapes = {entry.name: entry.shape for entry in position.entries}
        if {name: words.shape for name, words in found.items()} != shapes or any(
            words.dtype != np.int64 for words in found.values()
        ):
            raise ArtifactError("a checkpoint holds other tensors than it says")
        return cls(position, found, agreed)

    def proof(self, key: bytes, sender: str) -> bytes:
        """What `sender` shows another evaluator, who has the same key, of the Δ it resumes from."""
        return hmac.digest(key, pack(sender.encode(), self.agreed), "sha256")


@dataclass(frozen=True, slots=True)
class Live:
    """A training while it runs: what a checkpoint is taken of, and put back into."""

    job: Job
    role: Role
    trainer: Trainer
    watch: Watch | None
    guard: RangeGuard | None

    def tensors(self) -> dict[str, Masked | Additive]:
        """The shared state by name. All of it is there, once the role has finished."""
        found: dict[str, Masked | Additive] = {
            TENSOR + name: tensor.masked() for name, tensor in self.trainer.model.secret.items()
        }
        found |= {OPTIMIZER + name: x for name, x in self.trainer.optimizer.state().items()}
        if self.watch is not None:
            best, numbers = self.watch.state()
            found |= {BEST + name: x for name, x in best.items()}
            found |= {WATCH + name: x for name, x in numbers.items()}
        if self.guard is not None and self.guard.outside is not None:
            found[OUTSIDE] = self.guard.outside
        return found

    def position(self, step: int, finished: bool, tensors: Mapping[str, Any]) -> Position:
        numbers = {name: str(x) for name, x in self.trainer.optimizer.numbers().items()}
        return Position(
            step,
            finished,
            tuple(
                Entry(name, x.shape, isinstance(x, Masked) and not x.masked)
                for name, x in sorted(tensors.items())
            ),
            numbers,
            0 if self.guard is None else self.guard.drawn,
            self.trainer.model.step,
            () if self.watch is None else tuple(self.watch.losses.items()),
        )

    def captured(self, step: int, finished: bool) -> State:
        """This evaluator's part of the state after `step`. No communication but what is pending."""
        self.role.finish()
        tensors = self.tensors()
        parts, seen = {}, hashlib.sha256(step.to_bytes(8, "big"))
        for name, x in sorted(tensors.items()):
            if isinstance(x, Masked):
                delta = np.ascontiguousarray(x.delta.get())
                seen.update(pack(name.encode(), delta.astype("<i8").tobytes()))
            summands = x if isinstance(x, Additive) else x.shares()
            constant = isinstance(x, Masked) and not x.masked
            words = x.delta.get() if constant else summands.part.get()  # type: ignore[union-attr]
            parts[name] = np.ascontiguousarray(words).reshape(x.shape)
        return State(self.position(step, finished, tensors), parts, seen.digest())

    def restore(self, position: Position, parts: Mapping[str, Words] | None) -> None:
        """Put a state back, its secrets under fresh masks. 1 round, opens 8 bytes an element.

        parts: this evaluator's; None at the dealer. Raises ArtifactError for a state that is not
        one of this job.
        """
        check(self.job, self.trainer, position)
        found: dict[str, Masked | Additive] = {}
        for entry in position.entries:
            words = None if parts is None else parts[entry.name]
            found[entry.name] = self._again(entry, words)
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
        if self.guard is not None:
            outside = found.get(OUTSIDE)
            assert outside is None or isinstance(outside, Additive)
            self.guard.restore(outside, position.drawn)

    def _again(self, entry: Entry, words: Words | None) -> Masked | Additive:
        role, shape = self.role, entry.shape
        if entry.constant:
            return public(role, np.zeros(shape, np.int64) if words is None else words)
        part = role.known(np.zeros(shape, np.int64) if words is None else words)
        summands = Additive(role, shape, part, None)
        return summands if entry.name == OUTSIDE else remask(summands)


def _under(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}


def check(job: Job, trainer: Trainer, position: Position) -> None:
    """Raise ArtifactError unless names and shapes are those of a state of this job."""
    tensors = {name: tensor.shape for name, tensor in trainer.model.secret.items()}
    every = (sum(prod(tensor.shape) for tensor in trainer.parameters.values()),)
    for entry in position.entries:
        kind, _, name = entry.name.partition("/")
        allowed: set[Shape] = {()} if kind in ("watch", "guard") else set()
        if kind in ("tensor", "best", "optimizer") and name in tensors:
            allowed.add(tuple(tensors[name]))
        if kind == "optimizer":
            allowed.add(every)
        if entry.shape not in allowed:
            raise ArtifactError(
                f"a checkpoint has a tensor {entry.name[:80]!r} of shape {list(entry.shape)}, "
                "which the job has not"
            )
    names = [entry.name for entry in position.entries]
    missing = sorted({TENSOR + name for name in tensors} - {*names})
    if missing or len({*names}) != len(names):
        raise ArtifactError("a checkpoint lacks tensors of the job, or has one of them twice")
