"""Linkage in a run: from each owner's tokens to the joined rows and their order.

1. The owners, who all evaluate, jointly make a key; every list is masked by all of them
   (`protocols.linkage.intersection`).
2. If the holders learn the membership, each finds which of its rows all owners have, and sorts
   them by their tokens, which gives the same order everywhere. If nobody does, every evaluator
   permutes each list that it passes on, in an order that the dealer knows too, so that rows can
   follow over shares (`linkage.sharing`).
3. Everybody else is told the number of rows, on which the rest of the run depends.

The dealer sees no list and no position; it learns only the number of joined rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpc_train.errors import LinkageError
from mpc_train.linkage.partners import demanded, least_joined
from protocols.arrays import Positions
from protocols.linkage.intersection import (
    Exponent,
    agree_key,
    common,
    meet,
    meet_shuffled,
    repeated,
    route,
    sorted_order,
    tell,
    told,
)

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.tokens import Tokens
    from protocols.channel import Channel
    from protocols.roles.role import Role


SECONDS_AN_ITEM = 1e-3
"""Seconds per item at one node, with a margin: a slow core needs a fifth of this."""


@dataclass(frozen=True, slots=True)
class Place:
    """The linking node: its name, its channel, the session, how many threads it may use."""

    me: str
    channel: Channel
    sid: bytes
    threads: int = 1


@dataclass(frozen=True, repr=False)
class Linked:
    """What one node knows of the joined rows.

    rows: their number, known to all. mine: at an owner, the rows of its own table in the order in
    which it secret-shares them. orders: by owner and evaluator, the permutations of lists that the
    node knows. positions: at evaluators, by owner, the places of the joined rows after these
    permutations. Both are empty if the holders know which rows are joined.
    """

    rows: int
    mine: Positions | None = None
    orders: dict[tuple[str, str], Positions | None] = field(default_factory=dict)
    positions: dict[str, Positions] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Linked(rows={self.rows})"


def link(job: Job, role: Role, place: Place, tokens: Tokens | None) -> Linked:
    """Find the rows that all owners have, at every computing node.

    tokens: of this node's own table, None if it owns none. Raises LinkageError at all nodes if
    there are fewer rows than the job requires; nothing has been shared then.
    """
    join = job.data.join
    if join is None:
        raise ValueError("the job joins nothing")
    linked = (
        _by_holders(job, place, tokens)
        if join.membership == "holders"
        else _by_nobody(job, role, place, tokens)
    )
    if linked.rows < least_joined(job):
        raise LinkageError(
            f"the tables of {', '.join(job.owners)} have {linked.rows or 'no'} records in common, "
            f"but the job requires {least_joined(job)} ({demanded(job)}); are the identifiers and "
            "their spelling (data.join.normalise) the right ones? Nothing was shared"
        )
    return linked


def _by_holders(job: Job, place: Place, tokens: Tokens | None) -> Linked:
    counts, bound = job.data.rows, min(job.data.rows.values())
    if tokens is None:
        return Linked(told(place.channel, job.owners, bound))
    key = agree_key(place.channel, place.me, job.owners, place.sid)
    rows = meet(place.channel, place.me, job.owners, counts, tokens, key, Exponent(place.threads))
    others = [name for name in job.nodes if name not in job.owners]
    tell(place.channel, others, len(rows))
    return Linked(len(rows), rows[sorted_order(tokens[rows])])


def _by_nobody(job: Job, role: Role, place: Place, tokens: Tokens | None) -> Linked:
    counts, bound = job.data.rows, min(job.data.rows.values())
    orders = {
        (owner, evaluator): role.permutation(counts[owner], job.evaluators.index(evaluator))
        for owner in job.owners
        for evaluator in route(owner, job.evaluators)[1:]
    }
    if role.is_dealer:
        return Linked(told(place.channel, job.evaluators, bound), orders=orders)
    own = {
        owner: order
        for (owner, evaluator), order in orders.items()
        if evaluator == place.me and order is not None
    }
    mine, lists = _shuffled(job, place, tokens, own)
    positions = dict(zip(job.owners, common(lists, job.owners), strict=True))
    rows = len(positions[job.owners[0]])
    tell(place.channel, [job.dealer], rows)
    return Linked(rows, None if tokens is None else mine, orders, positions)


def _shuffled(
    job: Job, place: Place, tokens: Tokens | None, orders: dict[str, Positions] | None
) -> tuple[Positions, list[Tokens]]:
    key = None
    if tokens is not None:
        key = agree_key(place.channel, place.me, job.owners, place.sid)
    return meet_shuffled(
        place.channel,
        place.me,
        job.evaluators,
        job.owners,
        job.data.rows,
        tokens,
        key,
        Exponent(place.threads),
        orders,
    )


def check_duplicates(job: Job, role: Role, place: Place, tokens: Tokens | None) -> int | None:
    """The number of records in several tables, which every evaluator learns.

    The dealer waits and learns nothing (None). Raises LinkageError if there are more than the job
    allows; nothing has been shared then.
    """
    check = job.data.check_duplicates
    if check is None:
        raise ValueError("the job checks nothing")
    if role.is_dealer:
        told(place.channel, job.evaluators, 0)
        return None
    _, lists = _shuffled(job, place, tokens, None)
    found = repeated(lists, job.owners)
    if found > check.most:
        raise LinkageError(
            f"{found} records are in the tables of several owners, but the job allows {check.most} "
            "(data.check_duplicates.most); agree on who provides them. Nothing was shared"
        )
    tell(place.channel, [job.dealer], 0)
    return found


def patience_s(job: Job) -> float:
    """How many seconds longer than usual a node may be silent while lists are masked."""
    return SECONDS_AN_ITEM * sum(job.data.rows.values()) * len(job.evaluators)
