"""How many rows a result is made of in effect: against torch's own optimizers, and row by row."""

import tracemalloc
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.admission import effective_rows as counting
from mpc_train.admission.effective_rows import (
    Shares,
    _rates,
    effective_rows,
    first_to_forget,
    gradient_weights,
    row_shares,
)
from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import batches, split, total_steps
from tests.support.jobs import JOB, write_job

SGD = 'optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }'


def trained(folder: Path, optimizer: str, more: str = "", text: str = JOB) -> Job:
    assert SGD in text
    return load_job(write_job(folder, text.replace(SGD, f"optimizer = {optimizer}\n{more}")))


def all_rates(job: Job) -> Shares:
    return _rates(job, 0, total_steps(job))


def coefficients(job: Job, magnified: float = 1.0) -> Shares:
    return gradient_weights(job, all_rates(job), 0.0, magnified)[0]


def of_torch(job: Job, optimizer: type, more: Mapping[str, Any], scale: float = 1.0) -> np.ndarray:
    """By how much each step's gradient is in the final weights: a weight for each step, whose
    gradient is 1 there and 0 elsewhere, so that optimizers that are linear in it show it."""
    rates = all_rates(job)
    weights = torch.zeros(len(rates), dtype=torch.float64, requires_grad=True)
    rule = optimizer([weights], lr=float(rates[0]) * scale, **more)
    for step, rate in enumerate(rates):
        rule.param_groups[0]["lr"] = float(rate) * scale
        weights.grad = torch.zeros_like(weights)
        weights.grad[step] = 1.0
        rule.step()
    return np.asarray(weights.detach().numpy())


@pytest.mark.parametrize(
    ("optimizer", "more", "schedule"),
    [
        ("{ learning_rate = 0.5 }", {}, ""),
        ("{ learning_rate = 1.25, weight_decay = 0.8 }", {"weight_decay": 0.8}, ""),
        ("{ learning_rate = 4, weight_decay = 0.7 }", {"weight_decay": 0.7}, ""),
        (
            "{ learning_rate = 0.5, weight_decay = 0.3, momentum = 0.6 }",
            {"weight_decay": 0.3, "momentum": 0.6},
            'schedule = { name = "cosine", warmup_steps = 5 }',
        ),
        (
            "{ learning_rate = 1, weight_decay = 0.4, momentum = 0.7, nesterov = true }",
            {"weight_decay": 0.4, "momentum": 0.7, "nesterov": True},
            'schedule = { name = "step", every = 2, factor = 0.2 }',
        ),
    ],
)
def test_sgd_is_the_sum_of_gradients_that_torch_makes_of_it(
    tmp_path: Path, optimizer: str, more: dict[str, float], schedule: str
) -> None:
    job = trained(tmp_path, optimizer, schedule)
    found = coefficients(job)
    assert len(found) == total_steps(job) == 16
    np.testing.assert_allclose(found, of_torch(job, torch.optim.SGD, more), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("magnified", [1.0, 300.0])
def test_adam_under_a_root_that_stays_constant(tmp_path: Path, magnified: float) -> None:
    """With an ε far above all gradients torch divides by a constant: decay and all."""
    job = trained(
        tmp_path, '{ name = "adam", learning_rate = 0.001, weight_decay = 0.1, betas = [0.8, 0.9] }'
    )
    found = coefficients(job, magnified)
    epsilon = 1e9
    more = {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": epsilon}
    expected = of_torch(job, torch.optim.Adam, more, scale=epsilon * magnified)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_adamw_shrinks_what_was_learnt_before(tmp_path: Path) -> None:
    job = trained(tmp_path, '{ name = "adamw", learning_rate = 0.001, betas = [0.5, 0.9] }')
    # More than the ring takes today: the sum is right all the same.
    half, one = Decimal("0.5"), Decimal(1)
    strong = msgspec.structs.replace(job.train.optimizer, learning_rate=half, weight_decay=one)
    job = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, optimizer=strong))
    found = coefficients(job)
    epsilon = 1e9
    more = {"weight_decay": 1 / epsilon, "betas": (0.5, 0.9), "eps": epsilon}
    expected = of_torch(job, torch.optim.AdamW, more, scale=epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_first_steps_of_rmsprop_are_larger(tmp_path: Path) -> None:
    """For gradients of one size, torch's first change is 1 / √(1 − α) times the last."""
    job = trained(tmp_path, '{ name = "rmsprop", learning_rate = 0.001, alpha = 0.96 }')
    found = coefficients(job)
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rule = torch.optim.RMSprop([weight], lr=0.001, alpha=0.96, eps=1e-12)
    expected, before = [], 0.0
    for _ in found:
        weight.grad = torch.ones_like(weight)
        rule.step()
        expected.append(weight.item() - before)
        before = weight.item()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def by_hand(job: Job, weights: np.ndarray) -> dict[str, float]:
    """Shares row by row."""
    shares, steps = np.zeros(job.rows), iter(np.abs(weights))
    for epoch in range(job.train.epochs):
        for rows in batches(job, epoch):
            shares[rows] += next(steps)
    found = {}
    for owner in job.owners:
        mine = shares[job.first_row(owner) :][: job.data.rows[owner]]
        found[owner] = mine.sum() / mine.max()
    return found


@pytest.mark.parametrize("decay", ["0", "0.05", "1"])
def test_owners_count_their_own_rows(tmp_path: Path, decay: str) -> None:
    job = trained(tmp_path, f"{{ learning_rate = 1, weight_decay = {decay} }}")
    weights = coefficients(job)
    found, expected = effective_rows(job), by_hand(job, weights)
    for owner in job.owners:
        assert found.owners[owner] == pytest.approx(expected[owner])
    if decay == "1":  # the last batch alone
        assert found.pooled == pytest.approx(16)
        assert sum(found.owners.values()) == pytest.approx(16)
        assert found.steps == pytest.approx(1)


def test_growth_beyond_all_numbers_leaves_the_first_step(tmp_path: Path) -> None:
    text = JOB.replace("epochs = 4", "epochs = 400")
    job = trained(tmp_path, "{ learning_rate = 100, weight_decay = 1 }", text=text)
    found = effective_rows(job)
    assert found.pooled == pytest.approx(16, rel=0.02)
    assert found.steps == pytest.approx(1, rel=0.05)


def test_the_fewest_rows_over_all_ends_that_a_training_may_have(tmp_path: Path) -> None:
    more = "early_stopping = { fraction = 0.3, every = 1, patience = 3 }"
    text = JOB.replace("epochs = 4", "epochs = 40")
    stopped = effective_rows(trained(tmp_path, "{ learning_rate = 0.5 }", more, text))
    once = text.replace("epochs = 40", "epochs = 1")
    job = trained(tmp_path, "{ learning_rate = 0.5 }", more.replace("every = 1", "every = 9"), once)
    assert stopped.pooled == pytest.approx(effective_rows(job).pooled)


def test_newton_steps_take_every_training_row(tmp_path: Path) -> None:
    text = JOB.replace("epochs = 4\nbatch_size = 16\n", "").replace("seed = 7", "")
    job = trained(tmp_path, '{ name = "newton" }', text=text)
    found, (training, _) = effective_rows(job), split(job)
    assert found.pooled == len(training) == sum(found.owners.values())
    shares = row_shares(job)
    assert shares is not None and np.array_equal(np.flatnonzero(shares), training)


@pytest.mark.parametrize(
    ("loss", "least"),
    [
        ("{ positive_weight = 4 }", 1 / 4),
        ("{ positive_weight = 0.5 }", 1 / 2),
        ("{ positive_weight = 0 }", 0),
    ],
)
def test_a_heavy_class_may_be_one_row(tmp_path: Path, loss: str, least: float) -> None:
    plain = effective_rows(trained(tmp_path, "{ learning_rate = 0.5 }"))
    heavy = effective_rows(trained(tmp_path, "{ learning_rate = 0.5 }", f"loss = {loss}"))
    assert heavy.pooled == pytest.approx(1 + (plain.pooled - 1) * least)


def test_what_a_rate_makes_a_loss_forget(tmp_path: Path) -> None:
    """At rate 1 the bias of a linear regression is the mean residual of the last batch."""
    text = JOB.replace('"logistic"', '"linear"').replace('"accuracy", "auc"', '"mse"')
    job = trained(tmp_path, "{ learning_rate = 1 }", text=text)
    assert first_to_forget(job) == 1
    assert effective_rows(job, first_to_forget(job)).pooled == pytest.approx(16)
    slow = trained(tmp_path, "{ learning_rate = 0.05 }", text=text)
    assert effective_rows(slow, first_to_forget(slow)).pooled > 55


def test_rows_that_are_left_over_are_in_no_result(tmp_path: Path) -> None:
    text = JOB.replace("epochs = 4", "epochs = 1").replace("batch_size = 16", "batch_size = 74")
    job = trained(tmp_path, "{ learning_rate = 0.5 }", text=text)
    shares = row_shares(job)
    assert shares is not None
    assert np.count_nonzero(shares) == 74 and len(split(job)[0]) == 75


def test_many_steps_are_summed_by_compiled_code_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trained(tmp_path, "{ learning_rate = 60, weight_decay = 1, momentum = 0.5 }")
    rates = np.tile(all_rates(job), 30)
    interpreted, grown = gradient_weights(job, rates, 0.0)
    monkeypatch.setattr(counting, "INTERPRETED_STEPS", 0)
    compiled, grown_too = gradient_weights(job, rates, 0.0)
    np.testing.assert_array_equal(compiled, interpreted)
    assert grown == grown_too < 1
    assert np.isfinite(interpreted).all() and abs(interpreted[0]) > 0


@pytest.mark.parametrize("block", [4, 9, 28])
@pytest.mark.parametrize(
    "optimizer",
    [
        "{ learning_rate = 0.5, weight_decay = 0.2, momentum = 0.6, nesterov = true }",
        "{ learning_rate = 100, weight_decay = 1 }",
        '{ name = "adam", learning_rate = 0.001, weight_decay = 0.1 }',
        '{ name = "rmsprop", learning_rate = 0.001, momentum = 0.5 }',
    ],
)
def test_a_sum_in_blocks_is_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, block: int
) -> None:
    """Of steps that are too many to be in memory together; blocks are whole epochs, or less."""
    schedule = 'schedule = { name = "step", every = 7, factor = 0.7, warmup_steps = 30 }'
    text = JOB.replace("epochs = 4", "epochs = 90")
    job = trained(tmp_path, optimizer, schedule, text)
    (whole,) = counting._sums(job, 90, 0.0)[:1]
    monkeypatch.setattr(counting, "MAX_STEPS", block)
    (parts,) = counting._sums(job, 90, 0.0)[:1]
    assert parts.steps is None and whole.steps is not None
    assert parts.total**2 / parts.squares == pytest.approx(whole.total**2 / whole.squares)
    assert parts.most / parts.total == pytest.approx(whole.most / whole.total)


def test_what_is_not_followed_is_at_least_what_six_deviations_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = JOB.replace("epochs = 4", "epochs = 40").replace(
        "ann = 40, bob = 30, cleo = 30", "ann = 4000, bob = 3000, cleo = 300"
    )
    job = trained(tmp_path, "{ learning_rate = 0.5, weight_decay = 0.002 }", text=text)
    exact = effective_rows(job)
    monkeypatch.setattr(counting, "MAX_ENTRIES", 1000)
    rough = effective_rows(job)
    assert rough.pooled == pytest.approx(exact.pooled, rel=0.2) and rough.pooled <= exact.pooled
    for owner, rows in exact.owners.items():
        assert rows / 3 < rough.owners[owner] <= rows
    held_out = counting.held_out_rows(job)
    monkeypatch.undo()
    for owner, rows in counting.held_out_rows(job).items():
        assert rows * 0.2 < held_out[owner] <= rows


def test_the_largest_jobs_are_counted_in_bounded_memory(tmp_path: Path) -> None:
    """A hundred million rows, ten million steps: no array of either is made."""
    text = JOB.replace("ann = 40", "ann = 90000000").replace('"accuracy", "auc"', "")
    many = trained(
        tmp_path, "{ learning_rate = 0.5 }", text=text.replace("batch_size = 16", "batch_size = 64")
    )
    text = JOB.replace("epochs = 4", "epochs = 2000000")
    long = trained(tmp_path, "{ learning_rate = 0.5, weight_decay = 0.001 }", text=text)
    tracemalloc.start()
    try:
        assert effective_rows(many).owners["ann"] > 50_000_000
        assert effective_rows(long).pooled == pytest.approx(60, rel=0.1)
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()
