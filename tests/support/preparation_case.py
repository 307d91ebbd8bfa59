"""A job with a schema, missing cells and categories, and tables to fit it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.tables.typed import TypedTable

SCHEMA = """
[[columns]]
name = "age"
kind = "number"
range = [0, 120]
missing = ["", "NA"]

[[columns]]
name = "income"
kind = "number"
range = [0, 1000000]
missing = [""]

[[columns]]
name = "visits"
kind = "number"
range = [0, 60]

[[columns]]
name = "smoker"
kind = "boolean"
missing = [""]

[[columns]]
name = "region"
kind = "category"
levels = ["north", "south", "east"]
other = true
missing = [""]

[[columns]]
name = "ill"
kind = "boolean"
"""

JOB = """
[job]
name = "prepared"
owners = ["ann", "bob", "cleo"]
dealer = "registry"
recipients = ["ann", "office"]

[data]
schema = "schema.toml"
label = "ill"
test_fraction = 0.25
rows = { ann = 400, bob = 90, cleo = 14 }

[prepare]
PREPARE

[model]
kind = "logistic"

[train]
epochs = 2
batch_size = 32
optimizer = { name = "sgd", learning_rate = 0.5 }
"""

PREPARE = """
scale = "standard"
missing = "mean"
indicator = true
interactions = [["age", "visits"], ["smoker", "region=south"]]

[prepare.columns.income]
log = "log1p"
clip = [1000, 250000]

[prepare.columns.visits]
scale = "minmax"
powers = 2
"""

ROWS = {"ann": 400, "bob": 90, "cleo": 14}


def prepared_job(
    folder: Path, prepare: str = PREPARE, text: str = JOB, schema: str = SCHEMA
) -> Job:
    (folder / "schema.toml").write_text(schema)
    path = folder / "job.toml"
    path.write_text(text.replace("PREPARE", prepare))
    return load_job(path)


def typed(rows: int, seed: int) -> TypedTable:
    """Rows of an organisation of its own kind: means and gaps differ by seed."""
    generator = np.random.default_rng(seed)
    age = generator.normal(45 + 5 * seed, 12, rows).clip(1, 119).round()
    columns = {
        "age": age,
        "income": np.exp(generator.normal(10 + 0.2 * seed, 0.8, rows)).clip(0, 999999).round(),
        "visits": generator.poisson(3 + seed, rows).clip(0, 60).astype(np.float64),
        "smoker": (generator.random(rows) < 0.3).astype(np.float64),
        "region": generator.integers(0, 4, rows).astype(np.float64),
    }
    columns["ill"] = (age / 40 + generator.normal(0, 1, rows) > 1.5).astype(np.float64)
    values = np.column_stack(list(columns.values()))
    missing = np.zeros(values.shape, bool)
    for place, share in {0: 0.1, 1: 0.25, 3: 0.05, 4: 0.08}.items():
        missing[:, place] = generator.random(rows) < share
    values[missing] = 0
    return TypedTable(tuple(columns), values, missing)


def tables(rows: Mapping[str, int] = ROWS) -> list[TypedTable]:
    return [typed(count, seed) for seed, count in enumerate(rows.values())]


def pooled(parts: list[TypedTable]) -> TypedTable:
    return TypedTable(
        parts[0].names,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.missing for part in parts]),
    )


def with_gaps(table: TypedTable, name: str) -> NDArray[np.float64]:
    """A column as scikit-learn takes it: NaN where a cell is missing."""
    place = table.names.index(name)
    return np.where(table.missing[:, place], np.nan, table.values[:, place])
