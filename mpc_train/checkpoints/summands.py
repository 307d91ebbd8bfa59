"""A tensor as one evaluator keeps it beyond its session, and the same under fresh masks later.

Kept is a summand, (Δ at the first evaluator) − [λ]_i, of which all together give the secret and
fewer give nothing; of a constant, which everybody knows, the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.checkpoints.state import Entry
from protocols.arrays import Words
from protocols.canonical import pack
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive, Masked, public

if TYPE_CHECKING:
    from protocols.roles.role import Role


def entry_of(name: str, x: Masked | Additive) -> Entry:
    """What is public about a tensor."""
    return Entry(name, x.shape, isinstance(x, Masked) and not x.masked)


def kept(entry: Entry, x: Masked | Additive, seen: Any) -> Words:
    """What this evaluator keeps of x, once the role has finished. seen: a hash, which takes in Δ,
    if there is one."""
    if isinstance(x, Masked):
        delta = np.ascontiguousarray(x.delta.get())
        seen.update(pack(entry.name.encode(), delta.astype("<i8").tobytes()))
    summands = x if isinstance(x, Additive) else x.shares()
    words = x.delta.get() if entry.constant else summands.part.get()  # type: ignore[union-attr]
    return np.ascontiguousarray(words).reshape(x.shape)


def summands_of(role: Role, entry: Entry, words: Words | None) -> Additive:
    """The summands of a secret. words: what this evaluator kept; None at the dealer."""
    part = np.zeros(entry.shape, np.int64) if words is None else words
    return Additive(role, entry.shape, role.known(part), None)


def again(role: Role, entry: Entry, words: Words | None) -> Masked:
    """A secret under a fresh mask, or a constant. A secret takes 1 round and opens 8 bytes an
    element."""
    if entry.constant:
        return public(role, np.zeros(entry.shape, np.int64) if words is None else words)
    return remask(summands_of(role, entry, words))
