"""What `[reveal]` must satisfy beyond the types of its fields."""

from typing import TYPE_CHECKING

from mpc_train.jobs.job_problem import JobProblem, no_duplicates
from mpc_train.jobs.job_reveal import METRICS
from mpc_train.jobs.schedule import held_out_of, split_sizes

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MOST_DECIMALS = 4
MOST_BINS = 50


def check_reveal(job: "Job") -> None:
    """Raise JobProblem at the first contradiction in `[reveal]`."""
    reveal = job.reveal
    _check_metrics(job)
    if reveal.least_test_rows < 2:
        raise JobProblem("reveal.least_test_rows", "at least 2: a metric of one row is the row")
    if not 1 <= reveal.least_group <= 1_000_000:
        raise JobProblem("reveal.least_group", "between 1 and 1000000 rows")
    if reveal.decimals is not None and not 0 <= reveal.decimals <= MOST_DECIMALS:
        raise JobProblem("reveal.decimals", f"between 0 and {MOST_DECIMALS}")
    if not 2 <= reveal.bins <= MOST_BINS:
        raise JobProblem("reveal.bins", f"between 2 and {MOST_BINS}")
    every = reveal.training_loss_every
    if every < 0:
        raise JobProblem("reveal.training_loss_every", "at least 0; 0 reveals none")
    if every and job.train.batch_size < reveal.least_test_rows:
        raise JobProblem(
            "reveal.training_loss_every",
            f"a loss over {job.train.batch_size} rows is not revealed: reveal.least_test_rows = "
            f"{reveal.least_test_rows}; use larger batches",
        )


def _check_metrics(job: "Job") -> None:
    reveal, possible = job.reveal, METRICS[job.model.kind]
    for key in ("metrics", "per_party"):
        listed = getattr(reveal, key)
        no_duplicates(f"reveal.{key}", listed)
        for metric in listed:
            if metric not in possible:
                raise JobProblem(
                    f"reveal.{key}",
                    f"{metric!r} does not suit a {job.model.kind} model; possible: "
                    f"{', '.join(possible)}",
                )
    _, test_rows = split_sizes(job)
    if reveal.metrics and test_rows < reveal.least_test_rows:
        raise JobProblem(
            "reveal.metrics",
            f"a metric needs {reveal.least_test_rows} test rows (reveal.least_test_rows) and "
            f"there are {test_rows}; raise data.test_fraction or reveal no metric",
        )
    if reveal.per_party:
        if job.data.partition == "columns":
            raise JobProblem(
                "reveal.per_party",
                "owners of columns have no rows of their own; list metrics",
            )
        for owner in job.owners:
            if len(held_out_of(job, owner)) < reveal.least_test_rows:
                raise JobProblem(
                    "reveal.per_party",
                    f"{owner} has fewer than {reveal.least_test_rows} test rows "
                    "(reveal.least_test_rows)",
                )
