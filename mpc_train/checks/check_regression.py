"""What a regression by Newton steps must satisfy, and whether its numbers fit the ring."""

from mpc_train.base.problem import JobProblem, number
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import KINDS, LOGARITHMIC
from mpc_train.jobs.schedule import is_newton, split_sizes
from mpc_train.jobs.train import Optimizer, Train
from mpc_train.regression.scales import check_weighted
from mpc_train.regression.settings import bounds_of, sizes_of
from protocols.errors import RangeError

MAX_STEPS = 100


MAX_INPUTS = 300


def check_kind(job: Job) -> None:
    """Raise JobProblem if the kind of model, the optimizer and `[reveal]` contradict each other."""
    if job.model.kind in LOGARITHMIC and not is_newton(job):
        why = f'a {job.model.kind} model is trained by name = "newton"'
        if job.model.kind == "poisson":
            why += '; one in steps of gradients is kind = "linear" with loss.name = "poisson"'
        raise JobProblem("train.optimizer.name", why)
    if job.reveal.statistics and not is_newton(job):
        raise JobProblem("reveal.statistics", 'standard errors come from name = "newton"')


def check_newton(job: Job) -> None:
    """Raise JobProblem at the first contradiction in `[train]`, `[model]` and the label."""
    train, settings = job.train, job.train.optimizer
    if job.model.kind not in KINDS or job.model.network is not None:
        raise JobProblem(
            "train.optimizer.name",
            f"newton is only for models of kind {', '.join(KINDS)} without a network of your own",
        )
    defaults = Train(Optimizer(), seed=train.seed)
    for key in train.__struct_fields__:
        bit = key == "guard" and isinstance(train.guard, bool)
        if key != "optimizer" and not bit and getattr(train, key) != getattr(defaults, key):
            raise JobProblem(f"train.{key}", "newton does not have this key; remove it")
    for key in ("learning_rate", "weight_decay"):
        if getattr(settings, key) != 0:
            raise JobProblem(
                f"train.optimizer.{key}", "newton does not have this key; remove it, or write l2"
            )
    if not 0 <= settings.steps <= MAX_STEPS:
        raise JobProblem("train.optimizer.steps", f"between 1 and {MAX_STEPS}")
    for key in ("l1", "l2"):
        if not 0 <= number(f"train.optimizer.{key}", getattr(settings, key)) <= 100:
            raise JobProblem(f"train.optimizer.{key}", "between 0 and 100")
    _check_logarithmic(job)
    if job.reveal.training_loss_every:
        raise JobProblem("reveal.training_loss_every", "newton has no batches; remove it")
    if job.widths[0] > MAX_INPUTS:
        raise JobProblem(
            "train.optimizer.name", f"at most {MAX_INPUTS} inputs, the job has {job.widths[0]}"
        )
    if job.reveal.statistics:
        if settings.l1 or settings.l2:
            raise JobProblem(
                "reveal.statistics", "penalised coefficients have no standard errors; remove it"
            )
        if split_sizes(job)[0] <= job.widths[0] + 1:
            raise JobProblem("reveal.statistics", "needs more training rows than coefficients")


def _check_logarithmic(job: Job) -> None:
    settings, label, kind = job.train.optimizer, job.label, job.model.kind
    key = "train.optimizer.log_range"
    if kind not in LOGARITHMIC:
        if settings.log_range != Optimizer().log_range:
            raise JobProblem(key, f"a {kind} model does not have this key; remove it")
        return
    least, most = (number(key, end) for end in settings.log_range)
    if not -8 <= least < most <= 8 or any(2 * end % 1 for end in (least, most)):
        raise JobProblem(key, "write [least, most], multiples of 0.5 between -8 and 8")
    if label.center != 0:
        raise JobProblem("data.label.center", f"a {kind} model uses the label unscaled; remove it")
    if kind == "poisson" and label.scale != 1:
        raise JobProblem("data.label.scale", "counts are not scaled; remove it")
    limits = job.schema[label.name].range
    if limits is None or limits[0] < 0 or (kind == "gamma" and limits[0] == 0):
        what = "counts of 0 or more" if kind == "poisson" else "numbers above 0"
        raise JobProblem("data.label.range", f"declare it: a {kind} model predicts {what}")


def check_newton_ranges(job: Job) -> None:
    """Raise JobError, with the key, if the job's numbers do not fit the ring."""
    try:
        sizes_of(job)
        if job.weight:
            check_weighted(bounds_of(job))
    except RangeError as error:
        if job.weight:
            raise JobError(
                f"data.weight: {error} (weights up to {float(job.most_weight):g} included) do not "
                "fit the ring; lower the weights' range or data.limit"
            ) from error
        hint = "data.label.range or train.optimizer.log_range"
        if job.model.kind not in LOGARITHMIC:
            hint = "fixed_point.activation_limit"
        raise JobError(f"data.limit: {error} do not fit the ring; lower it, or {hint}") from error
