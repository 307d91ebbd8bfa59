"""Rules beyond SGD and what is disclosed on the way, in real processes, against the twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import RefusedError
from mpc_train.jobs.outputs import Disclosure
from mpc_train.jobs.schedule import checked_rows, split, steps_per_epoch, total_steps
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.twin.training import max_weight_difference
from tests.support.commands import mpc_train, run_job, trained
from tests.support.jobs import allowing
from tests.support.linear_rule import twin_of, weights_of, write_study


@pytest.mark.slow
def test_adam_with_warm_up_a_revealed_loss_and_a_guard(tmp_path: Path) -> None:
    train = """
optimizer = { name = "adam", learning_rate = 0.02, betas = [0.8, 0.99] }
schedule = { name = "cosine", warmup_steps = 6 }
clip = { norm = 0.5 }
loss = { name = "bce", positive_weight = 1.5 }
guard = { every = 8 }
"""
    path = write_study(tmp_path, "logistic", train, "training_loss_every = 10")
    record = trained(path)
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


@pytest.mark.slow
def test_early_stopping_is_that_of_the_twin(tmp_path: Path) -> None:
    train = """
optimizer = { learning_rate = 0.3 }
early_stopping = { fraction = 0.25, patience = 2, least_improvement = 0.002 }
"""
    path = write_study(tmp_path, "linear", train, 'metrics = ["mse"]', epochs=30)
    record = trained(path)
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
    shown = run_job(write_study(tmp_path, "linear", train))
    assert shown.exit_code == 10
    assert "lower the learning rate" in shown.stderr
    assert "activation_limit" in shown.stderr


def test_what_is_disclosed_is_said_and_can_be_forbidden(tmp_path: Path) -> None:
    train = """
optimizer = { name = "rmsprop", learning_rate = 0.001 }
guard = { every = 3 }
early_stopping = { fraction = 0.2 }
"""
    path = write_study(tmp_path, "logistic", train, "training_loss_every = 5")
    shown = mpc_train("job", "check", path)
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
