"""How many of an owner's records found no partner, and a warning if suspiciously few did.

A record found a partner if all other owners have it too. Every node and recipient learns the number
of records that all have, and the job states each owner's rows: the numbers here are differences of
the two, and reveal nothing more. A different spelling at one owner loses records without any error.
So the readers of a result are warned if less than `USUAL_SHARE` of an owner's table went into it,
and a job can require more (`data.join.least_share`).
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

USUAL_SHARE = Fraction(1, 2)


def least_joined(job: Job) -> int:
    """The fewest common records with which a job that joins continues, by `least_rows` and
    `least_share`."""
    join = job.data.join
    if join is None:
        raise ValueError("the job joins nothing")
    share = Fraction(join.least_share or 0)
    return max(join.least_rows, ceil(share * _shortest(job)))


def demanded(job: Job) -> str:
    """A text with the keys that require this number; all numbers in it are public."""
    join = job.data.join
    assert join is not None
    if least_joined(job) == join.least_rows:
        return "data.join.least_rows"
    shortest = _shortest(job)
    return f"data.join.least_share: {join.least_share} of the {shortest} of the shortest table"


def without_partner(job: Job, joined: int) -> dict[str, int]:
    """For each owner, how many of its records are not among the `joined` ones."""
    return {owner: job.data.rows[owner] - joined for owner in job.owners}


def linkage_warnings(job: Job, joined: int, owner: str) -> list[str]:
    """Warnings for owners of whose records fewer than usual found a partner."""
    rows = job.data.rows[owner]
    if joined >= USUAL_SHARE * rows:
        return []
    return [
        f"only {joined} of {owner}'s {rows} records found a partner; unless so few are expected, "
        "the identifiers or their spelling (data.join.normalise) are not the same at all owners; "
        "data.join.least_share ends such a run"
    ]


def all_linkage_warnings(job: Job, joined: int) -> list[str]:
    """The same for all owners, for the readers of the result."""
    return [warning for owner in job.owners for warning in linkage_warnings(job, joined, owner)]


def _shortest(job: Job) -> int:
    return min(job.data.rows[owner] for owner in job.owners)
