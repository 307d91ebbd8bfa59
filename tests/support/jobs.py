"""A small valid job and data to fit it, for tests to alter."""

from pathlib import Path
from typing import Any

import numpy as np

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


def write_job(folder: Path, text: str = JOB) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def replaced(old: str, new: str) -> str:
    assert JOB.count(old) == 1, f"{old!r} must stand once in the job"
    return JOB.replace(old, new)


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


def csv_lines(rows: int, seed: int = 0) -> list[str]:
    """A header and `rows` lines that fit `JOB`; the label depends on both features."""
    generator = np.random.default_rng(seed)
    age = generator.normal(50, 10, rows).clip(1, 119)
    dose = generator.normal(0, 2, rows)
    ill = (age - 50) / 10 + dose / 2 + generator.normal(0, 0.5, rows) > 0
    lines = [f"{a:.3f},{d:.4f},{int(i)}" for a, d, i in zip(age, dose, ill, strict=True)]
    return ["age,dose,ill", *lines]
