"""The accounting is the library's on random jobs, and holds for the noise that is really added.

The library's Gaussian mechanism, composed anew here from its own events, is the first reference;
its privacy-loss distributions, which are exact for continuous noise, bound from below how much an ε
could be. Discrete noise is computed point by point.
"""

import sys
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from math import exp, inf, log, pi

import dp_accounting
import msgspec
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

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


def of_library(multiplier: float, times: int, delta: float) -> float:
    """ε of `times` Gaussian mechanisms by the library's own composition."""
    accountant = rdp.RdpAccountant(library.ORDERS)
    event = dp_accounting.GaussianDpEvent(multiplier)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, times))
    return float(accountant.get_epsilon(delta))


JOBS = st.tuples(
    st.decimals("0.01", "20", places=3),
    st.integers(2, 12).map(lambda power: Decimal(1).scaleb(-power)),
    st.integers(1, 2000),
)


@settings(max_examples=25, deadline=None)
@given(JOBS)
def test_accounting_is_the_library_s_on_random_jobs(
    job: Job, drawn: tuple[Decimal, Decimal, int]
) -> None:
    epsilon, delta, epochs = drawn
    one = promising(job, epsilon, delta, epochs)
    multiplier = float(noise_multiplier(one))
    assert of_library(multiplier, epochs, float(delta)) <= float(epsilon)
    _, kept = accounting.budget(one.privacy)  # type: ignore[arg-type]
    spent = of_library(multiplier, epochs, float(kept))
    assert spent <= float(epsilon) and mechanisms(one) == epochs
    assert epsilon_of_training(one) == pytest.approx(spent, rel=1e-6)
    # A step of the multiplier less would cost too much, so that no budget is thrown away.
    assert of_library(multiplier - STEP, epochs, float(kept)) > float(epsilon) * (1 - 2e-9)
    assert costs.total(one).training == float(epsilon)


@pytest.mark.parametrize("variance", [16**2, Fraction(2**9) ** 2 / 3, 2**40, 2**100 + 1])
def test_the_sampler_is_as_exact_as_is_accounted_for(variance: int | Fraction) -> None:
    assert table(Fraction(variance)).distance <= accounting.SAMPLER_DISTANCE


def test_the_library_s_own_calibration_finds_the_same_noise(job: Job) -> None:
    for epsilon, delta, epochs in ((0.5, 1e-6, 3), (3, 1e-5, 20), (8, 1e-5, 100)):
        found = dp_accounting.calibrate_dp_mechanism(
            lambda: rdp.RdpAccountant(library.ORDERS),
            lambda sigma, epochs=epochs: dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(sigma), epochs
            ),
            epsilon,
            delta,
            tol=1e-7,
        )
        one = promising(job, epsilon, delta, epochs)
        assert found <= float(noise_multiplier(one)) + 1e-6
        assert float(noise_multiplier(one)) / found - 1 < 2e-4 + STEP


def test_orders_are_close_enough(job: Job) -> None:
    """Against the best of all orders, by the formula of Canonne, Kamath and Steinke (proposition
    12), and against the exact Gaussian, which no accounting may undercut."""
    for epsilon, delta, epochs in ((0.05, 1e-9, 7), (1, 1e-5, 1), (3, 1e-5, 40), (20, 1e-3, 9)):
        one = promising(job, epsilon, delta, epochs)
        rho = float(accounting.rho_of_training(one))
        alphas = 1 + np.geomspace(1e-2, 1e6, 200_000)
        best = min(rho * alphas + np.log1p(-1 / alphas) - np.log(delta * alphas) / (alphas - 1))
        assert best <= epsilon_of_training(one) <= best * (1 + 1e-4) + 1e-9
        exact = pld.PLDAccountant(value_discretization_interval=1e-3 * min(epsilon, 1))
        event = dp_accounting.GaussianDpEvent(float(noise_multiplier(one)))
        exact.compose(dp_accounting.SelfComposedDpEvent(event, epochs))
        least = exact.get_epsilon(delta)
        assert 0.75 * epsilon < least < epsilon


def test_nothing_is_gained_by_sampling(job: Job) -> None:
    """The order of rows is public: batch size and number of rows change nothing."""
    one = promising(job, 1, 1e-5, 10)
    train = msgspec.structs.replace(one.train, batch_size=2)
    assert noise_multiplier(msgspec.structs.replace(one, train=train)) == noise_multiplier(one)
    more = msgspec.structs.replace(one.data, rows=dict.fromkeys(one.data.rows, 10000))
    assert noise_multiplier(msgspec.structs.replace(one, data=more)) == noise_multiplier(one)


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
    kappa = log(values) + log(5) - pi**2 * accounting.LEAST_DEVIATION**2
    assert kappa < -2000 < log(MARGIN) - 100
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
