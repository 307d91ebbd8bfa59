"""Rules beyond SGD and what is disclosed on the way, in real processes, against the twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.cli import app
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import Disclosure
from mpc_train.jobs.schedule import checked_rows, split, steps_per_epoch, total_steps
from mpc_train.owners.table import load_table
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.tables.source import Source
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import Twin, max_weight_difference, train_twin
from tests.support.jobs import allowing

TEXT = """
[job]
name = "study"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann"]
[data]
features = ["a", "b", "c"]
label = "y"
limit = 8
test_fraction = 0.2
rows = { ann = 90, bob = 70 }
[model]
kind = "KIND"
[train]
epochs = EPOCHS
batch_size = 32
seed = 5
TRAIN
[reveal]
least_test_rows = 10
REVEAL
"""


def study(
    folder: Path, kind: str, train: str, reveal: str = "", epochs: int = 6, noise: float = 0.3
) -> Path:
    """A job and its owners' files; the label follows a linear rule but for noise."""
    path = folder / "job.toml"
    text = TEXT.replace("KIND", kind).replace("EPOCHS", str(epochs))
    path.write_text(text.replace("TRAIN", train).replace("REVEAL", reveal))
    generator = np.random.default_rng(8)
    (folder / "data").mkdir(exist_ok=True)
    for owner, count in (("ann", 90), ("bob", 70)):
        x = generator.normal(size=(count, 3))
        score = x @ [1.0, -0.5, 0.25] + generator.normal(0, noise, count)
        y = score if kind == "linear" else (score > 0).astype(int)
        lines = [
            f"{a!r},{b!r},{c!r},{label}" for (a, b, c), label in zip(x.tolist(), y, strict=True)
        ]
        (folder / "data" / f"{owner}.csv").write_text("\n".join(["a,b,c,y", *lines]))
    return path


def run(path: Path, folder: Path) -> Any:
    return CliRunner().invoke(app, ["run", str(path), "--format", "json", "--run-dir", str(folder)])


def twin_of(path: Path) -> tuple[Job, Twin]:
    job = load_job(path)
    tables = [
        load_table(Source(str(path.parent / "data" / f"{owner}.csv")), job, owner)
        for owner in job.owners
    ]
    return job, train_twin(job, tables, initial_weights(job))


def weights_of(record: dict[str, Any]) -> dict[str, np.ndarray]:
    loaded = safetensors.torch.load_file(record["model"])
    return {name: value.double().numpy() for name, value in loaded.items()}


@pytest.mark.slow
def test_adam_with_warm_up_a_revealed_loss_and_a_guard(tmp_path: Path) -> None:
    train = """
optimizer = { name = "adam", learning_rate = 0.02, betas = [0.8, 0.99] }
schedule = { name = "cosine", warmup_steps = 6 }
clip = { norm = 0.5 }
loss = { name = "bce", positive_weight = 1.5 }
guard = { every = 8 }
"""
    path = study(tmp_path, "logistic", train, "training_loss_every = 10")
    shown = run(path, tmp_path / "run")
    assert shown.exit_code == 0, shown.stderr
    record = json.loads(shown.stdout.splitlines()[-1])
    job, twin = twin_of(path)
    steps = total_steps(job)
    assert record["steps"] == twin.steps == steps
    # Off by 2^-10 of the norm's factor and as much of each step, whose length is the rate at most.
    difference = max_weight_difference(weights_of(record), twin.state)
    assert difference <= 2 * steps * 0.02 * (2**-10 + 2**-10.8 + 2**-11)
    losses = {int(step): loss for step, loss in record["losses"].items()}
    assert sorted(losses) == list(range(10, steps + 1, 10))
    assert all(0 < loss < 2 for loss in losses.values())
    outputs = {(output.name, output.step) for output in agreed_outputs(job)}
    assert ("guard", 8) in outputs and ("training_loss", 10) in outputs
    assert ("early_stopping", steps_per_epoch(job)) not in outputs


def test_early_stopping_is_that_of_the_twin(tmp_path: Path) -> None:
    train = """
optimizer = { learning_rate = 0.3 }
early_stopping = { fraction = 0.25, patience = 2, least_improvement = 0.002 }
"""
    path = study(tmp_path, "linear", train, 'metrics = ["mse"]', epochs=30)
    shown = run(path, tmp_path / "run")
    assert shown.exit_code == 0, shown.stderr
    record = json.loads(shown.stdout.splitlines()[-1])
    job, twin = twin_of(path)
    assert record["steps"] == twin.steps < total_steps(job)
    assert max_weight_difference(weights_of(record), twin.state) < 1e-4
    assert record["metrics"]["mse"] == pytest.approx(twin.metrics["mse"], abs=1e-4)
    # Rows that decide neither train nor test.
    training, held_out = split(job)
    parts = [set(rows.tolist()) for rows in (training, checked_rows(job), held_out)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == job.rows


@pytest.mark.slow
def test_a_guard_ends_a_run_that_diverges(tmp_path: Path) -> None:
    train = """
optimizer = { learning_rate = 4 }
guard = { every = 2 }
"""
    path = study(tmp_path, "linear", train)
    shown = run(path, tmp_path / "run")
    assert shown.exit_code == 10
    assert "lower the learning rate" in shown.stderr
    assert "activation_limit" in shown.stderr


def test_what_is_disclosed_is_said_and_can_be_forbidden(tmp_path: Path) -> None:
    train = """
optimizer = { name = "rmsprop", learning_rate = 0.001 }
guard = { every = 3 }
early_stopping = { fraction = 0.2 }
"""
    path = study(tmp_path, "logistic", train, "training_loss_every = 5")
    shown = CliRunner().invoke(app, ["job", "check", str(path)])
    assert shown.exit_code == 0
    for words in ("RMSprop", "whether training goes on", "left its range", "mean loss of a batch"):
        assert words in shown.stdout
    job = load_job(path)
    every: tuple[Disclosure, ...] = ("early_stopping", "guard", "training_loss")
    check_rules(allowing(job, disclosures=every, least_test_rows=10), job, "ann")
    for missing in every:
        allowed = tuple(name for name in every if name != missing)
        with pytest.raises(RefusedError, match=missing):
            check_rules(allowing(job, disclosures=allowed, least_test_rows=10), job, "ann")
