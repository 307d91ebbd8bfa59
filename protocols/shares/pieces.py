"""Sums over long vectors, piece by piece: what an evaluator's summands of them are needed for once.

`Masked.shares` makes an array of the vector's size, and so does each operation on it. Here a
summand exists for one piece at a time, which stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from protocols.arrays import Octets, Shape, Words
from protocols.roles.deferred import Deferred, combine
from protocols.roles.role import Role
from protocols.shares.masked import Additive, Masked

PIECE = 1 << 14
"""Words that stay in the cache over several operations."""


Summed = Callable[[Iterator[Words], Octets], Words]
"""A linear map of a vector that comes in pieces, as public octets say: int64[…] of its own."""


def summed(x: Masked, shape: Shape, function: Summed, public: Deferred[Octets]) -> Additive:
    """Summands, at the evaluators alone, of a linear map of x[n] to `shape`. No communication."""
    part = combine(
        lambda delta, octets: function((share for _, share in _shares(x, delta)), octets),
        x.delta,
        public,
    )
    return Additive(x.role, shape, part, None)


def empty_sum(role: Role, size: int) -> Additive:
    """Summands of zeros, int64[size], for `add_scaled`."""
    words = np.zeros(0 if role.is_dealer else size, np.int64)
    return Additive(role, (size,), role.known(words), None)


def add_scaled(total: Additive, x: Masked, factor: int) -> Additive:
    """total + factor · x of int64[n], in the place of the total: that has no other use any more. No
    communication."""

    def joined(words: Words, delta: Words) -> Words:
        for place, share in _shares(x, delta):
            words[place] += np.int64(factor) * share
        return words

    part = combine(joined, total.part, x.delta)
    return Additive(total.role, total.shape, part, total.dealt, total.has_dealt)


def _shares(x: Masked, delta: Words) -> Iterator[tuple[slice, Words]]:
    """An evaluator's summand of each piece of a vector, as `Masked.shares` has it; no piece if it
    holds zeros."""
    role, lam = x.role, x.lam
    if lam is None and not role.is_first:
        return
    for start in range(0, delta.size, PIECE):
        place = slice(start, min(start + PIECE, delta.size))
        if lam is None:
            yield place, delta[place]
        else:
            yield place, delta[place] - lam[place] if role.is_first else -lam[place]
