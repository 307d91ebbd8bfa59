"""`[prepare]` of a job: how raw columns become what the model sees.

    [prepare]
    scale = "standard"
    missing = "mean"

Types and defaults; `mpc_train.jobs.pipeline` derives the inputs from them. Nobody learns the
statistics during the run; their values go into the sealed model.
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
    """`[prepare.columns.NAME]`: the steps for one column; omitted keys are as in `[prepare]`."""

    scale: Scale | None = None
    missing: Missing | None = None
    fill: Decimal | None = None
    """A number that replaces missing cells, in the column's own units."""
    indicator: bool | None = None
    powers: int | None = None
    clip: tuple[Decimal, Decimal] | None = None
    """Values outside are moved to the nearer end, before any other step."""
    log: Log | None = None
    """The natural logarithm of the value, or of 1 + value; before centring and scaling."""
    encoding: Encoding | None = None
    """For a category. levels: one input per level. index: one input, the number of the level in the
    schema's order from 0 on, "other" after the levels, and with missing = "mean" a missing cell
    after these: only for an Embedding of the job's own network."""


class Prepare(Strict, frozen=True):
    """`[prepare]`: steps for all columns; a category becomes one input per level, unless it has its
    own encoding."""

    scale: Scale = "declared"
    """For numbers and dates. standard: to mean 0 and variance 1; minmax: to 0 … 1; both by secret
    statistics of the training rows, however small a part of the declared range these fill. If they
    are equal, or closer than 2^-46 of half that range, the input is 0, and the recipients are told.
    declared: only the job's centers and scales. With `[privacy]`, standard is from noisy sums."""
    missing: Missing = "error"
    """For numbers, dates and booleans: "mean" inserts the secret mean of the training rows. A
    missing category is in none of its levels. An owner may then lack the whole column, or have it
    empty; otherwise the schema says which cells count as missing."""
    indicator: bool = False
    """An additional input for each column whose schema lists missing cells: 1 where the cell is
    missing."""
    powers: int = 1
    """For numbers and dates: the powers 1 … n of the publicly centred and scaled value, each as a
    separate input."""
    drop_first: bool = False
    """The first level of a category has no input: the others are compared with it."""
    interactions: tuple[tuple[str, str], ...] = ()
    """Products of two prepared inputs, by the names that `job check` prints."""
    columns: dict[str, ColumnSteps] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        compose(self, "interactions", "columns")
