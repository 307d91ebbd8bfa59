"""Owners' tables as CSV: those that fit `jobs.JOB`, and what becomes of any in a job's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.jobs.job import Job
from mpc_train.owners.table import Table, load_table
from mpc_train.tables.source import Source

ROWS = {"ann": 40, "bob": 30, "cleo": 30}
"""What `jobs.JOB` says of its owners' rows."""


def csv_lines(rows: int, seed: int = 0) -> list[str]:
    """A header and `rows` lines that fit `jobs.JOB`; the label depends on both features."""
    generator = np.random.default_rng(seed)
    age = generator.normal(50, 10, rows).clip(1, 119)
    dose = generator.normal(0, 2, rows)
    ill = (age - 50) / 10 + dose / 2 + generator.normal(0, 0.5, rows) > 0
    lines = [f"{a:.3f},{d:.4f},{int(i)}" for a, d, i in zip(age, dose, ill, strict=True)]
    return ["age,dose,ill", *lines]


def csv_of(**columns: Sequence[Any] | NDArray[Any]) -> list[str]:
    """A header and lines of these columns, each number with all its digits."""
    return polars.DataFrame(columns).write_csv().splitlines()


def write_tables(folder: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """The lines of each owner's table, in the file where a local run looks for it."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for owner, lines in tables.items():
        (folder / "data" / f"{owner}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def fitting_tables(rows: Mapping[str, int] = ROWS) -> dict[str, list[str]]:
    """Tables that fit `jobs.JOB`, different ones at each owner."""
    return {owner: csv_lines(count, seed) for seed, (owner, count) in enumerate(rows.items())}


def load_tables(folder: Path, job: Job) -> list[Table]:
    """What `write_tables` wrote, as each owner loads it."""
    return [
        load_table(Source(str(folder / "data" / f"{owner}.csv")), job, owner)
        for owner in job.owners
    ]
