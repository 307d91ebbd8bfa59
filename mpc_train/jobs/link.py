"""`[data] join` and `check_duplicates` of a job: which records are the same, and who learns it.

    partition = "columns"
    columns = { bank = ["income", "default"], insurer = ["claims"] }
    join.on = ["name", "born"]
    join.normalise = { name = ["case", "accents", "spaces"], born = ["date"] }
    join.membership = "nobody"
    join.least_rows = 500

An identifier is a column that all owners have; it is never a feature and never shared. What it
takes for two spellings to be the same is said by `mpc_train.tables.normalise`, what each node
learns by `learnt`.
"""

from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from mpc_train.jobs.train import Strict
from mpc_train.tables.normalise import Rule
from mpc_train.tables.spelling import compose

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Membership = Literal["holders", "nobody"]


class Join(Strict, frozen=True):
    """`[data] join`: rows of all owners whose identifiers are the same become one row."""

    on: tuple[str, ...]
    """Columns that identify a record, together; each owner has each record once."""
    membership: Membership
    """Who learns which records all owners have: they themselves (fast), or nobody."""
    least_rows: int
    """With fewer records in common nothing is shared and the run ends."""
    least_share: Decimal | None = None
    """The same as a share of the shortest table's rows, above 0 and at most 1: 0.9 ends a run in
    which more than a tenth of them found no partner."""
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    """By column of `on`; a column that is not listed is compared as it stands."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")


class Duplicates(Strict, frozen=True):
    """`[data] check_duplicates`, where owners hold rows of the same columns: nobody learns which
    records two of them have, every evaluator learns how many."""

    on: tuple[str, ...]
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    most: int = 0
    """With more records in several tables nothing is shared and the run ends."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")


def link_of(job: "Job") -> Join | Duplicates | None:
    """What the job says of identifiers; None: it uses none."""
    return job.data.join or job.data.check_duplicates


def disclosed(job: "Job") -> list[tuple[tuple[str, ...], str]]:
    """Who learns what from linkage; the coordinator is told nothing, and counts steps."""
    join, several = job.data.join, len(job.owners) > 2
    found: list[tuple[tuple[str, ...], str]] = []
    choices = (job.evaluators, "how many records each choice of owners has in common")
    if job.data.check_duplicates is not None:
        found.append((job.evaluators, "how many records stand in more than one table"))
        return [*found, choices] if several else found
    if join is None:
        return found
    found.append((job.names, "how many records all owners have in common"))
    found.append((job.owners, "how many of its own records found no partner"))
    if join.membership == "nobody":
        return [*found, choices] if several else found
    found.append((job.owners, "which of its own records all owners have"))
    if several:
        found.append(
            (
                job.owners,
                "which of its own records each other owner has, and how many records others have "
                "in common",
            )
        )
    return found


def learnt(job: "Job") -> list[str]:
    """What linkage tells whom, in words; empty where the job links nothing."""
    if link_of(job) is None:
        return []
    found = []
    for names, what in disclosed(job):
        whom = "everybody, the coordinator too" if names == job.names else ", ".join(names)
        found.append(f"to {whom}: {what}")
    if job.data.join is None:
        found.append("to everybody: whether these are too many")
    else:
        found.append("which everybody can reckon: an owner's rows less those in common")
    if job.data.join is None or job.data.join.membership == "nobody":
        found.append("to nobody: which records these are")
    return found
