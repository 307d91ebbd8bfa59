"""A small study whose model stays in shares, and whose training rows are counted into bins; and
such counting alone, without the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.evaluation.training_counts import TrainingCounts
from mpc_train.jobs.audience import TRAINING_COUNTS
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.preparation.rows import Rows
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.jobs import SCHEMA_FILE, column, schema_toml
from tests.support.linear_rule import twin_of, write_study
from tests.support.shared_models import RATE, SHARES

EDGES: dict[str, list[float]] = {"a": [-1, 0, 1], "b": [0.5], "c": [-0.5, 0.5]}
"""The bins of each column."""
LOGITS = [float(np.log(k / (10 - k))) for k in range(1, 10)]
"""Scores at the edges of the outputs' bins."""
SCALED = '[prepare]\nscale = "standard"'
DATA = f"{SCHEMA_FILE}\nlimit = 8\ntest_fraction = 0.2"


def watching(epsilon: str = "1", every_rows: int = 1000, more: str = "") -> str:
    """`[serve]` of a job that watches drift."""
    drift = f'every_rows = {every_rows}, epsilon = "{epsilon}", to = ["ann"]{more}'
    return f'[serve]\nclients = ["clinic"]\ndrift = {{ {drift} }}\n'


def write_counted(folder: Path, serve: str, more: str = "", **settings: Any) -> Path:
    """The job's path, with its schema and the owners' files beside it. more: more sections; label:
    its column in the schema; reveal: more lines."""
    ends: dict[str, Any] = {"range": [-6, 6]}
    columns = [column(name, **ends, bins=edges) for name, edges in EDGES.items()]
    label = settings.pop("label", column("y", "boolean"))
    (folder / "schema.toml").write_text(schema_toml(*columns, label))
    usual: dict[str, Any] = {
        "epochs": 2,
        "recipients": (),
        "data": DATA,
        "more": f"{serve}\n{more}",
    }
    reveal = f"{SHARES}\n{settings.pop('reveal', '')}"
    kind, train = settings.pop("kind", "logistic"), settings.pop("train", RATE)
    return write_study(folder, kind, train, reveal, **(usual | settings))


def training_rows(path: Path) -> dict[str, np.ndarray]:
    """The training rows' cells by column, and the probabilities or classes that the twin's model
    gives them, in the clear."""
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
    scores = inputs[rows] @ weights["weight"].T + weights["bias"]
    if job.outputs > 1:
        return found | {OUTPUTS: scores.argmax(1)}
    return found | {OUTPUTS: 1 / (1 + np.exp(-scores[:, 0]))}


def in_bins(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """How many are in each bin; a value at an edge is in the one above it."""
    places = np.searchsorted(edges, values, side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def counted_job() -> Job:
    """A job of 80 rows, of which 40 train and are counted."""
    small: dict[str, Any] = {"rows": {"ann": 44, "bob": 36}, "data": DATA.replace("0.2", "0.5")}
    return load_job(write_counted(Path(mkdtemp()), watching(), reveal="least_group = 3", **small))


def some_rows(job: Job, seed: int) -> np.ndarray:
    """Cells at scale 2^f and an output as the last column, [rows, columns + 1], whose training rows
    have the same counts for every seed, at other rows and with other values; test rows may have
    any."""
    rng = np.random.default_rng(seed)
    training, held_out = split(job)
    found = np.zeros((job.rows, len(EDGES) + 1))
    for place, edges in enumerate((*EDGES.values(), LOGITS)):
        ends = np.array([-6, *edges, 6])
        bins = rng.permutation(np.arange(len(training)) ** 2 % (len(ends) - 1))
        found[training, place] = _within(ends, bins, rng)
        found[held_out, place] = _within(ends, rng.integers(0, len(ends) - 1, len(held_out)), rng)
    return np.rint(found * 2**job.fraction_bits).astype(np.int64)


def _within(ends: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ends[bins] + rng.uniform(0.1, 0.9, len(bins)) * (ends[bins + 1] - ends[bins])


def counted_of(job: Job, x: Masked) -> dict[str, tuple[int, ...]] | None:
    """What leaves of rows like `some_rows`, in two blocks; the network is the last column."""
    counting, half = TrainingCounts(job), job.rows // 2
    for part in (slice(0, half), slice(half, None)):
        counting.take(Rows(x.select((part, slice(0, len(EDGES))))))
    outputs = MaskedTensor(x.select((slice(None), slice(len(EDGES), None))))
    gate = RevealGate(frozenset({Output(TRAINING_COUNTS, total_steps(job))}))
    return counting.released(gate, lambda some: some, outputs, outputs)
