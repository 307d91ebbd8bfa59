"""Detects impossible numbers: a loss or a metric that its job cannot have is not a result.

Values have then left the ring's range (a diverging training, a label far outside the stated range),
and everything computed with them is wrong.
"""

from math import exp

from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.jobs.schedule import is_newton
from mpc_train.jobs.training import loss_name
from mpc_train.training.limits import most_output
from protocols.errors import RangeError

SLACK = 2**-8
"""How far rounding may move a metric outside its range: a logarithm has an error of 2^-12, a
quotient a relative error of 2^-16, a mean an error of some units of the job's scale."""
OUT_OF_RANGE = "not available: out of range"


def out_of_range(names: list[str]) -> RangeError:
    """The error that ends a run with these impossible metrics or losses."""
    return RangeError(
        f"{', '.join(names)}: {OUT_OF_RANGE}; values have left the range of the ring, as in a "
        "training that diverges: lower the learning rate, scale features and label, clip "
        "gradients, or raise fixed_point.activation_limit or gradient_limit to the actual values"
    )


def most_prediction(job: Job) -> float:
    if is_newton(job) and job.model.kind in LOGARITHMIC:
        return exp(float(job.train.optimizer.log_range[1]))
    return float(most_output(job))


def most_label(job: Job) -> float:
    """For a linear model, the bound of an output."""
    declared = job.schema[job.label.name].range
    if job.model.kind in LOGARITHMIC and declared is not None:
        return float(declared[1]) / float(job.label.scale)
    return float(most_output(job))


def checked_loss(job: Job, step: int, loss: float) -> float:
    """The loss of a batch; raises RangeError if it is below the smallest possible loss."""
    least = 0.0
    if loss_name(job) == "poisson":  # exp(z) − y·z
        least = -most_label(job) * most_prediction(job)
    if not loss >= least - SLACK:
        raise out_of_range([f"the loss of step {step}"])
    return loss
