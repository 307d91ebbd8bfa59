"""`[serve]` of a job: who may ask the model that stays in shares, how much, and what comes out."""

from decimal import Decimal
from typing import Literal

import msgspec

from mpc_train.jobs.train import Strict

Answer = Literal["number", "probability", "class"]


class Drift(Strict, frozen=True):
    """Whether the rows that are asked are still like the training rows: how many rows fall into
    each bin of a column (`bins` in the schema) and of the outputs is counted over shares, and
    leaves with noise: of the training rows once, after training, and then after so many rows that
    are asked."""

    every_rows: int
    """Rows of a window, at least 100, with those that only pad questions. Counts leave once for
    each, if `reveal.least_group` of its rows were real."""
    epsilon: Decimal
    """Counts of a window, and those of the training rows, are ε-differentially private for one row,
    even against all evaluators except one together. No row is in two windows."""
    to: tuple[str, ...]
    """The evaluators that keep a record of it and show it as metrics. All of them see the counts
    with their noise."""
    baseline: Literal["first-window"] | msgspec.UnsetType = msgspec.UNSET
    """With what windows are compared. Unset: with the training rows, if the job trains.
    "first-window": with the first window of enough rows; nothing of the training rows is
    counted."""


class Serve(Strict, frozen=True):
    """`[serve]`: what the owners allow with their model once it is trained. Everybody signs it with
    the job, and evaluators compute nothing else with their shares."""

    clients: tuple[str, ...] = ()
    """Who may ask. Clients need a card, but no node of the run."""
    rows_a_day: int = 1000
    """How many rows each client may ask on one day (UTC), over all its requests."""
    answer: Answer = "number"
    """number: the network's output, from which a client computes probabilities itself. probability:
    the probability of each class, computed over shares. class: only which class is likeliest."""
    decimals: int | None = None
    """number, probability: rounded to this many decimals over shares, before anybody sees them."""
    validators: tuple[str, ...] = ()
    """Who may measure the model on rows of its own (`mpc-train evaluate`)."""
    train_on: bool = False
    """Whether a later job of the same evaluators and dealer may train on from the model. What comes
    of that stays in shares as well, and its job may allow no more than this one under `[serve]`."""
    drift: Drift | msgspec.UnsetType = msgspec.UNSET
    """Whether drift is watched. Unset instead of null in a job's bytes, so that jobs without it
    keep the digests that owners have agreed to."""

    @property
    def watched(self) -> Drift | None:
        """`drift`, if there is any."""
        return None if self.drift is msgspec.UNSET else self.drift


def decimals_words(decimals: int) -> str:
    """For people: "1 decimal", "2 decimals"."""
    return f"{decimals} decimal" + ("" if decimals == 1 else "s")
