"""`[data] join` and `check_duplicates` of a job: which records are the same, and who learns it.

    partition = "columns"
    columns = { bank = ["income", "default"], insurer = ["claims"] }
    join.on = ["name", "born"]
    join.normalise = { name = ["case", "accents", "spaces"], born = ["date"] }
    join.membership = "nobody"
    join.least_rows = 500

An identifier is a column that all owners have; it is never a feature and never shared.
`mpc_train.tables.normalise` defines when two spellings are the same, `audience.linkage_disclosures`
what each node learns.
"""

from decimal import Decimal
from typing import Literal

import msgspec

from mpc_train.jobs.train import Strict
from mpc_train.tables.normalise import Rule
from mpc_train.tables.spelling import compose

Membership = Literal["holders", "nobody"]


class Join(Strict, frozen=True):
    """`[data] join`: rows of all owners with the same identifiers become one row."""

    on: tuple[str, ...]
    """Columns that together identify a record; each owner has each record once."""
    membership: Membership
    """Who learns which records all owners have: the owners (fast), or nobody."""
    least_rows: int
    """With fewer records in common nothing is shared and the run ends."""
    least_share: Decimal | None = None
    """The same as a share of the shortest table's rows, above 0 and at most 1: with 0.9 a run ends
    if more than a tenth of them found no partner."""
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    """Rules by column of `on`; a column that is not listed is compared unchanged."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")


class Duplicates(Strict, frozen=True):
    """`[data] check_duplicates`, for owners of rows with the same columns: every evaluator learns
    how many records two of them have, and nobody learns which."""

    on: tuple[str, ...]
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    most: int = 0
    """With more records in several tables nothing is shared and the run ends."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")
