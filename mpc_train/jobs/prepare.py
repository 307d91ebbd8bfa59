"""`[prepare]` of a job: how raw columns become what the model sees.

    [prepare]
    scale = "standard"
    missing = "mean"

Types and defaults; `mpc_train.jobs.pipeline` says what follows from them. Nothing here is
learnt by anybody: statistics stay secret, their values go into the sealed model.
"""

from decimal import Decimal
from typing import Literal

import msgspec

from mpc_train.jobs.train import Strict
from mpc_train.tables.spelling import compose

Scale = Literal["declared", "standard", "minmax"]
Missing = Literal["error", "mean"]
Log = Literal["log", "log1p"]
Encoding = Literal["levels", "index"]


class ColumnSteps(Strict, frozen=True):
    """`[prepare.columns.NAME]`: what is done with one column; left out: as in `[prepare]`."""

    scale: Scale | None = None
    missing: Missing | None = None
    fill: Decimal | None = None
    """A number that stands in for missing cells, in the column's own units."""
    indicator: bool | None = None
    powers: int | None = None
    clip: tuple[Decimal, Decimal] | None = None
    """Values beyond are brought to the nearer end, before anything else."""
    log: Log | None = None
    """The natural logarithm of the value, or of 1 + value; before centring and scaling."""
    encoding: Encoding | None = None
    """Of a category. levels: one input a level. index: one input, the number of the level in the
    schema's order from 0 on, "other" after the levels, and with missing = "mean" a missing cell
    after these: for an Embedding of the job's own network, and nothing else."""


class Prepare(Strict, frozen=True):
    """`[prepare]`: steps of all columns; a category becomes one input a level, unless it has an
    encoding of its own."""

    scale: Scale = "declared"
    """Of numbers and dates. standard: to mean 0 and variance 1; minmax: to 0 … 1; both by secret
    statistics of the training rows, whatever part of the declared range these fill. Where they are
    equal, or closer than 2^-46 of half that range, the input is 0, which the recipients are told.
    declared: only the job's centers and scales."""
    missing: Missing = "error"
    """Numbers, dates, booleans: "mean" puts the secret mean of the training rows. A missing
    category is in none of its levels. An owner may then lack the column as a whole, or have it
    empty; what counts as a missing cell beside others says the schema."""
    indicator: bool = False
    """One input more for each column whose schema lists missing cells: 1 where one is missing."""
    powers: int = 1
    """Of numbers and dates: the powers 1 … n of the publicly centred and scaled value, each an
    input of its own."""
    drop_first: bool = False
    """The first level of a category has no input: it is what the others are compared with."""
    interactions: tuple[tuple[str, str], ...] = ()
    """Products of two prepared inputs, by the names that `job check` prints."""
    columns: dict[str, ColumnSteps] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        compose(self, "interactions", "columns")
