"""Rows in a secret order: a permutation that one evaluator and the dealer know, over shares.

Evaluator j permutes the rows of a masked x. Its permutation π and a mask λ_j come from the stream
that it shares with the dealer.

1. Evaluator j sends π(Δx) + λ_j to all others.
2. The dealer, who knows π and λx, deals fresh shares of π(λx).

The result is π(x) with Δ = π(Δx) + λ_j and λ = λ_j + π(λx). What the others see is uniform: they
learn nothing of π, and nobody learns anything of x. The dealer sees no Δ. After all evaluators have
permuted, only all evaluators together, or the dealer together with somebody who knows a position in
the result, can trace a row of the result back to x.

Rows that are then picked at positions which only evaluators know are masked afresh (`pick`), so
that the dealer needs no more than their number.

Shuffles with a dealer's correlation: Chase, Ghosh, Poburinnaya, "Secret-shared shuffle" (ASIACRYPT
2020); here the dealer knows the permutation, as it knows every mask.
"""

from __future__ import annotations

from math import prod

import numpy as np

from protocols.arrays import Positions
from protocols.roles.evaluator import Evaluator
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked


def shuffle(x: Masked, owner: int, order: Positions | None) -> Masked:
    """The rows of x in the order of evaluator `owner`: row i of the result is row order[i] of x.

    order: `Role.permutation` of the rows, at `owner` and the dealer; None elsewhere. No round of
    openings, but x is needed in full. Sent: 8 bytes an element, by `owner` to each other evaluator
    and by the dealer to one evaluator.
    """
    role, shape = x.role, x.shape
    role.issue("shuffle", owner, *shape)
    mask = role.owner_mask(shape, owner)
    x_lam = np.zeros(shape, np.int64) if x.lam is None else x.lam
    if not isinstance(role, Evaluator):
        if order is None or mask is None:
            raise ValueError("the dealer needs the permutation")
        moved = x_lam[order]
        role.deal(moved, shape)
        return Masked(role, shape, role.known(moved), moved + mask)
    before = x.delta.get()
    if role.index == owner:  # 1
        if order is None or mask is None:
            raise ValueError("the owner of a permutation needs it")
        delta = before[order] + mask
        role.broadcast(b"inpt", delta)
    else:
        octets = role.collect(b"inpt", role.names[owner], 8 * prod(shape))
        delta = octets.view(np.int64).reshape(shape)
    lam = role.deal(None, shape)  # 2
    if mask is not None:
        lam = lam + mask
    return Masked(role, shape, role.known(delta), lam)


def pick(x: Masked, positions: Positions | None, count: int) -> Masked:
    """Rows of x at positions that the evaluators know and the dealer does not. 1 round.

    positions: int64[count] at the evaluators, ignored at the dealer. Sent: 8 bytes an element of
    the result, by each evaluator to each other.
    """
    if x.role.is_dealer or positions is None:
        positions = np.zeros(count, np.int64)  # only the shape matters where no share is
    if positions.shape != (count,):
        raise ValueError("as many positions as the program says are needed")
    return remask(x.shares().select(positions))
