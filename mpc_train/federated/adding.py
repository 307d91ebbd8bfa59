"""Updates of owners become one sum over shares; those beyond the declared norm are left out.

Evaluators and the dealer run this. An update comes in as summands, one at each evaluator; nobody
sees one. For each owner one bit is disclosed, to everybody: whether its update's norm is within the
limit. What comes out is the masked sum of those that are, each times its rows, and how many rows
these are; noise is added to it before it leaves (`noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpc_train.federated.limits import Limits
from protocols.arrays import Words
from protocols.functions.norm_bound import outside, within
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.computed import let_go
from protocols.shares.masked import Additive, Masked, concatenate

GROUP_WORDS = 1 << 24
"""Updates whose norms are checked at once have so many words at most, unless it is one update."""

Take = Callable[[], Words | None]
"""An evaluator's summand of an update, int64[size]; None at the dealer, and for zeros."""
Decide = Callable[[int, Masked], tuple[bool, ...]]
"""Discloses the bits of the owners from this place on, to evaluators and dealer."""


@dataclass(frozen=True, repr=False)
class Sum:
    """total: Σ rows · update, int64[size] at the limits' scale; None if all were left out. within:
    of each owner, whether its update is part of it. rows: Σ rows, a number, or a secret
    int64[1]."""

    total: Masked | None
    within: tuple[bool, ...]
    rows: int | Masked


def entered(role: Role, shape: tuple[int, ...], summand: Words | None) -> Masked:
    """Masked form of what all evaluators have summands of. 1 round, 8 bytes an element."""
    role.issue("entered", *shape)
    words = np.zeros(0 if role.is_dealer else shape, np.int64) if summand is None else summand
    return remask(Additive(role, shape, role.known(words), None))


def add_up(
    role: Role,
    limits: Limits,
    takes: Sequence[Take],
    rows: Sequence[int] | Sequence[Take],
    decide: Decide,
    most_rows: int = 0,
) -> Sum:
    """The sum of the updates whose norm is within the limit.

    rows: of each owner; or, if they are secret, this evaluator's summands of them, int64[1], which
    must be 1 to `most_rows`. Rounds: about 12 for each group of owners (GROUP_WORDS).
    """
    total: Additive | None = None
    passed: list[bool] = []
    whole = 0
    secret: Additive | None = None
    for places in groups(len(takes), limits.size):
        updates = [entered(role, (limits.size,), takes[place]()) for place in places]
        counts: list[Masked] = []
        for place in places:
            count = rows[place]
            if callable(count):
                counts.append(entered(role, (1,), count()))
        bad = outside(concatenate(counts), 1, most_rows) if counts else None
        bits = decide(places.start, remask(within(updates, limits.most_square, bad).shares()))
        passed += bits
        for number, place in enumerate(places):
            if not bits[number]:
                continue
            count = rows[place]
            if callable(count):
                part = multiply(updates[number], counts[number])
                mine = counts[number].shares()
                secret = mine if secret is None else secret + mine
            else:
                part = updates[number].scale(count).shares()
                whole += count
            let_go(role, [part.part])  # a sum that is computed at the end would keep all updates
            total = part if total is None else total + part
    return Sum(
        None if total is None else remask(total),
        tuple(passed),
        whole if secret is None else remask(secret),
    )


def groups(count: int, size: int) -> Iterator[range]:
    """The places of owners whose bits are disclosed together."""
    each = max(1, GROUP_WORDS // size)
    for start in range(0, count, each):
        yield range(start, min(start + each, count))
