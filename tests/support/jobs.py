"""A small valid job for tests to alter, and texts of other jobs and schemas."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import Rules
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import words_of

JOB = """
[job]
name = "study"
owners = ["ann", "bob", "cleo"]
dealer = "registry"
recipients = ["ann", "office"]

[data]
features = [
  { name = "age", center = 50, scale = 10.0, range = [0, 120] },
  { name = "dose", scale = 2 },
]
label = "ill"
test_fraction = 0.25
split_seed = 3
rows = { ann = 40, bob = 30, cleo = 30 }

[model]
kind = "logistic"

[train]
epochs = 4
batch_size = 16
optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }
seed = 7

[reveal]
metrics = ["accuracy", "auc"]
"""
TWO_OWNERS = {"ann": 40, "bob": 40}
GRADIENTS = "epochs = 1\nbatch_size = 8\noptimizer = { learning_rate = 0.1 }"
NEWTON = 'optimizer = { name = "newton" }'
SCHEMA_FILE = 'schema = "schema.toml"'


def job_toml(
    features: Sequence[str] = (),
    kind: str = "logistic",
    *,
    label: str = "y",
    rows: Mapping[str, int] = TWO_OWNERS,
    dealer: str = "registry",
    recipients: Sequence[str] = ("ann",),
    job: str = "",
    data: str = "",
    model: str = "",
    train: str = GRADIENTS,
    more: str = "",
) -> str:
    """The text of a job, with `rows` of each owner.

    features, label: names, or inline tables as they stand in a job. job, data, model, train: more
    lines of these sections. more: more sections.
    """
    listed = ", ".join(map(_named, features))
    counts = ", ".join(f"{owner} = {count}" for owner, count in rows.items())
    return f"""
[job]
name = "study"
owners = {json.dumps(list(rows))}
dealer = "{dealer}"
recipients = {json.dumps(list(recipients))}
{job}
[data]
{f"features = [{listed}]" if features else ""}
label = {_named(label)}
rows = {{ {counts} }}
{data}
[model]
kind = "{kind}"
{model}
[train]
{train}
{more}
"""


def duplicates_toml(rows: Mapping[str, int], most: int, more: str = "") -> str:
    """The text of a job that counts which records stand in several owners' tables."""
    return job_toml(
        ["age"],
        label="ill",
        rows=rows,
        data=f'check_duplicates = {{ on = ["id"], {more}most = {most} }}',
        train="epochs = 1\nbatch_size = 8\noptimizer = { learning_rate = 0.5 }",
    )


def _named(column: str) -> str:
    return column if column.startswith("{") else f'"{column}"'


def schema_toml(*columns: str) -> str:
    """The text of a schema file; see `column`."""
    return "\n".join(columns)


def column(name: str, kind: str = "number", **says: object) -> str:
    """A column of a schema file, with what else it says of it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in says.items()]
    return "\n".join(["[[columns]]", f'name = "{name}"', f'kind = "{kind}"', *lines, ""])


def write_job(folder: Path, text: str = JOB) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def loaded(folder: Path, text: str = JOB, schema: str = "") -> Job:
    """The job, from a file in `folder`, beside its schema if it has one."""
    if schema:
        (folder / "schema.toml").write_text(schema)
    return load_job(write_job(folder, text))


def replaced(old: str, new: str, text: str = JOB) -> str:
    """The text, by default the job, with other words in one place."""
    assert text.count(old) == 1, f"{old!r} must stand once in the text"
    return text.replace(old, new)


def changed(*changes: tuple[str, str], text: str = JOB) -> str:
    """The same in each of these places."""
    for old, new in changes:
        text = replaced(old, new, text)
    return text


def with_data(data: str = SCHEMA_FILE, text: str = JOB) -> str:
    """The job with these lines in place of its features."""
    start, end = text.index("features = ["), text.index("label =")
    return f"{text[:start]}{data}\n{text[end:]}"


def allowing(job: Job, **changes: Any) -> Rules:
    """Rules that list what a job names, with the default numbers; `changes` to them."""
    listed: dict[str, Any] = {
        "recipients": job.recipients,
        "dealers": (job.dealer,),
        "evaluators": job.evaluators,
        "metrics": tuple(words_of(job, "metrics")),
        "disclosures": tuple(words_of(job, "disclosures")),
    }
    return Rules(**{**listed, **changes})
