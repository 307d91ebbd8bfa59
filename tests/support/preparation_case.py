"""A job with a schema, missing cells and categories, and tables to fit it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.job import Job
from mpc_train.tables.typed import TypedTable
from tests.support.jobs import SCHEMA_FILE, column, job_toml, loaded, schema_toml

SCHEMA = schema_toml(
    column("age", range=[0, 120], missing=["", "NA"]),
    column("income", range=[0, 1000000], missing=[""]),
    column("visits", range=[0, 60]),
    column("smoker", "boolean", missing=[""]),
    column("region", "category", levels=["north", "south", "east"], other=True, missing=[""]),
    column("ill", "boolean"),
)
ROWS = {"ann": 400, "bob": 90, "cleo": 14}
JOB = job_toml(
    label="ill",
    rows=ROWS,
    recipients=["ann", "office"],
    data=f"{SCHEMA_FILE}\ntest_fraction = 0.25",
    train="epochs = 2\nbatch_size = 32\noptimizer = { learning_rate = 0.5 }",
    more="[prepare]\nPREPARE",
)
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


def prepared_job(
    folder: Path, prepare: str = PREPARE, text: str = JOB, schema: str = SCHEMA
) -> Job:
    return loaded(folder, text.replace("PREPARE", prepare), schema)


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
