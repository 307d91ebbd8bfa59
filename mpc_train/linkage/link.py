"""Linkage in a run: from each owner's tokens to which rows are joined, in which order.

1. The owners, who all evaluate, make a key together; every list is masked by all of them
   (`protocols.linkage.intersection`).
2. Membership learnt by the holders: each finds its rows that all have, and puts them into the order
   of their tokens, which is the same at all. Learnt by nobody: each list is permuted by every
   evaluator on its way, with an order that the dealer knows as well, so that rows can follow over
   shares (`linkage.sharing`).
3. Everybody else is told how many rows there are, which the rest of the run depends on.

The dealer sees no list and no position; it learns the number of joined rows alone.
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
"""For one item at one node, generously: a slow core needs a fifth of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which node links: its name, its channel, the session, how many threads may work."""

    me: str
    channel: Channel
    sid: bytes
    threads: int = 1


@dataclass(frozen=True, repr=False)
class Linked:
    """What one node knows of the joined rows.

    rows: how many, known to all. mine: at an owner the rows of its own table in the order in which
    it shares them in. orders: by owner and evaluator, where the node knows them, how lists were
    permuted. positions: by owner, at evaluators, where the joined rows stand at the end of that;
    both are empty where the holders know which rows they are.
    """

    rows: int
    mine: Positions | None = None
    orders: dict[tuple[str, str], Positions | None] = field(default_factory=dict)
    positions: dict[str, Positions] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Linked(rows={self.rows})"


def link(job: Job, role: Role, place: Place, tokens: Tokens | None) -> Linked:
    """Find the rows that all owners have, at every computing node.

    tokens: of this node's own table, None where it owns none. Raises LinkageError at all nodes
    where there are fewer than the job asks for; nothing has been shared then.
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
            f"the job asks for {least_joined(job)} ({demanded(job)}); are the identifiers and "
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
    """At every evaluator: how many records stand in several tables, which it learns.

    The dealer waits for it and learns nothing (None). Raises LinkageError where these are more
    than the job allows; nothing has been shared then.
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
            f"{found} records stand in the tables of several owners, the job allows {check.most} "
            "(data.check_duplicates.most); agree who brings them. Nothing was shared"
        )
    tell(place.channel, [job.dealer], 0)
    return found


def patience_s(job: Job) -> float:
    """How much longer than usual a node may be silent while lists are masked, in seconds."""
    return SECONDS_AN_ITEM * sum(job.data.rows.values()) * len(job.evaluators)
