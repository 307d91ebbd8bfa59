"""Names and shapes of everything that is sealed to the recipients and not revealed otherwise."""

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
"""What a regression seals besides the model: the last step; for each coefficient, the intercept
last, approximately the inverse root of its information, the factor by which the others inflate its
variance, and how far they determine it; the sum of squared residuals."""


def sealed_tensors(job: Job) -> dict[str, tuple[int, ...]]:
    """All of it: the model's tensors, the parameters that turn raw columns into its inputs, and
    remarks on those. Nothing unless the model is sealed."""
    if not job.seals_model:
        return {}
    return {**job.shapes, **preparation_shapes(job.pipeline), **regression_shapes(job)}


def preparation_shapes(pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
    """The parameters that turn raw columns into the model's inputs."""
    found: dict[str, tuple[int, ...]] = {}
    if pipeline.scaled:
        found = dict.fromkeys((CENTER, MANTISSA, EXPONENT, BEYOND), (len(pipeline.scaled),))
    if pipeline.filled:
        found[FILL] = (len(pipeline.filled),)
    return found


def of_solution(job: Job, output: str) -> bool:
    """Whether `output` says how a regression's equations were solved, and nothing of errors."""
    return output in regression_shapes(job) and (output == CHANGE or not job.reveal.statistics)


def regression_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """What a regression seals besides the model's tensors. With `[privacy]` also how far the
    matrices of its steps, with their noise, could not be inverted."""
    if not is_newton(job):
        return {}
    columns = (job.widths[0] + 1,)
    found: dict[str, tuple[int, ...]] = {CHANGE: columns}
    if job.privacy:
        found[DEPENDENCE] = columns
    if job.reveal.statistics:
        found |= {SCALE: columns, INFLATION: columns, DEPENDENCE: columns}
        if job.model.kind in DISPERSED:
            found[DISPERSION] = (1,)
    return found
