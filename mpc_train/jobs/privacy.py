"""`[privacy]` of a job: one budget of differential privacy for everything that the job reveals.

    [privacy]
    epsilon = 3
    delta = 0.00001
    neighbours = "zeroed"
    clip = 1
    unit = "patient"
    most_rows = 8
    statistics = { share = 0.1, least_deviation = 0.03125 }

Types and defaults. `mpc_train.privacy.accounting` computes how much noise the budget demands and
what each output costs, `mpc_train.checks.check_privacy` what may be combined with it.

Numbers of rows are public in a job, so both data sets of a pair of neighbours have the same rows in
the same places: only the contents of the rows of one unit differ.

In a federated job a unit is an owner: only the norm of its whole update is bounded, and what one
row changes in it is not.
"""

from decimal import Decimal
from typing import Annotated, Literal

import msgspec

from mpc_train.jobs.train import Strict
from mpc_train.tables.spelling import compose

Neighbours = Literal["zeroed", "replaced"]
Identifiers = Literal["unprotected"]
ROW = "row"
"""The unit that is one row."""
SITE = "owner"
"""In a federated job, the unit that is an owner with all its rows."""


class Statistics(Strict, frozen=True):
    """`[privacy.statistics]`: the noise of means and deviations that `[prepare]` finds over
    shares."""

    share: Decimal = Decimal("0.1")
    """The part of the budget that they cost: of the sum of squared sensitivities over the variance
    of their noise, in which Gaussian mechanisms add up. Training gets the rest."""
    least_deviation: Decimal = Decimal("0.03125")
    """No deviation counts as smaller, in halves of the declared range: a variance with noise may be
    too small, or below 0. It bounds how large scaled inputs are."""


class Privacy(Strict, frozen=True):
    """`[privacy]`: a run of the job is (ε, δ)-differentially private for each unit, against all
    whom the job promises it (`mpc_train.privacy.words`)."""

    epsilon: Annotated[Decimal, msgspec.Meta(examples=["3"])]
    """One unit changes the probability of any conclusion by a factor of at most e^ε, and δ."""
    small_delta: Annotated[Decimal, msgspec.Meta(examples=["0.00001"])] = msgspec.field(
        name="delta"
    )
    """What is added to that probability: far below 1 divided by the number of rows."""
    neighbours: Neighbours
    """zeroed: all rows of a unit contribute nothing, against what they contain. replaced: they
    contain anything else; a unit changes a sum by up to twice its norm, so that the same ε takes
    twice the noise."""
    clip: Decimal | None = None
    """The largest norm of what one unit adds to the sum of gradients of an epoch: each of its rows
    is clipped to `clip / most_rows`. In the units of the loss, for a row and not for a mean over a
    batch. With `data.weight`, times the largest weight of its declared range, which takes as many
    times the noise. With Newton steps: the largest norm of all inputs of one unit's rows together,
    each with the 1 of its intercept. Needed by a job that trains; one that federates has
    `train.federated.clip` instead."""
    unit: str = ROW
    """Whom the guarantee is for: "row", or the identifier of `data.split_by` (a patient with all
    rows that one owner has of them). In a federated job: "owner"."""
    most_rows: int | None = None
    """With an identifier: the most rows of one unit; an owner with more of one is refused."""
    bands: int = 1
    """So many steps' noise depends on one another, so that less of it adds up over a training; rows
    are then in the same order in every epoch. 1: the noise of each step is independent."""
    clip_label: Decimal | None = None
    """With Newton steps of a linear or Poisson regression: owners move labels that are larger in
    magnitude to this; in the units of the centred and scaled label."""

    identifiers: Identifiers | msgspec.UnsetType = msgspec.UNSET
    """For owners whose records are linked: "unprotected" means that which table has which
    identifier is the same in both data sets that are compared. The promise is then about all other
    cells, and what a join tells costs nothing. If omitted, joins are refused."""
    statistics: Statistics | msgspec.UnsetType = msgspec.UNSET
    """For secret statistics of `[prepare]`; if omitted, its defaults."""

    def __post_init__(self) -> None:
        compose(self, "unit")

    @property
    def of_statistics(self) -> Statistics:
        """`statistics`, or its defaults."""
        return self.statistics or Statistics()

    @property
    def rows_of_unit(self) -> int:
        """The most rows that one unit has."""
        return 1 if self.most_rows is None else self.most_rows
