"""Discrete Gaussian numbers: their law in exact arithmetic, and what is drawn from it."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arrays import Octets
from protocols.errors import RangeError
from protocols.noise import gaussian
from protocols.roles.streams import Stream

VARIANCES = (
    Fraction(1, 3),
    Fraction(50),
    Fraction((1 << 22) - 1),
    Fraction(1 << 22),
    Fraction(12345678901, 7),
    Fraction(1 << 81, 5),
    Fraction(1 << 116),
)


def keystream(number: int) -> Stream:
    stream = Stream(number.to_bytes(32, "big"))
    stream.begin_step(0)
    return stream


def nothing(count: int) -> Octets:
    raise AssertionError("the first two words decide")


@pytest.mark.parametrize(
    "variance",
    [*VARIANCES[:2], *(pytest.param(each, marks=pytest.mark.slow) for each in VARIANCES[2:])],
)
def test_cells_have_the_probabilities_of_the_law(variance: Fraction) -> None:
    """P(h) ∝ exp(−(K h)² / 2σ²): the sum of all differences is within `distance`."""
    table = gaussian.table(variance)
    with mpmath.workprec(400):
        square = mpmath.mpf(1 << 2 * table.low) / variance.numerator * variance.denominator
        weight, ratio, step = mpmath.mpf(1), mpmath.exp(-square / 2), mpmath.exp(-square)
        weights = []
        for _ in range(2 * len(table.thresholds)):
            weights.append(weight)
            weight, ratio = weight * ratio, ratio * step
        total = mpmath.fsum(weights)
        apart, before = mpmath.mpf(0), 0
        for weight, after in zip(weights, table.thresholds, strict=False):
            apart += abs(mpmath.mpf(after - before) / (1 << 128) - weight / total)
            before = after
        apart += mpmath.fsum(weights[len(table.thresholds) :]) / total
        # Total variation is half of it, and at most doubles when proposals are rejected.
        assert apart <= mpmath.mpf(table.distance.numerator) / table.distance.denominator
    assert table.thresholds[-1] == 1 << 128
    assert gaussian.distance(variance, 1 << 31) < Fraction(1, 1 << 80)


@settings(deadline=None)
@given(st.sampled_from(VARIANCES), st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_what_the_first_words_accept_is_accepted(variance: Fraction, h: int, l: int) -> None:  # noqa: E741
    """`unsure` bounds the probability of rejection, and that is below 14 · 2^-10."""
    table = gaussian.table(variance)
    k, cell = 1 << table.low, h % len(table.thresholds)
    inner = l % k
    exponent = Fraction(inner * (2 * k * cell + inner)) / (2 * variance)
    with mpmath.workprec(400):
        rejected = -mpmath.expm1(-mpmath.mpf(exponent.numerator) / exponent.denominator)
        assert rejected <= mpmath.mpf(int(table.unsure[cell])) / (1 << 63 - table.low)
        assert rejected < mpmath.mpf(14) / 1024
        accepted = mpmath.mpf(gaussian._decay(exponent, 191 - table.low))
        assert abs(accepted / (1 << 191 - table.low) - (1 - rejected)) < mpmath.mpf(2) ** -140


@pytest.mark.parametrize("variance", VARIANCES)
def test_words_decide_alike_by_kernel_and_in_integers(variance: Fraction) -> None:
    table = gaussian.table(variance)
    words = keystream(3).words(400).view(np.uint64)
    first, second = words[:200], words[200:]
    calls = iter([(first, second)])

    def draw(count: int) -> Octets:
        pair = next(calls, None)
        if pair is None:
            raise StopIteration
        return np.concatenate(pair).view(np.uint8)

    decided = 0
    for place in range(200):
        calls = iter([(first[place : place + 1], second[place : place + 1])])
        try:
            found = table.numbers(1, draw)[0]
        except StopIteration:
            continue
        low = keystream(4)
        assert found == table.one(int(first[place]), int(second[place]), low.octets)
        decided += 1
    assert decided > 40


def test_equal_halves_are_decided_by_the_lower_half() -> None:
    table = gaussian.table(Fraction(50))
    place = 3
    top, rest = divmod(table.thresholds[place], 1 << 64)
    for lower, cell in ((rest - 1, place), (rest, place + 1)):
        pairs = iter([np.array([top, 0], np.uint64), np.array([lower], np.uint64)])
        found = table.numbers(1, lambda _, pairs=pairs: next(pairs).view(np.uint8))  # type: ignore[misc]
        assert found[0] == cell


def test_zero_counts_once() -> None:
    """Minus zero is drawn again."""
    table = gaussian.table(Fraction(50))
    words = iter([0, (table.thresholds[1] >> 64) + 1, 1 << 63, 0])

    def draw(count: int) -> Octets:
        return np.array([next(words) for _ in range(count // 8)], np.uint64).view(np.uint8)

    pair = np.array([0, 1 << 63], np.uint64).view(np.uint8)
    first = iter([pair])
    # Minus zero, then minus two.
    assert (
        table.numbers(1, lambda count: pair if next(first, None) is not None else draw(count))[0]
        == -2
    )


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(9, 2), Fraction(40)])
def test_each_value_is_as_frequent_as_the_law_says(variance: Fraction) -> None:
    count = 100_000
    found = gaussian.numbers(variance, count, keystream(1).octets)
    values = np.arange(-400, 401)
    weights = np.exp(-(values.astype(float) ** 2) / (2 * float(variance)))
    expected = count * weights / weights.sum()
    likely = expected > 20
    counts = np.array([(found == value).sum() for value in values[likely]])
    square = ((counts - expected[likely]) ** 2 / expected[likely]).sum()
    free = likely.sum()
    assert square < free + 5 * np.sqrt(2 * free)


@pytest.mark.parametrize("variance", VARIANCES[2:])
def test_large_numbers_have_the_moments_of_the_law(variance: Fraction) -> None:
    count, deviation = 200_000, np.sqrt(float(variance))
    x = gaussian.numbers(variance, count, keystream(2).octets) / deviation
    noise = 5 / np.sqrt(count)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < noise * np.sqrt(spread)


@pytest.mark.parametrize("variance", VARIANCES[2:])
def test_low_bits_are_uniform(variance: Fraction) -> None:
    """No bit of a value stays bare: noise is as fine as the words that it is added to."""
    found = gaussian.numbers(variance, 64_000, keystream(5).octets)
    counts = np.bincount(found & 63, minlength=64)
    assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 5 * np.sqrt(126)


def test_variances_that_do_not_fit_are_refused() -> None:
    for variance in (Fraction(0), Fraction(-1), Fraction((1 << 116) + 1)):
        with pytest.raises(RangeError, match="variance"):
            gaussian.table(variance)


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [3.5, 40.0, 5000.0, 2.0**33])
def test_opendp_draws_from_the_same_law(deviation: float) -> None:
    """Two samples, ours and that of an exact sampler of another library, do not differ."""
    import opendp.prelude as dp
    from scipy.stats import ks_2samp

    dp.enable_features("contrib")
    count = 100_000
    space = dp.vector_domain(dp.atom_domain(T=dp.i64)), dp.l2_distance(T=dp.f64)
    measure = dp.m.make_gaussian(*space, scale=deviation)
    theirs = np.array(measure([0] * count))
    ours = gaussian.numbers(Fraction(deviation) ** 2, count, keystream(6).octets)
    assert ks_2samp(ours, theirs).pvalue > 1e-7
    # A wrong deviation is noticed: distribution functions that are 0.024 apart, of samples for
    # which 1e-7 is at 0.013.
    wider = (Fraction(deviation) * Fraction(11, 10)) ** 2
    other = gaussian.numbers(wider, count, keystream(7).octets)
    assert ks_2samp(other, theirs).pvalue < 1e-7
