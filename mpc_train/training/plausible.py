"""Numbers that cannot be: a loss or a metric beyond what its job allows is none that was found.

Then values have left the ring's range (a training that diverged, a label far outside what the job
states), and nothing that was computed with them is worth anything.
"""

from math import exp

from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.jobs.schedule import is_newton
from mpc_train.jobs.training import loss_name
from mpc_train.training.limits import most_output
from protocols.errors import RangeError

SLACK = 2**-8
"""So far beyond its range rounding may leave a metric: a logarithm is good to 2^-12, a quotient to
2^-16 of itself, a mean to some units of the job's scale."""
OUT_OF_RANGE = "not available: out of range"


def out_of_range(names: list[str]) -> RangeError:
    """The error that ends a run in which these metrics, or losses, cannot be."""
    return RangeError(
        f"{', '.join(names)}: {OUT_OF_RANGE}; values have left the range of the ring, as in a "
        "training that diverges: lower the learning rate, scale features and label, clip "
        "gradients, or raise fixed_point.activation_limit or gradient_limit to what occurs"
    )


def most_prediction(job: Job) -> float:
    if is_newton(job) and job.model.kind in LOGARITHMIC:
        return exp(float(job.train.optimizer.log_range[1]))
    return float(most_output(job))


def most_label(job: Job) -> float:
    """Of a linear model as large as an output."""
    declared = job.schema[job.label.name].range
    if job.model.kind in LOGARITHMIC and declared is not None:
        return float(declared[1]) / float(job.label.scale)
    return float(most_output(job))


def checked_loss(job: Job, step: int, loss: float) -> float:
    """The loss of a batch, unless it cannot be: raises RangeError where it is below its least."""
    least = 0.0
    if loss_name(job) == "poisson":  # exp(z) − y·z
        least = -most_label(job) * most_prediction(job)
    if not loss >= least - SLACK:
        raise out_of_range([f"the loss of step {step}"])
    return loss
