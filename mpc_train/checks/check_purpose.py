"""What `[purpose]` must satisfy beyond the types of its fields: names of one form, few and short.

People read these statements before they sign, so there is little of them, and on one line each.
"""

from itertools import islice

from mpc_train.base.problem import JobProblem, Problems, no_duplicates
from mpc_train.base.strict_toml import MAX_FAULTS
from mpc_train.jobs.job import Job
from protocols.names import NAME

MAX_NAMES = 16
"""Purposes of a job, and categories of its tables or of one column."""
MAX_SENTENCE = 300


def check_purpose(job: Job) -> None:
    """Raise JobProblem with all faults of `[purpose]`; `job.data` must have been checked."""
    purpose, found = job.purpose, Problems()
    lists = {"purposes": purpose.purposes, "categories": purpose.categories}
    lists |= {f"columns.{column}": names for column, names in purpose.columns.items()}
    for key, names in lists.items():
        with found.noting():
            _check_names(f"purpose.{key}", names)
    known = {column.name for column in job.schema.columns} | {job.data.split_by}
    for column in islice((name for name in purpose.columns if name not in known), MAX_FAULTS):
        with found.noting():
            raise JobProblem(f"purpose.columns.{column}", "the job has no column of this name")
    for key in ("description", "legal_basis"):
        with found.noting():
            if len(getattr(purpose, key)) > MAX_SENTENCE:
                raise JobProblem(f"purpose.{key}", f"at most {MAX_SENTENCE} characters")
    found.check()


def _check_names(key: str, names: tuple[str, ...]) -> None:
    if len(names) > MAX_NAMES:
        raise JobProblem(key, f"at most {MAX_NAMES} names")
    for name in names:
        if not NAME.match(name):
            raise JobProblem(key, f"{name!r} is not a name: use a-z, 0-9 and -")
    no_duplicates(key, names)
