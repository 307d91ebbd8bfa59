"""What `[reveal]` must satisfy beyond the types of its fields."""

from decimal import Decimal

from mpc_train.base.problem import JobProblem, Problems, no_duplicates, number
from mpc_train.errors import JobError
from mpc_train.jobs.audience import NOT_AVERAGED
from mpc_train.jobs.job import Job
from mpc_train.jobs.reveal import METRICS, SENSITIVITY, Metric
from mpc_train.jobs.schedule import fold_jobs, held_out_sizes, is_newton, split_sizes

MAX_DECIMALS = 4
MAX_BINS = 50
MAX_FOLDS = 20


def check_reveal(job: Job) -> None:
    """Raise JobProblem at the first contradiction in `[reveal]`, beyond `check_bounds`."""
    reveal = job.reveal
    _check_metrics(job)
    if not job.seals_model and is_newton(job):
        raise JobProblem(
            "reveal.model",
            "a regression by newton seals to its recipients whether it has converged, and a model "
            "in shares has none; use another optimizer, or seal the model",
        )
    if job.stays_shared and job.data.partition == "columns" and job.pipeline.scaled:
        raise JobProblem(
            "reveal.model",
            "the secret scales of joined records are in units of their owners' own, and fit no "
            "other rows: such a model in shares could not be used; declare center and scale "
            '(prepare.scale = "declared"), or seal the model',
        )
    if job.refreshes and job.trains:
        raise JobProblem("reveal.model", '"refreshed" is for a job that trains nothing')
    if reveal.model == "none" and (job.trains or not (reveal.metrics or reveal.per_party)):
        raise JobProblem(
            "reveal.model",
            '"none" is for a job that trains nothing and measures the model of its warm start; '
            + ("seal the model, or keep it in shares" if job.trains else "list metrics"),
        )
    if reveal.folds:
        _check_folds(job)
    if reveal.noise is not None:
        _check_noise(job)
    every = reveal.training_loss_every
    if every and job.train.batch_size < reveal.least_test_rows:
        raise JobProblem(
            "reveal.training_loss_every",
            f"a loss over {job.train.batch_size} rows is not revealed: reveal.least_test_rows = "
            f"{reveal.least_test_rows}; use larger batches",
        )


def check_bounds(job: Job) -> None:
    """Raise JobProblem with the numbers of `[reveal]` that are out of bounds, regardless of the
    rest of the job."""
    reveal, found = job.reveal, Problems()
    decimals = reveal.decimals is None or 0 <= reveal.decimals <= MAX_DECIMALS
    recipients = len(job.recipients)
    for key, is_sound, what in (
        (
            "reveal.threshold",
            1 <= reveal.threshold <= max(1, recipients),
            f"between 2 and {recipients}, the number of recipients, or 1 if each may open alone",
        ),
        (
            "reveal.least_test_rows",
            reveal.least_test_rows >= 2,
            "at least 2: a metric of one row reveals the row",
        ),
        ("reveal.least_group", 1 <= reveal.least_group <= 1_000_000, "between 1 and 1000000 rows"),
        ("reveal.decimals", decimals, f"between 0 and {MAX_DECIMALS}"),
        ("reveal.bins", 2 <= reveal.bins <= MAX_BINS, f"between 2 and {MAX_BINS}"),
        ("reveal.training_loss_every", reveal.training_loss_every >= 0, "at least 0; 0: none"),
        ("data.fold", not job.data.fold, "is filled in during a run; remove it"),
    ):
        with found.noting():
            if not is_sound:
                raise JobProblem(key, what)
    found.check()


def _check_metrics(job: Job) -> None:
    reveal, possible = job.reveal, METRICS[job.model.kind]
    no_duplicates("reveal.metrics_to", reveal.metrics_to)
    if reveal.metrics_to and not (reveal.metrics or reveal.per_party):
        raise JobProblem("reveal.metrics_to", "there is no metric to read; list metrics")
    for key in ("metrics", "per_party"):
        listed = getattr(reveal, key)
        no_duplicates(f"reveal.{key}", listed)
        for metric in listed:
            if metric not in possible:
                raise JobProblem(
                    f"reveal.{key}",
                    f"{metric!r} does not suit the model kind {job.model.kind!r}; possible: "
                    f"{', '.join(possible)}",
                )
    _, test_rows = split_sizes(job)
    if reveal.metrics and test_rows < reveal.least_test_rows:
        raise JobProblem(
            "reveal.metrics",
            f"a metric needs {reveal.least_test_rows} test rows (reveal.least_test_rows), but "
            f"there are {test_rows}; raise data.test_fraction or reveal no metric",
        )
    _check_groups(job, "reveal.metrics", reveal.metrics, test_rows)
    if reveal.per_party and job.data.partition == "columns":
        raise JobProblem(
            "reveal.per_party", "owners of columns have no rows of their own; list metrics"
        )


def check_own_rows(job: Job) -> None:
    """Raise JobError if an owner holds out too few of its own rows for a metric over them.

    Examines every row, so it comes after this node's rules.
    """
    if not job.reveal.per_party:
        return
    least = job.reveal.least_test_rows
    for owner, rows in held_out_sizes(job).items():
        if rows < least:
            raise JobError(
                f"reveal.per_party: {owner} has fewer than {least} test rows "
                "(reveal.least_test_rows)"
            )
        try:
            _check_groups(job, "reveal.per_party", job.reveal.per_party, rows, f" of {owner}")
        except JobProblem as problem:
            raise JobError(f"{problem.key}: {problem}") from problem


def _check_groups(
    job: Job, key: str, metrics: tuple[Metric, ...], rows: int, whose: str = ""
) -> None:
    """Refuse a metric that would be refused or undefined for any held-out rows."""
    least = job.reveal.least_group
    for metric in metrics:
        needed = _fewest_groups(job, metric) * least
        if rows < needed:
            raise JobProblem(
                key,
                f"{metric} cannot be revealed over {rows} held-out rows{whose}: its groups have "
                f"at least {least} rows (reveal.least_group), {needed} in all; hold out more, "
                f"lower reveal.least_group, or remove {metric}",
            )


def _fewest_groups(job: Job, metric: str) -> int:
    """The least number of groups with rows if a metric is available."""
    if metric in ("precision", "recall"):
        return 1 if job.outputs == 1 else job.classes
    if metric == "f1":
        # A class without rows may be predicted, and a class with rows may not.
        return 1 if job.outputs == 1 else (job.classes + 1) // 2
    return {"auc": 2, "confusion": 1, "calibration": 1}.get(metric, 0)


def _check_folds(job: Job) -> None:
    reveal, key = job.reveal, "reveal.folds"
    if not 2 <= reveal.folds <= MAX_FOLDS:
        raise JobProblem(key, f"between 2 and {MAX_FOLDS}")
    if not reveal.metrics:
        raise JobProblem(key, "there is no metric to average")
    for what, there in (
        ("train.early_stopping", job.train.early_stopping),
        ("train.guard.every", job.train.guard_every),
        ("train.warm_start", job.train.warm_start),
        ("reveal.training_loss_every", reveal.training_loss_every),
        ("data.split_by", job.data.split_by),
    ):
        if there:
            raise JobProblem(key, f"folds cannot be combined with {what}")
    for fold in fold_jobs(job):
        training, held_out = split_sizes(fold)
        if held_out < reveal.least_test_rows:
            raise JobProblem(key, f"a fold has fewer than {reveal.least_test_rows} rows")
        _check_groups(job, key, _averaged(job), held_out, " of a fold")
        if not is_newton(job) and training < job.train.batch_size:
            raise JobProblem(
                key, f"without a fold only {training} rows are left, less than a batch"
            )


def _averaged(job: Job) -> tuple[Metric, ...]:
    return tuple(name for name in job.reveal.metrics if name not in NOT_AVERAGED)


def _check_noise(job: Job) -> None:
    reveal, key = job.reveal, "reveal.noise"
    if reveal.noise is None:
        return
    if not Decimal("0.01") <= number(f"{key}.epsilon", reveal.noise.epsilon) <= 100:
        raise JobProblem(f"{key}.epsilon", "between 0.01 and 100")
    others = [name for name in reveal.metrics if name not in SENSITIVITY]
    if others or reveal.folds:
        raise JobProblem(
            key,
            f"is only for {' and '.join(SENSITIVITY)}, whose counts one row changes by a known "
            f"number; remove {', '.join(others) or 'reveal.folds'}",
        )
