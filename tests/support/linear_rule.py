"""A small study whose label follows a linear rule but for noise, as it is run and as its twin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import Twin, train_twin
from tests.support.csv_tables import csv_of, load_tables, write_tables
from tests.support.jobs import job_toml, write_job

ROWS = {"ann": 90, "bob": 70}


def write_study(
    folder: Path,
    kind: str,
    train: str,
    reveal: str = "",
    *,
    epochs: int = 6,
    noise: float = 0.3,
    rows: Mapping[str, int] = ROWS,
    job: str = "",
    model: str = "",
    recipients: Sequence[str] = ("ann",),
    data: str = "limit = 8\ntest_fraction = 0.2",
    features: Sequence[str] = ("a", "b", "c"),
    more: str = "",
    seed: int = 8,
) -> Path:
    """The job's path, with the owners' files beside it; train, reveal, job, model: more lines;
    more: more sections; seed: of the rows;
    epochs: 0 for a job that trains nothing."""
    generator = np.random.default_rng(seed)
    for owner, count in rows.items():
        x = generator.normal(size=(count, 3))
        score = x @ [1.0, -0.5, 0.25] + generator.normal(0, noise, count)
        y = score if kind == "linear" else (score > 0).astype(int)
        write_tables(folder, {owner: csv_of(a=x[:, 0], b=x[:, 1], c=x[:, 2], y=y)})
    text = job_toml(
        features,
        kind,
        rows=rows,
        recipients=recipients,
        job=job,
        data=data,
        model=model,
        train=f"epochs = {epochs}\nbatch_size = 32\nseed = 5\n{train}" if epochs else train,
        more=f"[reveal]\nleast_test_rows = 10\n{reveal}\n{more}",
    )
    return write_job(folder, text)


def twin_of(path: Path) -> tuple[Job, Twin]:
    """The job, trained in the clear."""
    job = load_job(path)
    return job, train_twin(job, load_tables(path.parent, job), initial_weights(job))


def weights_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The model of a run, by its record."""
    loaded = safetensors.torch.load_file(record["model"])
    return {name: value.double().numpy() for name, value in loaded.items()}
