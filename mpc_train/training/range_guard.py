"""Whether a value left the ring's range at any time in a run: computed in secret, revealed as one
bit.

A value that is too large wraps around to an arbitrary number, which is often in its range. So the
result of a diverged training may look harmless, and there are three checks:

1. At every step, a public sample of the words of the outputs, of the gradient at them, of the sums
   over the batch that are the weights' gradients, and of what the optimizer rounded: if arithmetic
   wraps it does so for many words in many steps. They add no communication to a step: they are kept
   and compared later, many at a time.
2. At the end, all weights, and the layers' outputs for some of the rows of the metrics.
3. For a regression, all coefficients and their changes, and linear predictors of some rows.

Words are compared with what the ring can hold (`exact_limit`), not with the job's stated bound: a
training that temporarily exceeds `fixed_point.activation_limit` is as exact as any. Values inside a
norm, an attention or a recurrent layer are not checked.

Every node learns one bit, once, after all trainings and before anything else is revealed. If it is
set the run ends: nobody gets a model or a metric. A job may switch this off (`guard = false`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from math import floor, prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mpc_train.jobs.audience import RANGE
from mpc_train.jobs.schedule import split
from mpc_train.training.limits import most_hidden, most_of_ring, most_output
from mpc_train.training.optimizers.gradients import join
from protocols.arrays import Words
from protocols.comparison.compare import below
from protocols.crypten_tensor.tensor import MaskedTensor, crypten
from protocols.errors import DivergedError
from protocols.roles.deferred import Deferred
from protocols.shares.arithmetic import remask
from protocols.shares.computed import let_go
from protocols.shares.masked import Additive, Masked, MaskedBit, concatenate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpc_train.jobs.job import Job
    from mpc_train.networks.network import Network
    from protocols.roles.role import Role
    from protocols.shares.reveal import RevealGate

T = TypeVar("T", Masked, Additive)

SAMPLES = 4
"""How many words of each tensor of a step are checked."""
MAX_HELD = 1 << 12
"""Sampled words are compared when there are this many."""
MAX_AT_ONCE = 1 << 17
"""How many words are compared at a time: limits memory."""
PARTS = 16
MIN_ROWS, MAX_ROWS = 32, 256
"""Limits of the number of rows for the check at the end; within these it is that of a batch."""
_NOBODY = "training diverges, and nobody gets a result; "
_LIMITS = "raise fixed_point.activation_limit or gradient_limit to the actual values"
ADVICE = f"{_NOBODY}lower the learning rate, scale features and label, clip gradients, or {_LIMITS}"
NEWTON_ADVICE = (
    f"{_NOBODY}an input that separates the labels has no finite coefficient: remove it or add a "
    f"penalty (train.optimizer.l2); or take fewer steps, scale features, or {_LIMITS}"
)
GIVEN_ADVICE = (
    "the model's outputs for these rows are larger than the job says, so that nothing is revealed; "
    "look for rows far from those of its training, or raise fixed_point.activation_limit"
)


class RangeGuard:
    """Counts over shares the words it gets that are outside their range."""

    def __init__(self, role: Role, advice: str = ADVICE) -> None:
        """advice: what the error recommends if anything was outside."""
        self._role = role
        self._advice = advice
        self._held: dict[int, list[Masked | Additive]] = {}
        self._awaited: list[Deferred[Words]] = []
        self._count = 0
        self._drawn = 0
        self._outside: Additive | None = None

    @property
    def outside(self) -> Additive | None:
        """For checkpoints: how many words have been outside, of all that are settled."""
        return self._outside

    @property
    def drawn(self) -> int:
        """How many samples were taken."""
        return self._drawn

    def restore(self, outside: Additive | None, drawn: int) -> None:
        """Continue from what `outside` and `drawn` were."""
        self._outside, self._drawn = outside, drawn

    def sample(self, x: Masked | Additive, limit: int) -> None:
        """Keep a few words of x for a later comparison with ±limit. No communication."""
        self._drawn += 1
        size = prod(x.shape)
        words = x.reshape(size)
        self.look(words.select(_places(self._drawn, size)) if size > SAMPLES else words, limit)

    def look(self, x: Masked | Additive, limit: int) -> None:
        """Keep all words of x for a later comparison with ±limit. No communication."""
        words = x.reshape(prod(x.shape))
        if isinstance(words, Masked):
            words = words.narrowed(64)
        self._awaited.append(_value(words))
        self._held.setdefault(limit, []).append(words)
        self._count += prod(x.shape)

    def end_step(self) -> None:
        """At the end of a step: free what the words were computed from, and compare if there are
        enough."""
        self._let_go()
        if self._count >= MAX_HELD:
            self.settle()

    def settle(self) -> None:
        """Compare all kept words: about 5 rounds for each limit, 20 bytes per word."""
        self._let_go()
        held, self._held, self._count = self._held, {}, 0
        for limit, parts in held.items():
            masked = [part for part in parts if isinstance(part, Masked)]
            summands = [part for part in parts if isinstance(part, Additive)]
            if summands:
                masked.append(remask(self._together(summands, join)))
            words = self._together(masked, concatenate)
            for start in range(0, words.size, MAX_AT_ONCE):
                self._add(outside(words.select(slice(start, start + MAX_AT_ONCE)), limit))

    def decide(self, gate: RevealGate, step: int) -> None:
        """Reveal to all nodes whether anything was outside; if so, DivergedError at all of them."""
        self.settle()
        if self._outside is None:
            raise RuntimeError("a range guard that has seen nothing")
        found = positive(remask(self._outside.reshape()))
        if gate.decide(RANGE, step, remask(found.shares())):
            raise DivergedError(f"a value left the range of the ring: {self._advice}")

    def _together(self, parts: list[T], joined: Callable[[list[T]], T]) -> T:
        """Concatenates all parts, a few at a time, because pending values use the call stack."""
        while len(parts) > 1:
            parts = [joined(parts[at : at + PARTS]) for at in range(0, len(parts), PARTS)]
            self._awaited += map(_value, parts)
            self._let_go()
        return parts[0]

    def _add(self, count: Additive) -> None:
        self._outside = count if self._outside is None else self._outside + count
        self._awaited.append(self._outside.part)
        self._let_go()

    def _let_go(self) -> None:
        """Compute the kept words, so that the values they depend on do not accumulate over
        steps."""
        awaited, self._awaited = self._awaited, []
        let_go(self._role, awaited)


def _value(words: Masked | Additive) -> Deferred[Words]:
    return words.delta if isinstance(words, Masked) else words.part


def outside(x: Masked, limit: int) -> Additive:
    """Summands of the number of words of x [n] beyond ±limit, with shape []."""
    bits = below(x, (-limit, limit + 1))
    return (bits.select(0).shares() - bits.select(1).shares()).shift(1).sum()


def positive(count: Masked) -> MaskedBit:
    """[count >= 1] for a number that is not negative."""
    return below(count, (1,)).reshape().negate()


def words_of(x: MaskedTensor, limit: Fraction | int) -> tuple[Masked, int]:
    """A tensor's words, and `limit` in their scale."""
    tensor = x.positive_factor()
    words = tensor.masked()
    return words, floor(limit * (1 << tensor.bits) / tensor.factor)


def _places(number: int, size: int) -> NDArray[np.int64]:
    """The places of a sample's words: the same at every node, different each time."""
    label = f"mpc-train/v1/range/{number}/{size}".encode()
    raw = np.frombuffer(hashlib.shake_256(label).digest(8 * SAMPLES), "<u8")
    return (raw % np.uint64(size)).astype(np.int64)


def rows_looked_at(job: Job) -> NDArray[np.int64]:
    """The rows for the check of a trained model: held-out rows, or training rows if there are
    none."""
    training, held_out = split(job)
    rows = held_out if len(held_out) else training
    most = min(max(job.train.batch_size, MIN_ROWS), MAX_ROWS)
    return rows[:: -(-len(rows) // most)]


def look_at_network(guard: RangeGuard, job: Job, model: Network, inputs: MaskedTensor) -> None:
    """Check 2: weights and running statistics, and layers' outputs for some rows among `inputs`."""
    with crypten.no_grad():
        outputs, hidden = model.looked_into(inputs[rows_looked_at(job)])
    pairs: list[tuple[Iterable[MaskedTensor], int]] = [
        (model.tensors.values(), most_of_ring(job)),
        (hidden, most_hidden(job)),
        ((outputs,), most_output(job)),
    ]
    for tensors, limit in pairs:
        for tensor in tensors:
            guard.look(*words_of(tensor, limit))
    guard.settle()


def look_at_weights(guard: RangeGuard, job: Job, model: Network) -> None:
    """The part of check 2 that needs no rows."""
    for tensor in model.tensors.values():
        guard.look(*words_of(tensor, most_of_ring(job)))
    guard.settle()
