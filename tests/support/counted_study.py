"""A small study whose model stays in shares, and whose training rows are counted into bins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.jobs.schedule import split
from tests.support.jobs import SCHEMA_FILE, column, schema_toml
from tests.support.linear_rule import twin_of, write_study
from tests.support.shared_models import RATE, SHARES

EDGES: dict[str, list[float]] = {"a": [-1, 0, 1], "b": [0.5], "c": [-0.5, 0.5]}
"""The bins of each column."""
SCALED = '[prepare]\nscale = "standard"'
DATA = f"{SCHEMA_FILE}\nlimit = 8\ntest_fraction = 0.2"


def watching(epsilon: str = "1", every_rows: int = 1000, more: str = "") -> str:
    """`[serve]` of a job that watches drift."""
    drift = f'every_rows = {every_rows}, epsilon = "{epsilon}", to = ["ann"]{more}'
    return f'[serve]\nclients = ["clinic"]\ndrift = {{ {drift} }}\n'


def write_counted(folder: Path, serve: str, more: str = "", **settings: Any) -> Path:
    """The job's path, with its schema and the owners' files beside it. more: more sections."""
    ends: dict[str, Any] = {"range": [-6, 6]}
    columns = [column(name, **ends, bins=edges) for name, edges in EDGES.items()]
    (folder / "schema.toml").write_text(schema_toml(*columns, column("y", "boolean")))
    usual: dict[str, Any] = {
        "epochs": 2,
        "recipients": (),
        "data": DATA,
        "more": f"{serve}\n{more}",
    }
    return write_study(folder, "logistic", RATE, SHARES, **(usual | settings))


def training_rows(path: Path) -> dict[str, np.ndarray]:
    """The training rows' cells by column, and the probabilities that the twin's model gives them,
    in the clear."""
    job, twin = twin_of(path)
    rows, _ = split(job)
    files = [path.parent / "data" / f"{owner}.csv" for owner in job.owners]
    cells = np.concatenate([np.loadtxt(file, delimiter=",", skiprows=1) for file in files])
    cells = cells[:, : len(EDGES)]
    found = {name: cells[rows, place] for place, name in enumerate(EDGES)}
    weights = {name: np.asarray(value, np.float64) for name, value in twin.state.items()}
    inputs = cells
    if job.pipeline.secret:
        inputs = (cells - cells[rows].mean(0)) / cells[rows].std(0)
    scores = inputs[rows] @ weights["weight"][0] + weights["bias"][0]
    return found | {OUTPUTS: 1 / (1 + np.exp(-scores))}


def in_bins(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """How many are in each bin; a value at an edge is in the one above it."""
    places = np.searchsorted(edges, values, side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]
