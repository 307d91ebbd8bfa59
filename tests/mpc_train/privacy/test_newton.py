"""What one unit changes in the sums of Newton steps, against sums that are computed over shares and
against the definition, on rows that are as large as a job allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import exp, sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.privacy import newton
from mpc_train.privacy.accounting import mechanisms, noise_multiplier, sampler_fits
from mpc_train.privacy.clip_plan import input_norm
from mpc_train.privacy.newton import changes_of, least_ridge
from mpc_train.regression import rows, scales
from mpc_train.regression.equations import equations, prepared
from mpc_train.regression.noise import Noise, noise_of, variance_of
from mpc_train.regression.scales import COEFFICIENT_BITS, PREDICTOR_BITS
from mpc_train.regression.settings import family_of, sizes_of
from protocols.arrays import Words
from protocols.noise.summands import largest
from protocols.roles.role import Role
from protocols.shares.masked import Additive
from tests.mpc_train.privacy.test_accounting import of_formula
from tests.support.lockstep import run_lockstep
from tests.support.loopback import secret
from tests.support.noisy_newton import noisy_job

KINDS = ("linear", "logistic", "poisson")


@dataclass
class Exact:
    """Stands in for `Noise`: keeps what a node holds of the exact sums."""

    kept: dict[str, Words | None] = field(default_factory=dict)

    def on_gradient(self, blocks: Additive, bits: int) -> Additive:
        return self._keep("gradient", blocks, bits)

    def on_information(self, blocks: Additive, bits: int) -> Additive:
        return self._keep("information", blocks, bits)

    def _keep(self, name: str, blocks: Additive, bits: int) -> Additive:
        held = blocks.dealt if blocks.role.is_dealer else blocks.part.get()
        self.kept[f"{name} {bits}"] = held
        return blocks


def sums_over_shares(job: Job, x: Words, y: Words, at: np.ndarray) -> dict[str, np.ndarray]:
    """The exact sums g and H of these rows, as they are before noise, in their units."""
    family, sizes, count = family_of(job), sizes_of(job), np.arange(len(x))

    def program(role: Role) -> dict[str, Words | None]:
        exact: Any = Exact()
        inputs, labels = secret(role, x), secret(role, y.reshape(-1, 1), 1)
        words = np.rint(at.reshape(-1, 1) * 2.0**COEFFICIENT_BITS).astype(np.int64)
        data = prepared(inputs, labels, count, job.fraction_bits, sizes)
        with np.errstate(over="ignore"):
            equations(
                family, data, secret(role, words), sizes,
                information=True, squares=False, noise=exact,
            )  # fmt: skip
            role.finish()
        kept: dict[str, Words | None] = exact.kept
        return kept

    results = run_lockstep(program, len(job.evaluators))
    found = {}
    for name in results[0]:
        parts = [result[name] for result in results if result[name] is not None]
        words = sum(parts[1:], parts[0]).sum(axis=0)
        found[name.split()[0]] = words / 2.0 ** int(name.split()[1])
    return found


def worst_rows(job: Job, seed: int) -> tuple[Words, Words]:
    """Rows of the largest norm in any direction, also along one axis, with extreme labels."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(24, job.widths[0]))
    inputs[:6] = np.eye(job.widths[0])[generator.integers(0, job.widths[0], 6)]
    inputs *= float(input_norm(job)) / np.linalg.norm(inputs, axis=1)[:, None]
    bound = float(newton.label_bound(job))
    ends = [-bound, bound] if job.model.kind == "linear" else [0, bound]
    labels = generator.choice(ends, size=24)
    scale = 2.0**job.fraction_bits
    return (np.trunc(values * scale).astype(np.int64) for values in (inputs, labels))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_changes_a_sum_by_more(kind: str, tmp_path: Path) -> None:
    """Sums with one row less, over shares, at coefficients that make residuals and weights small,
    large, and as large as they may be; the bound is nearly reached."""
    job = noisy_job(tmp_path, kind, rows=24, l2="90")
    changes = changes_of(job)
    most = {"gradient": float(changes.gradient), "information": float(changes.information)}
    reached = dict.fromkeys(most, 0.0)
    limit = job.fixed_point.activation_limit
    for seed, size in enumerate((0.0, 1.0, limit)):
        x, y = worst_rows(job, seed)
        signs = np.random.default_rng(seed).choice([-1, 1], job.widths[0] + 1)
        at = size * signs * (0 if kind == "linear" else 1)
        whole = sums_over_shares(job, x, y, at)
        for row in (0, 7):
            rest = sums_over_shares(job, np.delete(x, row, 0), np.delete(y, row), at)
            for name, bound in most.items():
                change = float(np.linalg.norm(whole[name] - rest[name]))
                assert change <= bound
                reached[name] = max(reached[name], change / bound)
    assert min(reached.values()) > 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 6), st.integers(2, 5))
def test_a_replaced_unit_changes_a_matrix_by_root_two(seed: int, size: int, count: int) -> None:
    """‖A − B‖ of two sums of `count` positive semidefinite parts, in Frobenius norm."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        x = generator.normal(size=(count, size)) ** 3
        x /= np.maximum(np.linalg.norm(x, axis=1), 1e-9)[:, None]
        parts.append(x.T @ (generator.random(count)[:, None] * x))
    assert np.linalg.norm(parts[0] - parts[1]) <= float(newton.ROOT_OF_TWO) * count
    assert sqrt(2) < newton.ROOT_OF_TWO < sqrt(2) + 1e-8


def private(job: Job, **changed: object) -> Job:
    """The job with another `[privacy]`, unchecked."""
    assert job.privacy
    return msgspec.structs.replace(job, privacy=msgspec.structs.replace(job.privacy, **changed))


@pytest.mark.parametrize(
    ("kind", "residual", "weight"),
    [("linear", 2, 1), ("logistic", 1, 0.25), ("poisson", 8, exp(2))],
)
def test_the_bounds_are_those_of_the_definition(
    kind: str, residual: float, weight: float, tmp_path: Path
) -> None:
    """By hand: three rows of norm 2 each, or one of norm 6, labels up to 2 and 8, means to e^2; and
    more by what computed residuals and weights may have more."""
    job = noisy_job(tmp_path, kind, l2="90")
    assert newton.most_residual(job) >= residual + newton.MORE_RESIDUAL
    more = 0.0 if kind == "linear" else float(newton.MORE_WEIGHT)
    more += weight * 2**-19 * (kind == "poisson")
    for rows_of_unit, norm in ((1, 6), (3, 2)):
        for neighbours, twice, root in (("zeroed", 1, 1), ("replaced", 2, sqrt(2))):
            one = private(job, clip=Fraction(6), most_rows=rows_of_unit, neighbours=neighbours)
            found = changes_of(one)
            assert float(found.gradient) == pytest.approx(twice * 6 * residual, rel=2e-3)
            matrix = root * rows_of_unit * norm**2 * weight
            assert float(found.information) == pytest.approx(matrix, rel=6e-3)
            assert found.information >= matrix and found.gradient >= twice * 6 * residual
            below = 2 * (root > 1) * float(newton.BELOW_ZERO)
            least = rows_of_unit * norm**2 * (root * (weight + more) + below)
            assert float(found.information) > least * (1 - 1e-9)
            labels = 8 * rows_of_unit if kind == "poisson" else 0
            assert float(found.labels) == pytest.approx(labels, rel=1e-3)


def test_a_mean_beyond_every_label_bounds_the_residual(tmp_path: Path) -> None:
    """Counts up to 2 and means up to e^2 = 7.39: a row of count 0 changes it by its mean."""
    job = private(noisy_job(tmp_path, "poisson", l2="90"), clip=Fraction(6), clip_label=2)
    assert float(changes_of(job).gradient) == pytest.approx(6 * exp(2), rel=2e-3)
    assert changes_of(job).gradient >= 6 * exp(2)


def test_sums_have_room_for_any_noise(tmp_path: Path) -> None:
    """Of the law that a training draws from, on the grid of its words."""
    job = noisy_job(tmp_path, "logistic", l2="90")
    noise, sizes = noise_of(job), sizes_of(job)
    assert noise is not None
    for deviation, bits, room in (
        (noise.gradient, sizes.input_bits + PREDICTOR_BITS, sizes.bounds.gradient_noise),
        (
            noise.information,
            2 * sizes.input_bits + sizes.weight_bits,
            sizes.bounds.information_noise,
        ),
    ):
        most = largest(len(job.evaluators), variance_of(deviation, bits)) / (1 << bits)
        assert most <= room < most * Fraction(3, 2)


def test_each_sum_is_paid_for(tmp_path: Path) -> None:
    """A linear model once, whatever its steps; others in each step, and counts at the start."""
    for kind, steps, paid in (
        ("linear", 1, 2),
        ("linear", 9, 2),
        ("logistic", 3, 6),
        ("poisson", 4, 9),
    ):
        job = noisy_job(tmp_path, kind, l2="90", steps=steps)
        assert mechanisms(job) == paid
        assert job.privacy
        z = float(noise_multiplier(job)) / (1 + float(newton.ROUNDED_PART))
        delta = float(job.privacy.small_delta)
        assert 8 * 0.998 < of_formula(z, paid, delta) <= 8
        assert newton.numbers(job) == paid // 2 * (4 + 10) + paid % 2
    job = noisy_job(tmp_path, "logistic", l2="90")
    assert total_steps(job) == 3 and sampler_fits(job)
    noise, changes = noise_of(job), changes_of(job)
    assert noise == Noise(
        noise_multiplier(job) * changes.gradient,
        noise_multiplier(job) * changes.information,
        Fraction(0),
    )


def test_constants_are_those_of_the_arithmetic() -> None:
    """Margins of computed weights and residuals, which `regression` rounds."""
    unit = Fraction(1, 1 << newton.LEAST_BITS)
    assert rows.MIN_WEIGHT + unit < newton.MORE_WEIGHT
    assert Fraction(1, 1 << 14) + 16 * Fraction(1, 1 << PREDICTOR_BITS) < newton.MORE_RESIDUAL
    assert Fraction(1, 1 << 14) - rows.MIN_WEIGHT + unit < newton.BELOW_ZERO
    assert scales.MIN_INPUT_BITS <= newton.LEAST_BITS


def test_the_ridge_is_enough_and_not_far_from_what_is_needed(tmp_path: Path) -> None:
    """Matrices with the noise of all nodes, drawn here: none has an eigenvalue below minus the
    ridge, and half of it would not do for many inputs."""
    generator, size = np.random.default_rng(1), 40
    job = noisy_job(tmp_path, "logistic", l2="90", features=size - 1, rows=4000)
    ridge = float(least_ridge(job, Fraction(3)))
    lowest = []
    for _ in range(200):
        drawn = generator.normal(size=(size, size)) * 3 * sqrt(2)
        lowest.append(-np.linalg.eigvalsh((drawn + drawn.T) / 2)[0] / 4000)
    assert max(lowest) < ridge < 2.2 * np.mean(lowest)
    assert least_ridge(job, Fraction(3, 1000)) == pytest.approx(ridge / 1000, rel=1e-2)
