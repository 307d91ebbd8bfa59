"""Names and shapes of all that is sealed to the recipients, and revealed in no other way."""

from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import DISPERSED
from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.schedule import is_newton

CENTER, INVERSE, FILL = "prepare.center", "prepare.inverse", "prepare.fill"
MANTISSA, EXPONENT, BEYOND = "prepare.mantissa", "prepare.exponent", "prepare.beyond"
CHANGE, SCALE, INFLATION, DEPENDENCE, DISPERSION = (
    "regression.change",
    "regression.scale",
    "regression.inflation",
    "regression.dependence",
    "regression.dispersion",
)
"""What a regression seals beside the model: the last step; of each coefficient, the intercept last,
about the inverse root of its information, by how much the others inflate its variance, and how far
they determine it; the sum of squared residuals."""


def sealed_tensors(job: Job) -> dict[str, tuple[int, ...]]:
    """All of it: the model's tensors, what turns raw columns into its inputs, and what is said of
    them."""
    return {**job.shapes, **preparation_shapes(job.pipeline), **regression_shapes(job)}


def preparation_shapes(pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
    """What turns raw columns into the model's inputs."""
    found: dict[str, tuple[int, ...]] = {}
    if pipeline.scaled:
        found = dict.fromkeys((CENTER, MANTISSA, EXPONENT, BEYOND), (len(pipeline.scaled),))
    if pipeline.filled:
        found[FILL] = (len(pipeline.filled),)
    return found


def regression_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """What a regression seals beside the model's tensors."""
    if not is_newton(job):
        return {}
    columns = (job.widths[0] + 1,)
    found: dict[str, tuple[int, ...]] = {CHANGE: columns}
    if job.reveal.statistics:
        found |= {SCALE: columns, INFLATION: columns, DEPENDENCE: columns}
        if job.model.kind in DISPERSED:
            found[DISPERSION] = (1,)
    return found
