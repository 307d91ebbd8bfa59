"""Private training in the clear: clipped rows, and noise of the accounted law."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.jobs.job import Job
from mpc_train.privacy import accounting, clip_plan
from mpc_train.twin import private
from mpc_train.twin.private import Curator, private_gradients
from mpc_train.twin.setup import twin_loss
from protocols.roles.streams import Stream
from tests.support.jobs import job_toml, loaded

PRIVACY = """
[privacy]
epsilon = 8
delta = 0.001
neighbours = "zeroed"
clip = {clip}
"""


def private_job(folder: Path, kind: str = "mlp", clip: str = "0.5") -> Job:
    model = "hidden = [4]\nclasses = 3" if kind == "mlp" else ""
    train = "epochs = 2\nbatch_size = 20\nguard = false\noptimizer = { learning_rate = 0.1 }"
    text = job_toml(
        "abc", kind, model=model, train=train, more=PRIVACY.format(clip=clip)
    )  # fmt: skip
    return loaded(folder, text)


def curator(central: bool = False) -> Curator:
    stream = Stream(bytes(32))
    stream.begin_step(0)
    return Curator(central, stream.octets)


def problem(job: Job) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    rows = torch.randn(20, 3, dtype=torch.float64) * 3
    return module.double(), rows, torch.randint(0, 3, (20,)).double()


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])


def test_sums_are_those_of_rows_clipped_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = private_job(tmp_path)
    module, inputs, labels = problem(job)
    loss = twin_loss(job)
    monkeypatch.setattr(Curator, "noise", lambda _, job, count, bits: torch.zeros(count))
    private_gradients(job, module, loss, inputs, labels, curator(), {})
    found = flat(module)
    total, clipped = torch.zeros_like(found), 0
    for row, label in zip(inputs, labels, strict=True):
        module.zero_grad()
        loss(module(row[None]), label[None]).backward()
        mine = flat(module)
        clipped += bool(mine.norm() > 0.5)
        total += mine * min(1.0, 0.5 / float(mine.norm()))
    assert clipped > 0
    assert torch.allclose(found, total / 20, atol=1e-12)


@pytest.mark.parametrize("central", [True, False])
def test_noise_has_the_accounted_variance(tmp_path: Path, central: bool) -> None:
    """σ² of a curator; 2σ² of all nodes together."""
    job = private_job(tmp_path)
    sigma = float(accounting.noise_multiplier(job) * accounting.sensitivity(job))
    noise = curator(central).noise(job, 100_000, clip_plan.grid_bits(job)).numpy()
    expected = sigma**2 * (1 if central else 2)
    assert noise.var() == pytest.approx(expected, rel=0.03)


def test_noise_of_a_twin_follows_that_of_the_steps_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = private_job(tmp_path)
    assert job.privacy
    job = msgspec.structs.replace(job, privacy=msgspec.structs.replace(job.privacy, bands=3))
    module, inputs, labels = problem(job)
    found: list[float] = []
    pasts = private.Pasts()
    for _ in range(4):
        monkeypatch.setattr(Curator, "noise", lambda _, job, count, bits: torch.zeros(count))
        private_gradients(job, module, twin_loss(job), inputs, labels, curator(), {})
        exact = flat(module)
        monkeypatch.setattr(Curator, "noise", lambda _, job, count, bits: torch.ones(count))
        private_gradients(job, module, twin_loss(job), inputs, labels, curator(), pasts)
        found.append(float((flat(module) - exact).mean() * len(inputs)))
    # By hand: 1, 1 - 1/2, 1 - 1/4 - 3/8, 1 - 3/16 - 3/16.
    assert found == pytest.approx([1, 0.5, 0.375, 0.625])


def test_a_job_with_a_logistic_model_bounds_inputs(tmp_path: Path) -> None:
    job = private_job(tmp_path, "logistic", "2")
    norm = clip_plan.input_norm(job)
    assert (norm**2 + 1) * clip_plan.most_residual(job.fraction_bits) ** 2 <= 4
    assert float(norm) == pytest.approx(np.sqrt(3), rel=2e-3)
    assert job.privacy
    small = msgspec.structs.replace(job.privacy, clip=Fraction(1))
    with pytest.raises(Exception, match="above 1"):
        clip_plan.input_norm(msgspec.structs.replace(job, privacy=small))
