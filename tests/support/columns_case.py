"""A job of two or three owners' columns, and tables of people who partly overlap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.owners.table import Table, load_table
from mpc_train.tables.source import Source
from tests.support.jobs import changed

JOB = """
[job]
name = "credit"
owners = ["bank", "insurer"]
evaluators = ["bank", "insurer"]
dealer = "registry"
recipients = ["bank"]

[data]
partition = "columns"
features = [{ name = "income", center = 50, scale = 20 }, "claims", "age"]
label = "default"
rows = { bank = 60, insurer = 45 }
columns = { bank = ["income", "default"], insurer = ["claims", "age"] }
test_fraction = 0.25

[data.join]
on = ["name", "born"]
membership = "MEMBERSHIP"
least_rows = 20
normalise = { name = ["case", "accents", "spaces"], born = ["date"] }

[model]
kind = "logistic"

[train]
epochs = 3
batch_size = 8
optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }

[reveal]
least_test_rows = 5
metrics = ["accuracy"]
"""

COLUMNS = {"bank": ("income", "default"), "insurer": ("claims", "age"), "shop": ("visits",)}
PEOPLE = 70
FIRST = {"bank": 0, "insurer": 25, "shop": 10}
"""Each owner has people of consecutive numbers."""


def write_job(folder: Path, membership: str = "holders", text: str = JOB) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "job.toml"
    path.write_text(text.replace("MEMBERSHIP", membership))
    return path


def three_owners(text: str = JOB) -> str:
    """The same with a third owner, and a neutral evaluator in the midst."""
    return changed(
        ('owners = ["bank", "insurer"]', 'owners = ["bank", "insurer", "shop"]'),
        ('evaluators = ["bank", "insurer"]', 'evaluators = ["bank", "neutral", "insurer", "shop"]'),
        ('"claims", "age"]\nlabel', '"claims", "age", "visits"]\nlabel'),
        ("insurer = 45 }", "insurer = 45, shop = 55 }"),
        ('["claims", "age"] }', '["claims", "age"], shop = ["visits"] }'),
        text=text,
    )


def weighted(text: str = JOB) -> str:
    """The same, and the owner without the label says how many times each row counts."""
    text = text.replace('"claims", "age"] }', '"claims", "age", "w"] }')
    return text.replace("[data]", '[data]\nweight = { name = "w", range = [0, 4] }')


def truth() -> Mapping[str, np.ndarray]:
    rng = np.random.default_rng(7)
    found = {
        "income": rng.normal(50, 20, PEOPLE).round(2).clip(0, 120),
        "claims": rng.poisson(1.0, PEOPLE).astype(np.float64),
        "age": rng.normal(0, 1, PEOPLE).round(3),
        "visits": rng.normal(0, 1, PEOPLE).round(3),
    }
    score = found["claims"] - (found["income"] - 50) / 20 + found["age"]
    found["default"] = (score + rng.normal(0, 0.5, PEOPLE) > 1).astype(np.float64)
    return found


def write_table(folder: Path, owner: str, rows: int) -> Path:
    """Names in another spelling at each owner, rows in an order of its own."""
    values, first = truth(), FIRST[owner]
    order = np.random.default_rng(len(owner)).permutation(np.arange(first, first + rows))
    spell = {"bank": "Zoë Müller {}", "insurer": "ZOE MULLER {}", "shop": "zoë müller{}"}[owner]
    lines = [",".join(("name", "born", *COLUMNS[owner]))]
    for person in order:
        day = f"{1 + person % 28:02}.{1 + person % 12:02}.19{60 + person % 40}"
        if owner != "bank":
            day = f"19{60 + person % 40}-{1 + person % 12:02}-{1 + person % 28:02}"
        cells = (
            str(int(values[name][person]))
            if name == "default"
            else repr(float(values[name][person]))
            for name in COLUMNS[owner]
        )
        lines.append(",".join((spell.format(person), day, *cells)))
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{owner}.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load_tables(folder: Path, job: Job) -> dict[str, Table]:
    found = {}
    for owner in job.owners:
        path = write_table(folder, owner, job.data.rows[owner])
        form = "%d.%m.%Y" if owner == "bank" else "%Y-%m-%d"
        found[owner] = load_table(Source(str(path), date_format=form), job, owner)
    return found


def load(folder: Path, membership: str, text: str = JOB) -> tuple[Job, dict[str, Table]]:
    job = load_job(write_job(folder, membership, text))
    return job, load_tables(folder, job)
