"""After which steps a training can be taken up again.

A point is a step of the public schedule after which every node settles what it keeps open, so that
the state has a form that all know. Whether evaluators write a checkpoint there is decided by a
clock (`keeper`); nothing of it depends on data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import is_newton

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

USUAL_STEPS = 50
"""Steps between two points, if the job does not say. Settling costs about five rounds, of the 70
and more that a Newton step takes: there each step is a point."""


def steps_between(job: Job) -> int:
    """The steps from one point to the next."""
    return 1 if is_newton(job) else job.train.checkpoint_every or USUAL_STEPS


def is_point(job: Job, number: int) -> bool:
    """Whether a checkpoint may be written after this step (steps count from 1)."""
    return number % steps_between(job) == 0
