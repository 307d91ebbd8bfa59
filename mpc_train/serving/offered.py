"""What a client has of a service: the models that it offers, and a way to ask them.

`Service` is all that tables (`mpc-train query`) and the gateway know of it; the connection is in
`client`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.local import Local
    from protocols.arrays import Reals

REFUSALS = {
    "unknown-model": "no model of this name is served, or it was retired",
    "not-allowed": "the model's owners have not allowed this client to ask it",
    "quota": "the question counts as more rows than are left of those that the model's owners "
    "allow this client on one day, until 00:00 UTC",
    "busy": "more questions of this client wait than the service keeps; ask again",
    "unavailable": "the service does not answer now: a node is away or starts again; ask again",
    "malformed": "the question does not fit the model, or the two sides run different releases",
}
"""The words with which a service refuses a question (`QueryRefusedError.code`), and what they
mean."""

CONNECT_S = 60.0
"""How long a client waits for a service, at first and whenever it is lost."""
NAME_BYTES = 16
"""Of a question's random name."""
MOST_ROWS = 128
"""Rows of one question; a table is asked in several."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that is served. version: of its name, at this service. job: of its training, with
    `[serve]`. digest: as `share.model_digest`."""

    version: int
    job: Job
    digest: str

    @property
    def name(self) -> str:
        return self.job.name


class Service(Protocol):
    """A connection of one client to the evaluators of a service."""

    @property
    def models(self) -> Mapping[str, tuple[Offered, ...]]:
        """What is served, by name; the newest version last."""

    def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
        """The answers for at most MOST_ROWS rows, float64[rows, answers], once they are there.

        answers: for `[serve] answer = "number"` the network's outputs (a number; one logit; one
        logit a class), for "probability" that of the class 1 of two, or one a class, for "class"
        one column, the class's number. name: 16 random bytes, the same if this very
        question is asked again after a QueryLostError, so that it counts once. May be called by
        several threads. Raises QueryRefusedError with a word of REFUSALS, QueryError and
        PartiesError.
        """

    def left(self, model: Offered) -> int:
        """How many rows this client may still ask today, as the first evaluator counts. Nothing is
        counted for it. Raises as `ask`."""
