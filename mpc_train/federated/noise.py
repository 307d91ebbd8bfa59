"""Where noise is added to the sum of a round, over shares, before it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpc_train.federated.limits import Limits
    from mpc_train.jobs.job import Job
    from protocols.shares.masked import Masked


def noised(job: Job, limits: Limits, total: Masked, counted: int) -> Masked:
    """The sum of a round, with the noise that the job asks for. No job of this release asks for
    any.

    total: int64[size] at the limits' scale, Σ rows · update over `counted` owners, each update of
    norm at most `limits.clip`.
    """
    return total
