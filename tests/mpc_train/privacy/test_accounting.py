"""The accounting is the library's on random jobs, and holds for the noise that is really added.

The formula of Balle and Wang, written anew here, is the first reference; the library's
privacy-loss distributions bound from below how much an ε could be, and its zCDP from above.
Discrete noise is computed point by point.
"""

import sys
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from math import comb, exp, inf, log, pi, sqrt

import dp_accounting
import msgspec
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from mpc_train.admission.load import load_job
from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.jobs.reveal import Noise
from mpc_train.privacy import accounting, costs, library
from mpc_train.privacy.accounting import (
    MARGIN,
    STEPS_OF_ONE,
    epsilon_of_training,
    mechanisms,
    noise_multiplier,
    sensitivity,
)
from protocols.noise import banded
from protocols.noise.gaussian import table
from tests.support.jobs import write_job
from tests.support.private import PRIVATE

STEP = 1 / STEPS_OF_ONE


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return load_job(write_job(tmp_path_factory.mktemp("job"), PRIVATE))


def promising(job: Job, epsilon: object, delta: object, epochs: int, **more: object) -> Job:
    assert job.privacy
    privacy = msgspec.structs.replace(
        job.privacy, epsilon=Decimal(str(epsilon)), small_delta=Decimal(str(delta)), **more
    )
    train = msgspec.structs.replace(job.train, epochs=epochs)
    return msgspec.structs.replace(job, privacy=privacy, train=train)


def of_formula(multiplier: float, times: int, delta: float) -> float:
    """ε of `times` Gaussian mechanisms on a grid, by Balle and Wang (ICML 2018, theorem 8)."""
    mu = sqrt(times / (1 - float(accounting.GRID_PART))) / multiplier

    def excess(epsilon: float) -> float:
        high = norm.logcdf(mu / 2 - epsilon / mu)
        low = epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return high + np.log1p(-np.exp(min(low - high, -1e-16))) - log(delta)

    return float(brentq(excess, 0, 1000, xtol=1e-13)) if excess(0) > 0 else 0.0


JOBS = st.tuples(
    st.decimals("0.01", "20", places=3),
    st.integers(2, 12).map(lambda power: Decimal(1).scaleb(-power)),
    st.integers(1, 2000),
)


@settings(max_examples=25, deadline=None)
@given(JOBS)
def test_accounting_is_exact_on_random_jobs(job: Job, drawn: tuple[Decimal, Decimal, int]) -> None:
    epsilon, delta, epochs = drawn
    one = promising(job, epsilon, delta, epochs)
    multiplier = float(noise_multiplier(one))
    assert of_formula(multiplier, epochs, float(delta)) <= float(epsilon)
    # A thousandth of δ stays unused, for the sampler.
    _, kept = accounting.budget(one.privacy)  # type: ignore[arg-type]
    assert kept <= Fraction(delta) * (1 - Fraction(1, 1 << 10))
    spent = of_formula(multiplier, epochs, float(delta) * (1 - 2.0**-10))
    assert spent <= float(epsilon) and mechanisms(one) == epochs
    assert epsilon_of_training(one) == pytest.approx(spent, rel=1e-6, abs=1e-9)
    # A step of the multiplier less would cost too much, so that no budget is thrown away.
    less = of_formula(max(multiplier - STEP, 1e-9), epochs, float(delta) * (1 - 2.0**-10))
    assert less > float(epsilon) * (1 - 2e-9)
    assert costs.total(one).training == float(epsilon)


@settings(max_examples=12, deadline=None)
@given(
    st.decimals("0.1", "10", places=2),
    st.integers(3, 9).map(lambda power: Decimal(1).scaleb(-power)),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 8, 16, 64]),
    st.sampled_from(["zeroed", "replaced"]),
    st.integers(1, 5),
)
def test_random_jobs_cost_what_the_library_composes(
    job: Job, epsilon: Decimal, delta: Decimal, epochs: int, bands: int, neighbours: str, most: int
) -> None:
    """By privacy-loss distributions, epoch by epoch, of the noise that a job has for a unit's whole
    change, over the norm of its bands."""
    one = promising(
        job, epsilon, delta, epochs, bands=bands, neighbours=neighbours, unit="a", most_rows=most
    )
    noise = float(noise_multiplier(one) * sensitivity(one))
    change = most * float(accounting.row_clip(one)) * (2 if neighbours == "replaced" else 1)
    norm = sqrt(sum((round(16 * comb(2 * j, j) / 4**j) / 16) ** 2 for j in range(bands)))
    event = dp_accounting.GaussianDpEvent(noise / (change * norm))
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3 * min(float(epsilon), 1))
    accountant.compose(event, epochs)
    found = accountant.get_epsilon(float(delta))
    # What bands may lose by rounding is counted, a 512th of the norm.
    assert float(epsilon) * (0.995 if bands == 1 else 0.99) < found < float(epsilon) * 1.002


@pytest.mark.parametrize("variance", [256**2, Fraction(2**9) ** 2 / 3, 2**40, 2**100 + 1])
def test_the_sampler_is_as_exact_as_is_accounted_for(variance: int | Fraction) -> None:
    assert table(Fraction(variance)).distance <= accounting.SAMPLER_DISTANCE


@pytest.mark.parametrize(
    ("epsilon", "delta", "epochs"),
    [(0.05, 1e-9, 7), (1, 1e-5, 1), (3, 1e-5, 40), (8, 1e-5, 100), (20, 1e-3, 9)],
)
def test_noise_is_between_what_is_needed_and_what_zcdp_takes(
    job: Job, epsilon: float, delta: float, epochs: int
) -> None:
    one = promising(job, epsilon, delta, epochs)
    multiplier = float(noise_multiplier(one))
    event = dp_accounting.GaussianDpEvent(multiplier)
    together = dp_accounting.SelfComposedDpEvent(event, epochs)
    optimistic = pld.PLDAccountant(value_discretization_interval=1e-4 * min(epsilon, 1))
    optimistic.compose(together)
    assert epsilon * 0.998 < optimistic.get_epsilon(delta) < epsilon * 1.0002
    concentrated = rdp.RdpAccountant(library.ORDERS)
    concentrated.compose(together)
    assert 1.03 * epsilon < concentrated.get_epsilon(delta) < 1.25 * epsilon


@pytest.mark.parametrize("r", [0.4, 0.5, 0.6])
def test_discrete_noise_is_continuous_noise_and_a_draw(r: float) -> None:
    """The bound on which `accounting` relies, at deviations so small that it can be seen."""
    s, points = 0.3, np.arange(-2, 3)
    y = np.linspace(-40, 40, 160_001)
    density = np.exp(-(y**2) / (2 * s**2)) / (s * sqrt(2 * pi)) * (y[1] - y[0])
    every = np.floor(y) + np.arange(-9, 11)[:, None]
    total = np.exp(-((every - y) ** 2) / (2 * r**2)).sum(0)
    drawn = [(density * np.exp(-((k - y) ** 2) / (2 * r**2)) / total).sum() for k in points]
    one = discrete_gaussian(s**2 + r**2, 60)[60 - 2 : 60 + 3]
    apart = np.abs(np.log(np.array(drawn) / one)).max()
    eta = exp(-2 * pi**2 * r**2)
    assert 0.01 * eta < apart < 5 * eta
    less = accounting.ROUND_DEVIATION**2 / (2 * accounting.LEAST_DEVIATION**2)
    assert 0 < less <= accounting.GRID_PART < Fraction(1, 5000)


def test_nothing_is_gained_by_sampling(job: Job) -> None:
    """The order of rows is public: batch size and number of rows change nothing."""
    one = promising(job, 1, 1e-5, 10)
    train = msgspec.structs.replace(one.train, batch_size=2)
    assert noise_multiplier(msgspec.structs.replace(one, train=train)) == noise_multiplier(one)
    more = msgspec.structs.replace(one.data, rows=dict.fromkeys(one.data.rows, 10000))
    assert noise_multiplier(msgspec.structs.replace(one, data=more)) == noise_multiplier(one)


@pytest.mark.parametrize("bands", [1, 4])
def test_what_the_draw_of_a_whole_number_takes_is_not_counted(job: Job, bands: int) -> None:
    """r² of the variance, at the least deviation of two evaluators."""
    one = promising(job, 3, 1e-5, 10, bands=bands)
    least = 2 * accounting.LEAST_DEVIATION**2
    exact = 10 * banded.square(bands)
    left = Fraction(least - accounting.ROUND_DEVIATION**2, least)
    assert accounting.counted_square(one) * left >= exact


@pytest.mark.parametrize("bands", [2, 4, 32])
def test_bands_make_noise_longer_by_their_norm(job: Job, bands: int) -> None:
    """Noise that is so much larger, for a row in one step of each epoch."""
    alone = noise_multiplier(promising(job, 3, 1e-5, 10))
    together = noise_multiplier(promising(job, 3, 1e-5, 10, bands=bands))
    norm = sqrt(sum((comb(2 * j, j) / 4**j) ** 2 for j in range(bands)))
    assert norm * 0.98 < together / alone < norm * 1.02
    exact = sqrt(banded.square(bands))
    assert together / alone >= exact * (1 + float(accounting.ROUNDED_PART)) - 1e-3


def test_neighbours_change_the_sensitivity_and_not_the_multiplier(job: Job) -> None:
    zeroed = promising(job, 1, 1e-5, 10, clip=Decimal("2.5"))
    replaced = promising(job, 1, 1e-5, 10, clip=Decimal("2.5"), neighbours="replaced")
    assert (sensitivity(zeroed), sensitivity(replaced)) == (Fraction(5, 2), Fraction(5))
    assert noise_multiplier(zeroed) == noise_multiplier(replaced)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.decimals("0.01", "5", places=2), min_size=1, max_size=2), st.integers(2, 9))
def test_metrics_cost_the_sum_or_what_the_library_says(
    job: Job, epsilons: list[Decimal], power: int
) -> None:
    metrics = ("accuracy", "confusion")[: len(epsilons)]
    noise = Noise(epsilons[0])
    reveal = msgspec.structs.replace(job.reveal, metrics=metrics, noise=noise)
    one = promising(job, "0.01", Decimal(1).scaleb(-power), 1)
    spent = costs.total(msgspec.structs.replace(one, reveal=reveal)).held_out
    simple = float(epsilons[0]) * len(metrics)
    accountant = rdp.RdpAccountant(library.ORDERS)
    for _ in metrics:
        accountant.compose(dp_accounting.ZCDpEvent(float(epsilons[0]) ** 2 / 2))
    composed = accountant.get_epsilon(10.0**-power * (1 - 2.0**-10))
    assert spent <= simple + 1e-12
    assert spent == pytest.approx(min(simple, composed if len(metrics) > 1 else inf), rel=1e-6)
    # Not less than the exact composition of the worst mechanisms that are so private.
    worst = pld.privacy_loss_distribution.from_privacy_parameters(
        pld.common.DifferentialPrivacyParameters(float(epsilons[0]))
    ).self_compose(len(metrics))
    assert spent >= worst.get_epsilon_for_delta(float(Decimal(1).scaleb(-power))) - 2e-3


# What is left against each coalition.


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_no_promised_coalition_is_left_less_than_the_budget_s_noise(evaluators: int) -> None:
    """Variances in units of σ²: the dealer's 1, each evaluator's 1 / N."""
    parts = {"dealer": Fraction(1)} | {f"e{k}": Fraction(1, evaluators) for k in range(evaluators)}
    names, left = list(parts), {}
    for size in range(len(names)):
        for coalition in combinations(names, size):
            members = [name for name in coalition if name != "dealer"]
            if len(members) == evaluators or ("dealer" in coalition and members):
                continue  # they can read all data: nothing is promised
            left[coalition] = sum(parts.values()) - sum(parts[name] for name in coalition)
    assert min(left.values()) == 1
    assert left["dealer",] == 1 and left[()] == 2
    every_other = tuple(f"e{k}" for k in range(evaluators - 1))
    assert left[every_other] == 1 + Fraction(1, evaluators)


def test_the_sampler_must_be_exact_enough(job: Job) -> None:
    assert accounting.sampler_fits(promising(job, 20, 1e-12, 100))
    assert not accounting.sampler_fits(promising(job, 20, 1e-12, 10**9))
    assert accounting.sampler_fits(promising(job, 1, 1e-12, 10**9))
    # By the definition: n numbers, each so far from the exact law.
    numbers = 3 * 1000 * 4 * 4  # weights, epochs of four steps, three evaluators and the dealer
    assert numbers * 2.0**-111 * (1 + exp(3)) < 1e-6 / 2**11
    edge = Decimal(numbers * (1 + exp(3))) * Decimal(2) ** (11 - 111)
    for factor, fits in (("1.01", True), ("0.99", False)):
        delta = edge * Decimal(factor)
        assert accounting.sampler_fits(promising(job, 3, delta, 1000)) == fits


def discrete_gaussian(variance: float, reach: int) -> NDArray[np.float64]:
    """Probabilities of -reach … reach."""
    points = np.arange(-reach, reach + 1)
    weights = np.exp(-(points**2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_a_sum_of_discrete_gaussians_is_nearly_one(sigma: float, evaluators: int) -> None:
    """The bound on which `accounting` relies, at deviations so small that it can be seen."""
    reach = 60
    total = discrete_gaussian(sigma**2, reach)
    bound, variance = 0.0, sigma**2
    part = sigma**2 / evaluators
    for _ in range(evaluators):
        total = np.convolve(total, discrete_gaussian(part, reach))
        bound += 5 * exp(-2 * pi**2 / (1 / variance + 1 / part))
        variance += part
    one = discrete_gaussian(variance, (len(total) - 1) // 2)
    middle = slice(len(total) // 2 - 10, len(total) // 2 + 11)
    apart = np.abs(np.log(total[middle] / one[middle])).max()
    assert apart <= bound + 1e-12


def test_at_the_least_deviation_the_sum_is_a_discrete_gaussian(job: Job) -> None:
    """κ of the largest job there may be, as a logarithm, against the margin that is kept."""
    from mpc_train.checks.check import MAX_WEIGHTS
    from mpc_train.checks.check_train import MAX_STEPS
    from protocols.names import MAX_ROLE_NAMES

    values = MAX_WEIGHTS * MAX_STEPS * MAX_ROLE_NAMES
    sums = log(values) + log(5) - pi**2 * accounting.LEAST_DEVIATION**2
    drawn = log(values) + log(5) - 2 * pi**2 * accounting.ROUND_DEVIATION**2
    assert max(sums, drawn) < -300 * log(2) < log(MARGIN) - 100
    assert accounting.DELTA_MARGIN > MARGIN


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-3), (1, 1e-5), (4, 1e-6)])
def test_what_is_left_hides_a_unit(job: Job, epsilon: float, delta: float) -> None:
    """One epoch, one number, at the worst change: δ at ε of the noise that the dealer does not
    know, computed point by point from the definition, is at most what is promised."""
    grid, evaluators = 40, 3
    one = promising(job, epsilon, delta, 1)
    sigma = float(noise_multiplier(one)) * grid
    reach = int(9 * sigma)
    left = discrete_gaussian(sigma**2 / evaluators, reach)
    for _ in range(evaluators - 1):
        left = np.convolve(left, discrete_gaussian(sigma**2 / evaluators, reach))[reach:-reach]
    moved, kept = left[grid:], left[:-grid]
    spent = np.maximum(moved - exp(epsilon) * kept, 0).sum()
    assert spent <= delta
    assert spent > delta / 30  # the promise is not idle
    # A fifth less noise breaks it: the accounting is not far from the truth.
    less = discrete_gaussian((0.8 * sigma) ** 2, reach)
    assert np.maximum(less[grid:] - exp(epsilon) * less[:-grid], 0).sum() > delta


def test_the_discrete_gaussian_is_concentrated(job: Job) -> None:
    """Canonne, Kamath, Steinke: Rényi divergences of a shift by whole steps."""
    variance, shift = 7.0, 3
    points = np.arange(-400, 401)
    logs = -(points**2) / (2 * variance)
    logs -= np.logaddexp.reduce(logs)
    moved, kept = logs[shift:], logs[:-shift]
    for alpha in (1.5, 2, 5, 20):
        found = np.logaddexp.reduce(alpha * moved + (1 - alpha) * kept) / (alpha - 1)
        assert found <= alpha * shift**2 / (2 * variance) + 1e-9


def test_without_the_library_its_name_is_said(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    library.least_multiplier.cache_clear()
    with pytest.raises(ConfigError, match=r'pip install "mpc-train\[privacy\]"'):
        noise_multiplier(promising(job, 1.234, 1e-5, 3))
