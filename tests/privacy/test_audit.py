"""An audit of private training by a canary: an attacker guesses whether one row took part.

The row is as bad as a row can be: clipped to the norm exactly, in a direction that no other row has
(Jagielski, Ullman, Oprea, NeurIPS 2020). Many trainings with it and without it, with the noise that
the strongest coalition does not know, give a lower bound of ε by error rates (Clopper and Pearson;
Nasr et al., USENIX Security 2023, for Gaussian mechanisms). It has to stay below the ε of the job,
and exceed it if noise is for one epoch only, or if bands count as independent noise. The attacker
sees the noisy sum of every step, and with bands undoes what makes the noise of steps depend on one
another. Trainings over shares give nothing else: what a handful of them leaves is spread as in the
clear. Of Newton steps the attacker sees the noisy sums; what the canary adds to them is taken from
sums over shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from mpc_train.privacy.accounting import privacy_of
from mpc_train.privacy.clip_plan import deviation, input_norm
from mpc_train.privacy.newton import label_bound, releases
from mpc_train.regression.equations import equations, prepared
from mpc_train.regression.noise import noise_of
from mpc_train.regression.scales import PREDICTOR_BITS
from mpc_train.regression.settings import family_of, sizes_of
from mpc_train.training.losses import BinaryCrossEntropy
from mpc_train.training.optimizers.row_clipping import Noise, NoisySums
from mpc_train.training.optimizers.sgd import SGD
from mpc_train.training.trainer import Trainer
from mpc_train.twin.private import Curator, Pasts, private_gradients
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.noise.banded import PRECISION, bands, square
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from tests.support.jobs import job_toml, loaded
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.noisy_newton import noisy_job, noisy_rows
from tests.support.tensors import attached

EPSILON, DELTA, ROWS, EPOCHS, RUNS = 2.0, 0.001, 40, 2, 60_000
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


def audited_job(folder: Path, count: int) -> Job:
    """With so many bands, and at least as many steps in an epoch."""
    train = (
        f"epochs = {EPOCHS}\nbatch_size = {ROWS}\nguard = false\n"
        f"optimizer = {{ learning_rate = {float(RATE)} }}"
    )
    rows = {"ann": ROWS * count, "bob": ROWS * count}
    more = PRIVACY + (f"bands = {count}\n" if count > 1 else "")
    return loaded(folder, job_toml("abc", train=train, rows=rows, more=more))


def turns(job: Job) -> list[bool]:
    """Of each audited step, whether the canary's place is in its batch: once in each epoch, as many
    steps apart as there are bands, in which its changes add up most."""
    count = privacy_of(job).bands
    return [number % count == 0 for number in range(EPOCHS * count)]


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
    """Of each output by itself, added up: each is a training of its own."""
    functional = torch.nn.functional.binary_cross_entropy_with_logits
    labels = labels[:, None].expand_as(outputs)
    weight = (labels >= 0).double()
    return functional(outputs, labels.clamp_min(0), weight=weight, reduction="sum") / len(outputs)


def guesses(job: Job, canary: bool, curator: Curator, runs: int) -> np.ndarray:
    """What the attacker makes of each training, float64[runs]: all of them side by side, as the
    outputs of one layer, with noise of their own."""
    batches = {here: rows_with(job, canary and here) for here in (True, False)}
    module = torch.nn.Linear(3, runs).double()
    module.load_state_dict({name: torch.from_numpy(x.repeat(runs, 0)) for name, x in START.items()})
    pasts: Pasts = {}
    seen = [along_the_canary(START).repeat(runs)]
    for here in turns(job):
        inputs, labels = batches[here]
        private_gradients(job, module, loss_of, inputs, labels, curator, pasts)
        with torch.no_grad():
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=float(RATE))
        seen.append(along_the_canary({n: x.numpy() for n, x in module.state_dict().items()}))
    return guess(job, seen)


def along_the_canary(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far the weights of each output went along the canary's gradient, which is 1 times its
    inputs."""
    found: np.ndarray = -(state["weight"][:, 2] * np.sqrt(3) + state["bias"])
    return found


def guess(job: Job, seen: Sequence[np.ndarray]) -> np.ndarray:
    """How much the steps between these weights look like those with the canary: times C, by which
    their noise is independent, along what C makes of the canary's steps."""
    matrix = sum(
        np.eye(len(seen) - 1, k=-j) * part / PRECISION
        for j, part in enumerate(bands(privacy_of(job).bands))
    )
    found: np.ndarray = (matrix @ np.array(turns(job))) @ (matrix @ np.diff(seen, axis=0))
    return found


def lower_bound(present: np.ndarray, absent: np.ndarray, delta: float = DELTA) -> float:
    """The ε that guesses between two Gaussians refute with 99 % certainty, at δ.

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
        return float(first - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0, 60)) if excess(0) > 0 else 0.0


def keystream(number: int) -> Callable[[int], Any]:
    stream = Stream(number.to_bytes(32, "big"))
    stream.begin_step(0)
    return stream.octets


@dataclass(frozen=True)
class Quieter(Curator):
    """A curator that adds this part of the noise that the budget demands."""

    part: float = 1.0

    def noise(self, job: Job, count: int, bits: int) -> torch.Tensor:
        return super().noise(job, count, bits) * self.part


def over_shares(job: Job, canary: bool, seed: int) -> np.ndarray:
    batches = {here: rows_with(job, canary and here) for here in (True, False)}
    start = {name: encode(values, job.fraction_bits) for name, values in START.items()}

    def program(role: Role) -> Any:
        with attached(role, job.fraction_bits):
            model = Network(layers_of((3, 1)), start)
            named = model.parameters
            take = NoisySums(Noise(deviation(job), privacy_of(job).bands))
            trainer = Trainer(model, BinaryCrossEntropy(), named, SGD(named), take=take)
            seen = []
            for number, here in enumerate(turns(job)):
                inputs, labels = batches[here]
                # A row that contributes nothing: 0 weighs it; over shares nobody has no label.
                weights = (labels >= 0).double().reshape(-1, 1)
                role.begin_step(number + 1)
                x, y, w = (
                    MaskedTensor(values, src=0)
                    for values in (inputs, labels.clamp_min(0).reshape(-1, 1), weights)
                )
                trainer.step(x, y, RATE, w)
                seen.append([shares_of(named[name].masked()) for name in START])
                role.finish()
            return seen

    found = [along_the_canary(START)]
    for parts in zip(*run_lockstep(program, 2, seed), strict=True):
        words = [combine_masked(part) for part in zip(*parts, strict=True)]
        state = [decode(each, job.fraction_bits) for each in words]
        found.append(along_the_canary(dict(zip(START, state, strict=True))))
    return guess(job, found)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_a_canary_stays_within_the_budget(count: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    job = audited_job(tmp_path, count)
    curator = Curator(central=True, draw=keystream(1))
    present, absent = (guesses(job, canary, curator, RUNS) for canary in (True, False))
    found = lower_bound(present, absent)
    assert 0.8 * EPSILON < found < EPSILON
    # The attack notices noise for one epoch only, or for bands that count as independent noise.
    part = EPOCHS**-0.5 if count == 1 else float(square(count)) ** -0.5
    quiet = Quieter(central=True, draw=keystream(2), part=part)
    without = lower_bound(guesses(job, True, quiet, RUNS), guesses(job, False, quiet, RUNS))
    print(f"{count} bands: at least {found:.2f} of {EPSILON}, with less noise {without:.2f}")
    assert without > EPSILON


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_trainings_over_shares_are_spread_as_in_the_clear(count: int, tmp_path: Path) -> None:
    job = audited_job(tmp_path, count)
    curator = Curator(draw=keystream(3))
    for canary in (True, False):
        clear = guesses(job, canary, curator, 500)
        shared = np.array([over_shares(job, canary, seed)[0] for seed in range(1, 25)])
        spread = clear.std()
        assert abs(shared.mean() - clear.mean()) < 4 * spread / np.sqrt(len(shared))
        assert 0.5 < shared.std() / spread < 1.7


def added_by_the_canary(job: Job) -> list[tuple[np.ndarray, Fraction, int]]:
    """What a row as long as it may be, with a label as large, adds to the sums of all steps, at
    coefficients of 0: in coordinates in which all noise of a sum has one deviation; with that, and
    the bits of its grid."""
    sizes, noise = sizes_of(job), noise_of(job)
    assert noise is not None
    inputs, labels = noisy_rows(job)
    inputs[0] = 0
    inputs[0, 0] = float(input_norm(job)) - 1e-5
    labels[0] = float(label_bound(job))

    def program(role: Role, rows: np.ndarray) -> Any:
        x, y = (
            secret(role, encode(values, job.fraction_bits))
            for values in (inputs, labels.reshape(-1, 1))
        )
        data = prepared(x, y, rows, job.fraction_bits, sizes)
        start = secret(role, np.zeros((sizes.bounds.columns, 1), np.int64))
        found = equations(family_of(job), data, start, sizes, information=True, squares=False)
        assert found.information is not None
        role.finish()
        return [shares_of(part) for part in (found.gradient, found.information)]

    def sums(rows: np.ndarray) -> list[np.ndarray]:
        parts = zip(*run_lockstep(lambda role: program(role, rows), 2), strict=True)
        scales = (
            (sizes.gradient_bits, sizes.gradient),
            (sizes.moment_bits, sizes.diagonal),
        )
        return [
            np.ldexp(combine_masked(list(part)).astype(float), sizes.count + more - bits)
            for part, (bits, more) in zip(parts, scales, strict=True)
        ]

    rows = np.arange(job.rows)
    gradient, matrix = (a - b for a, b in zip(sums(rows), sums(rows[1:]), strict=True))
    places = np.triu_indices(len(matrix))
    information = matrix[places] * np.where(places[0] == places[1], 1, np.sqrt(2))
    whole = sizes.input_bits + PREDICTOR_BITS
    of_step = [
        (gradient.reshape(-1), noise.gradient, whole),
        (information, noise.information, 2 * sizes.input_bits + sizes.weight_bits),
    ]
    start = [(labels[:1], noise.labels, PREDICTOR_BITS)] if job.model.kind == "poisson" else []
    return of_step * (releases(job) // 2) + start


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("linear", 0.85), ("logistic", 0.6), ("poisson", 0.5)])
def test_a_canary_in_the_sums_of_newton_steps_stays_within_the_budget(
    kind: str, least: float, tmp_path: Path
) -> None:
    """A linear regression's canary is as bad as its bound; those of the others have to have a
    residual or a weight that is largest, and at coefficients of 0 neither is."""
    job = noisy_job(tmp_path, kind, epsilon=str(EPSILON), l2="9")
    added, delta = added_by_the_canary(job), float(privacy_of(job).small_delta)

    def seen(canary: bool, curator: Curator, part: float) -> np.ndarray:
        """Of each run, how much its sums look like those with the canary, in all steps."""
        found = np.zeros(RUNS)
        for change, sigma, bits in added:
            for size in change:
                noise = curator.drawn(job, sigma, RUNS, bits) * part
                found += size * (size * canary + noise) / float(sigma) ** 2
        return found

    def bound(number: int, part: float = 1.0) -> float:
        curator = Curator(central=True, draw=keystream(number))
        return lower_bound(seen(True, curator, part), seen(False, curator, part), delta)

    found, without = bound(4), bound(5, 0.5)
    print(f"{kind}: at least {found:.2f} of {EPSILON}, with half the noise {without:.2f}")
    assert least * EPSILON < found < EPSILON
    assert without > EPSILON
