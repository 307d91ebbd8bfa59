"""An audit of private training by a canary: an attacker guesses whether one row took part.

The row is as bad as a row can be: clipped to the norm exactly, in a direction that no other row has
(Jagielski, Ullman, Oprea, NeurIPS 2020). Thousands of trainings with it and without it, with the
noise that the strongest coalition does not know, give a lower bound of ε by error rates (Clopper
and Pearson; Nasr et al., USENIX Security 2023, for Gaussian mechanisms). It has to stay below the ε
of the job, and exceed it if noise is missing. Trainings over shares give the attacker nothing else:
what a handful of them leaves is spread as in the clear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import beta, norm

from mpc_train.jobs.job import Job
from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.privacy.clip_plan import deviation, input_norm
from mpc_train.training.losses import BinaryCrossEntropy
from mpc_train.training.optimizers.row_clipping import Noise, NoisySums
from mpc_train.training.optimizers.sgd import SGD
from mpc_train.training.trainer import Trainer
from mpc_train.twin.private import Curator, Pasts, private_gradients
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from tests.support.jobs import job_toml, loaded
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached

EPSILON, DELTA, ROWS, STEPS, RUNS = 2.0, 0.001, 40, 2, 3000
RATE = Fraction(1, 2)
PRIVACY = f"""
[privacy]
epsilon = {EPSILON}
delta = {DELTA}
neighbours = "zeroed"
clip = 2
"""
START = {"weight": np.array([[0.0, 0.0, 4.0]]), "bias": np.array([0.0])}
"""With these the canary's residual is nearly 1: the most that a row can do."""
NOBODY = -1.0
"""The label of a row that contributes nothing."""


def audited_job(folder: Path) -> Job:
    train = (
        f"epochs = {STEPS}\nbatch_size = {ROWS}\nguard = false\n"
        f"optimizer = {{ learning_rate = {float(RATE)} }}"
    )
    rows = {"ann": ROWS, "bob": ROWS}
    return loaded(folder, job_toml("abc", train=train, rows=rows, more=PRIVACY))


def rows_with(job: Job, canary: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two columns, and the canary, alone in the third."""
    rng = np.random.default_rng(5)
    inputs = np.zeros((ROWS, 3))
    inputs[:, :2] = rng.uniform(-0.5, 0.5, (ROWS, 2))
    inputs[0] = [0, 0, float(input_norm(job)) - 1e-5]
    labels = (inputs[:, 0] > 0).astype(float)
    labels[0] = 0.0 if canary else NOBODY
    return torch.from_numpy(inputs), torch.from_numpy(labels)


def loss_of(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    functional = torch.nn.functional.binary_cross_entropy_with_logits
    return functional(outputs[:, 0], labels.clamp_min(0), weight=(labels >= 0).double())


def guesses(job: Job, canary: bool, curator: Curator, runs: int) -> np.ndarray:
    """What the attacker sees of each training."""
    inputs, labels = rows_with(job, canary)
    found = []
    for _ in range(runs):
        module = torch.nn.Linear(3, 1).double()
        module.load_state_dict({name: torch.from_numpy(x) for name, x in START.items()})
        pasts: Pasts = {}
        for _ in range(STEPS):
            private_gradients(job, module, loss_of, inputs, labels, curator, pasts)
            with torch.no_grad():
                for parameter in module.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=float(RATE))
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        found.append(along_the_canary(state))
    return np.array(found)


def along_the_canary(state: Mapping[str, np.ndarray]) -> float:
    """How far the weights went along the canary's gradient, which is 1 times its inputs."""
    return -float(state["weight"][0, 2] * np.sqrt(3) + state["bias"][0])


def lower_bound(present: np.ndarray, absent: np.ndarray) -> float:
    """The ε that guesses between two Gaussians refute with 99 % certainty, at DELTA.

    A threshold halfway between the two is chosen on one half; error rates on the other give the
    least distance μ of two Gaussians of variance 1 that can be told apart so well.
    """
    half = len(present) // 2
    threshold = (present[:half].mean() + absent[:half].mean()) / 2
    hits, misses = (int((x[half:] > threshold).sum()) for x in (present, absent))
    tests = len(present) - half
    least_right = beta.ppf(0.005, hits, tests - hits + 1)
    most_wrong = beta.ppf(0.995, misses + 1, tests - misses)
    mu = norm.ppf(least_right) - norm.ppf(most_wrong)
    if mu <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        first = norm.cdf(mu / 2 - epsilon / mu)
        return float(first - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - DELTA)

    return float(brentq(excess, 0, 60)) if excess(0) > 0 else 0.0


def keystream(number: int) -> Callable[[int], Any]:
    stream = Stream(number.to_bytes(32, "big"))
    stream.begin_step(0)
    return stream.octets


class Quieter(Curator):
    """A curator that adds a quarter of the noise that the budget demands."""

    def noise(self, job: Job, count: int, bits: int) -> torch.Tensor:
        return super().noise(job, count, bits) / 4


def over_shares(job: Job, canary: bool, seed: int) -> float:
    inputs, labels = rows_with(job, canary)
    # A row that contributes nothing: 0 weighs it, as over shares there are no labels of nobody.
    weights = (labels >= 0).double().reshape(-1, 1)
    start = {name: encode(values, job.fraction_bits) for name, values in START.items()}

    def program(role: Role) -> Any:
        with attached(role, job.fraction_bits):
            model = Network(layers_of((3, 1)), start)
            named = model.parameters
            take = NoisySums(Noise(deviation(job)))
            trainer = Trainer(model, BinaryCrossEntropy(), named, SGD(named), take=take)
            for number in range(STEPS):
                role.begin_step(number + 1)
                x, y, w = (
                    MaskedTensor(values, src=0)
                    for values in (inputs, labels.clamp_min(0).reshape(-1, 1), weights)
                )
                trainer.step(x, y, RATE, w)
                role.finish()
            return [shares_of(named[name].masked()) for name in START]

    parts = zip(*run_lockstep(program, 2, seed), strict=True)
    words = [decode(combine_masked(part), job.fraction_bits) for part in parts]
    return along_the_canary(dict(zip(START, words, strict=True)))


@pytest.mark.slow
def test_a_canary_stays_within_the_budget(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    job = audited_job(tmp_path)
    curator = Curator(central=True, draw=keystream(1))
    present, absent = (guesses(job, canary, curator, RUNS) for canary in (True, False))
    found = lower_bound(present, absent)
    assert 0.4 * EPSILON < found < EPSILON
    # The attack would notice a quarter of the noise.
    quiet = Quieter(central=True, draw=keystream(2))
    without = lower_bound(*(guesses(job, canary, quiet, RUNS) for canary in (True, False)))
    assert without > EPSILON


@pytest.mark.slow
def test_trainings_over_shares_are_spread_as_in_the_clear(tmp_path: Path) -> None:
    job = audited_job(tmp_path)
    curator = Curator(draw=keystream(3))
    for canary in (True, False):
        clear = guesses(job, canary, curator, 500)
        shared = np.array([over_shares(job, canary, seed) for seed in range(1, 25)])
        spread = clear.std()
        assert abs(shared.mean() - clear.mean()) < 4 * spread / np.sqrt(len(shared))
        assert 0.5 < shared.std() / spread < 1.7
