"""Updates of owners become one sum over shares; those beyond the declared norm are left out.

Evaluators and the dealer run this. An update comes in under a mask that no evaluator knows. For
each owner one bit is disclosed, to everybody: whether its update's norm is within the limit. What
comes out are summands of the sum of those that are, each times its rows, and how many rows these
are. With a variance every node adds noise of its own to it, before anything is opened
(`protocols.noise.summands`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mpc_train.federated.limits import Limits
from mpc_train.jobs.schedule import GROUP_WORDS
from protocols.arrays import Words
from protocols.functions.norm_bound import outside, within
from protocols.noise.summands import noisy
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, remask
from protocols.shares.computed import let_go
from protocols.shares.masked import Additive, Masked, concatenate
from protocols.shares.pieces import add_scaled, empty_sum

Enter = Callable[[], Masked]
"""Shares in an update, int64[size]; or an owner's number of rows, int64[1]."""
Decide = Callable[[int, Masked], tuple[bool, ...]]
"""Discloses the bits of the owners from this place on, to evaluators and dealer."""


@dataclass(frozen=True, repr=False)
class Sum:
    """total: Σ rows · update, int64[size] at the limits' scale, and behind it Σ rows if rows are
    secret; None if all were left out. within: of each owner, whether its update is part of it.
    rows: Σ rows; 0 if they are secret."""

    total: Additive | None
    within: tuple[bool, ...]
    rows: int


def entered(role: Role, shape: tuple[int, ...], summand: Words | None) -> Masked:
    """Masked form of what evaluators have summands of. 1 round, 8 bytes an element.

    summand: this evaluator's; None: zeros, and at the dealer.
    """
    role.issue("entered", *shape)
    words = np.zeros(0 if role.is_dealer else shape, np.int64) if summand is None else summand
    return remask(Additive(role, shape, role.known(words), None))


def add_up(
    role: Role,
    limits: Limits,
    enters: Sequence[Enter],
    rows: Sequence[int] | Sequence[Enter],
    decide: Decide,
    most_rows: int = 0,
    variance: Fraction | None = None,
) -> Sum:
    """The sum of the updates whose norm is within the limit.

    rows: of each owner; or, if they are secret, what shares them in; such a number must be 1 to
    `most_rows`. variance: of the noise in each element of the total that the weakest coalition does
    not know, in squared words; None: without noise. Rounds: about 12 for each group of owners
    (`groups`).
    """
    total: Additive | None = None
    passed: list[bool] = []
    whole = 0
    for places in groups(len(enters), limits.size):
        updates = [enters[place]() for place in places]
        counts: list[Masked] = []
        for place in places:
            count = rows[place]
            if callable(count):
                counts.append(count())
        bad = outside(concatenate(counts), 1, most_rows) if counts else None
        fits = within(updates, limits.most_square, bad)
        bits = decide(places.start, remask(fits.shares()))
        passed += bits
        for number, place in enumerate(places):
            if not bits[number]:
                continue
            count = rows[place]
            if callable(count):
                part = _behind(multiply(updates[number], counts[number]), counts[number].shares())
                total = part if total is None else total + part
            else:
                before = empty_sum(role, limits.size) if total is None else total
                total = add_scaled(before, updates[number], count)
                whole += count
            let_go(role, [total.part])  # a sum that is computed at the end would keep all updates
    if total is not None and variance is not None:
        total = noisy(total, variance)
    return Sum(total, tuple(passed), whole)


def _behind(x: Additive, y: Additive) -> Additive:
    """x[n] with y[m] behind it."""
    size, more = x.shape[0], y.shape[0]
    front = x.linear((size + more,), lambda words: np.append(words, np.zeros(more, np.int64)))
    return front + y.linear(front.shape, lambda words: np.append(np.zeros(size, np.int64), words))


def groups(count: int, size: int) -> Iterator[range]:
    """The places of owners whose bits are disclosed together."""
    each = max(1, GROUP_WORDS // size)
    for start in range(0, count, each):
        yield range(start, min(start + each, count))
