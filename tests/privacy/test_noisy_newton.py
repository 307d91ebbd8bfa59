"""Noise on the sums of Newton steps: lifted out of runs over shares, with each coalition's eyes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.jobs.job import Job
from mpc_train.regression.equations import equations, prepared
from mpc_train.regression.noise import noise_of, variance_of
from mpc_train.regression.scales import BLOCK_ROWS, PREDICTOR_BITS
from mpc_train.regression.settings import family_of, sizes_of
from protocols.arrays import Words
from protocols.noise import summands
from protocols.noise.summands import noisy_first, noisy_first_symmetric
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from protocols.shares.masked import Additive
from tests.privacy.test_noise import VARIANCE, held, moments_hold, own_noise, total_of
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.noisy_newton import fitted, noisy_job, noisy_rows, outcome_at, without_noise
from tests.support.privacy import same_views
from tests.support.transcript_first import run_scripted

SIZE = 150


def lifted(evaluators: int) -> tuple[Words, Words]:
    """The noise of all nodes together on [3, SIZE, SIZE] of symmetric matrices, and on
    [3, SIZE², 1]."""
    x = np.arange(3 * SIZE * SIZE, dtype=np.int64).reshape(3, SIZE, SIZE)

    def program(role: Role) -> list[Words | None]:
        z = secret(role, x).shares()
        tall = z.reshape(3, SIZE * SIZE, 1)
        return [held(noisy_first_symmetric(z, VARIANCE)), held(noisy_first(tall, VARIANCE))]

    results = run_lockstep(program, evaluators)
    both = [total_of(list(parts)) for parts in zip(*results, strict=True)]
    return both[0] - x, both[1] - x.reshape(3, -1, 1)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_symmetric_noise_has_the_law(evaluators: int) -> None:
    """2V on the diagonal and V beside it, mirrored, in the first block alone."""
    matrix, column = lifted(evaluators)
    assert (matrix[1:] == 0).all() and (column[1:] == 0).all()
    first = matrix[0]
    assert (first == first.T).all()
    above = first[np.triu_indices(SIZE, 1)]
    moments_hold(above, float(VARIANCE))
    moments_hold(np.diag(first), 2 * float(VARIANCE))
    moments_hold(column[0].reshape(-1), 2 * float(VARIANCE))
    counts = np.bincount(above & 15, minlength=16)
    assert ((counts - len(above) / 16) ** 2 / (len(above) / 16)).sum() < 15 + 5 * np.sqrt(30)


def test_what_remains_of_symmetric_noise_for_each_coalition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Less what its members drew, at least V on the diagonal and V/2 beside it."""
    kept = own_noise(monkeypatch)
    first = lifted(2)[0][0]
    above = np.triu_indices(SIZE, 1)
    for members, variance in (([], 2), ([None], 1), ([0], 1.5), ([1], 1.5)):
        rest, middle = first[above].copy(), np.diag(first).copy()
        for member in members:
            diagonal, beside, _ = kept[member]
            rest, middle = rest - beside, middle - diagonal
        moments_hold(rest, variance / 2 * float(VARIANCE))
        moments_hold(middle, variance * float(VARIANCE))


def noise_of_run(
    job: Job, monkeypatch: pytest.MonkeyPatch, seed: int = 1
) -> dict[str, list[np.ndarray]]:
    """The noise of all nodes on each sum of a training, in the units of `Noise`."""
    kept: dict[int | None, list[tuple[str, Any, Any]]] = {}
    for name in ("noisy", "noisy_first", "noisy_first_symmetric"):
        add = getattr(summands, name)

        def lifting(z: Additive, variance: Fraction, add: Any = add, name: str = name) -> Additive:
            found: Additive = add(z, variance)
            kept.setdefault(z.role.index, []).append((name, z, found))
            return found

        monkeypatch.setattr(summands, name, lifting)
    fitted(job, *noisy_rows(job), seed=seed)
    monkeypatch.undo()
    sums: dict[str, list[np.ndarray]] = {}
    for parts in zip(*kept.values(), strict=True):
        exact, changed = (total_of([held(part[place]) for part in parts]) for place in (1, 2))
        sums.setdefault(parts[0][0], []).append(changed - exact)
    return sums


@pytest.mark.parametrize("kind", ["linear", "logistic", "poisson"])
def test_the_noise_of_a_training_has_the_law(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sum of each step has the deviation that is accounted for, on the grid of its words; a
    linear model has both sums once."""
    features, steps = 11, 2
    job = noisy_job(tmp_path, kind, features=features, steps=steps, l2="90", rows=200)
    noise, sums = noise_of(job), noise_of_run(job, monkeypatch)
    assert noise is not None
    times = 1 if kind == "linear" else steps
    assert {name: len(found) for name, found in sums.items()} == {
        "noisy_first": times,
        "noisy_first_symmetric": times,
    } | ({"noisy": 1} if kind == "poisson" else {})
    sizes = sizes_of(job)
    gradient = np.concatenate([found[0].reshape(-1) for found in sums["noisy_first"]])
    bits = sizes.input_bits + PREDICTOR_BITS
    near(gradient, variance_of(noise.gradient, bits))
    matrices = [found[0] for found in sums["noisy_first_symmetric"]]
    bits = 2 * sizes.input_bits + sizes.weight_bits
    above = np.triu_indices(features + 1, 1)
    near(np.concatenate([m[above] for m in matrices]), variance_of(noise.information, bits) / 2)
    near(np.concatenate([np.diag(m) for m in matrices]), variance_of(noise.information, bits))
    if kind == "poisson":
        (total,) = sums["noisy"]
        assert 0 < abs(total) < 6 * np.sqrt(2 * float(variance_of(noise.labels, PREDICTOR_BITS)))


def near(numbers: Words, variance: Fraction) -> None:
    """Numbers of variance 2V: within six standard errors."""
    found = float((numbers.astype(np.float64) ** 2).mean()) / (2 * float(variance))
    assert abs(found - 1) < 6 * np.sqrt(2 / len(numbers))


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_a_matrix_and_its_mirror_image_have_no_difference_without_noise(
    kind: str, tmp_path: Path
) -> None:
    """Of two blocks of rows: each element is rounded by itself, and noise is only in the first. A
    difference of 2 units would be there for some rows of the second, and for others never."""
    job = noisy_job(tmp_path, kind, l2="9", rows=BLOCK_ROWS + 76)
    sizes, noise, (inputs, labels) = sizes_of(job), noise_of(job), noisy_rows(job)
    columns, f = inputs.shape[1] + 1, job.fraction_bits

    def program(role: Role) -> Any:
        rows = secret(role, encode(inputs, f)), secret(role, encode(labels.reshape(-1, 1), f))
        data = prepared(*rows, np.arange(job.rows), f, sizes)
        found = equations(
            family_of(job), data, secret(role, np.zeros((columns, 1), np.int64)), sizes,
            information=True, squares=False, noise=noise,
        ).information  # fmt: skip
        role.finish()
        assert found is not None
        return shares_of(found)

    matrix = combine_masked(run_lockstep(program, 2))
    assert np.array_equal(matrix, matrix.T)


def sizes_sent(net: LockstepLoopback) -> dict[Any, list[int]]:
    return {
        pair: [len(payload) for _, payload in frames] for pair, frames in net.transcript.items()
    }


@pytest.mark.parametrize(("kind", "rounds"), [("linear", 8), ("logistic", 77), ("poisson", 79)])
def test_noise_costs_no_round_and_no_byte(
    kind: str, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one more than the same program without it. Beside a job without [privacy] a step of a
    linear model has two rounds less, and others have four more: coefficients stay bounded."""
    job = noisy_job(tmp_path, kind, steps=2, l2="90", rows=64)
    rows = noisy_rows(job)
    noisy = LockstepLoopback()
    found = fitted(job, *rows, net=noisy)
    without_noise(monkeypatch)
    exact = LockstepLoopback()
    other = fitted(job, *rows, net=exact)
    assert sizes_sent(noisy) == sizes_sent(exact)
    assert found.rounds == other.rounds
    assert found.rounds[1] - found.rounds[0] == rounds
    assert not np.array_equal(found.coefficients, other.coefficients)


@pytest.mark.parametrize(
    ("kind", "evaluators", "corrupted"),
    [
        ("linear", 2, (1,)),
        ("logistic", 2, (0,)),
        pytest.param("poisson", 2, (1,), marks=pytest.mark.slow),
        pytest.param("logistic", 3, (0, 2), marks=pytest.mark.slow),
    ],
)
def test_noisy_steps_look_the_same_for_all_data(
    kind: str, evaluators: int, corrupted: tuple[int, ...], tmp_path: Path
) -> None:
    """Rows of a rule, rows that are all alike, and none but zeros: with the view of corrupted
    evaluators drawn first, their own noise included."""
    more = "" if evaluators == 2 else 'evaluators = ["ann", "bob", "cleo"]'
    job = noisy_job(tmp_path, kind, steps=2, l2="90", rows=48, features=2, job=more)
    owner = next(i for i in range(evaluators) if i not in corrupted)
    views, found = [], []
    for coins in range(3):
        inputs, labels = noisy_rows(job)
        inputs = inputs[:1].repeat(len(inputs), 0) if coins == 1 else inputs * (coins == 0)
        labels = labels if coins < 2 else labels * 0

        def program(role: Role, inputs: Any = inputs, labels: Any = labels) -> Any:
            return outcome_at(role, job, inputs, labels, lambda number: None, src=owner)

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        views.append(view)
        found.append(combine_masked([parts[0] for parts in results]).ravel())
    same_views(views)
    assert not np.array_equal(found[0], found[1])
