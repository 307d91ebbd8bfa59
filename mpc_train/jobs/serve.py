"""`[serve]` of a job: who may ask the model that stays in shares, how much, and what comes out."""

from typing import Literal

from mpc_train.jobs.train import Strict

Answer = Literal["number", "probability", "class"]


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
