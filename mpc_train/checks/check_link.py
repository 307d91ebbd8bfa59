"""What a job that links records must satisfy; raises JobProblem."""

from collections.abc import Mapping

from mpc_train.base.problem import JobProblem, no_duplicates, number
from mpc_train.jobs.data import Duplicates, Join
from mpc_train.jobs.job import Job
from mpc_train.linkage.partners import least_joined
from mpc_train.tables.normalise import Rule

SHARE = "data.join.least_share"
MAX_IDENTIFIERS = 16
MAX_LINKED_ROWS = 1 << 24
"""Lists are sent whole; 2^24 items are 512 MiB."""


def check_link(job: Job) -> None:
    """Raise JobProblem at the first contradiction about partition, columns and identifiers."""
    data = job.data
    if data.partition == "columns":
        if data.join is None:
            raise JobProblem("data.join", "say which records are the same: join.on, and who may")
        if data.check_duplicates is not None:
            raise JobProblem("data.check_duplicates", 'is only for partition = "rows"; remove it')
        _check_shares_of_columns(job)
        _check_identifiers(job, "data.join", data.join)
        _check_rows(job, data.join)
        return
    for key in ("join", "columns"):
        if getattr(data, key):
            raise JobProblem(
                f"data.{key}", 'is for partition = "columns"; remove it, or write that'
            )
    if data.joined:
        raise JobProblem("data.joined", "is filled in during a run")
    if data.check_duplicates is not None:
        if data.check_duplicates.most < 0:
            raise JobProblem("data.check_duplicates.most", "at least 0")
        _check_identifiers(job, "data.check_duplicates", data.check_duplicates)


def _check_identifiers(job: Job, key: str, link: Join | Duplicates) -> None:
    if not 1 <= len(link.on) <= MAX_IDENTIFIERS:
        raise JobProblem(f"{key}.on", f"1 to {MAX_IDENTIFIERS} columns identify a record")
    no_duplicates(f"{key}.on", link.on)
    known = set(job.columns)
    for name in link.on:
        if not name or name != name.strip():
            raise JobProblem(f"{key}.on", "a column name is not empty, with no space at its ends")
        if name in known:
            raise JobProblem(f"{key}.on", f"{name!r} is also a feature, the label or the weight")
        table = job.data.table
        if table is not None and (name not in table or table[name].kind != "identifier"):
            raise JobProblem(
                f"{key}.on", f"{name!r} is not a column of kind identifier in the schema"
            )
    _check_rules(key, link.on, link.normalise)
    if len(job.owners) < 2:
        raise JobProblem("job.owners", "the records of a single owner cannot be linked")
    apart = [name for name in job.owners if name not in job.evaluators]
    if apart:
        raise JobProblem(
            "job.evaluators",
            f"{', '.join(apart)} provides identifiers but does not evaluate; an owner that links "
            "records must evaluate, and the dealer must be somebody without records",
        )
    if max(job.data.rows.values(), default=0) > MAX_LINKED_ROWS:
        raise JobProblem("data.rows", f"at most {MAX_LINKED_ROWS} rows per owner can be linked")


def _check_rules(key: str, on: tuple[str, ...], rules: Mapping[str, tuple[Rule, ...]]) -> None:
    for name, given in rules.items():
        if name not in on:
            raise JobProblem(f"{key}.normalise.{name}", f"is not listed under {key}.on")
        check_spelling(f"{key}.normalise.{name}", given)


def check_spelling(key: str, rules: tuple[Rule, ...]) -> None:
    """Raise JobProblem if the rules of one identifier contradict each other."""
    no_duplicates(key, rules)
    if "date" in rules and len(rules) > 1:
        raise JobProblem(key, "a date has one form; write date alone")


def _check_shares_of_columns(job: Job) -> None:
    """Check that exactly one owner has each feature, the label and the weight."""
    columns = job.data.columns
    wanted = dict.fromkeys(job.columns)
    holder: dict[str, str] = {}
    for owner in job.owners:
        if not columns.get(owner):
            raise JobProblem("data.columns", f"say which columns {owner} has: {owner} = […]")
    for owner, names in columns.items():
        key = f"data.columns.{owner}"
        if owner not in job.owners:
            raise JobProblem(key, "is not one of job.owners")
        for name in names:
            if name not in wanted:
                raise JobProblem(key, f"{name!r} is not a feature, the label or the weight")
            if name in holder:
                raise JobProblem(key, f"{holder[name]} also provides {name!r}; only one owner may")
            holder[name] = owner
    for name in wanted:
        if name not in holder:
            raise JobProblem("data.columns", f"no owner provides {name!r}")


def _check_rows(job: Job, join: Join) -> None:
    bound = min((job.data.rows[owner] for owner in job.owners if owner in job.data.rows), default=0)
    if join.least_rows < 2:
        raise JobProblem(
            "data.join.least_rows", "at least 2: a model of one record reveals the record"
        )
    if bound and join.least_rows > bound:
        raise JobProblem("data.join.least_rows", f"the shortest table has only {bound} rows")
    if join.least_share is not None and not 0 < number(SHARE, join.least_share) <= 1:
        raise JobProblem(SHARE, "above 0 and at most 1, of the shortest table's rows")
    if bound and job.data.joined and not least_joined(job) <= job.data.joined <= bound:
        raise JobProblem("data.joined", f"between {least_joined(job)} and {bound}")
