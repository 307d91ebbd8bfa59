"""Noise over the bands of a matrix: its law, what it hides of a row, and how large it becomes."""

from __future__ import annotations

from fractions import Fraction
from math import exp, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.arrays import Words
from protocols.noise.banded import (
    MOST_BANDS,
    PRECISION,
    Past,
    bands,
    inverse,
    left_over,
    spread,
    square,
)


def followed(count: int, fresh: Words) -> Words:
    """The noise of all steps for what was drawn for them, int64[steps, elements]."""
    past = Past(count)
    return np.array([past.follow(words) for words in fresh])


def times_bands(count: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """M · C times `values` [steps, elements]."""
    found = np.zeros_like(values)
    for j, part in enumerate(bands(count)):
        found[j:] += part * values[: len(values) - j]
    return found


def test_bands_are_those_of_the_root_of_prefix_sums() -> None:
    assert bands(8) == (16, 8, 6, 5, 4, 4, 4, 3)
    assert bands(1) == (16,) and square(1) == spread(1) == 1
    assert square(2) == Fraction(5, 4)
    root = np.convolve(bands(MOST_BANDS), bands(MOST_BANDS))[:MOST_BANDS] / PRECISION**2
    assert np.abs(root - 1).max() < 0.3
    for count in (0, -1, MOST_BANDS + 1):
        with pytest.raises(ValueError, match="between 1 and 64 bands"):
            bands(count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MOST_BANDS), st.integers(0, 2**32))
def test_noise_is_what_was_drawn_but_for_rounding(count: int, seed: int) -> None:
    fresh = np.random.default_rng(seed).integers(-(2**50), 2**50, (80, 2))
    off = times_bands(count, followed(count, fresh)) - PRECISION * fresh
    assert (off >= -PRECISION // 2).all() and (off < PRECISION // 2 + 1).all()
    assert count == 1 or off.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**32))
def test_a_row_changes_what_is_hidden_by_its_norm_times_that_of_the_bands(
    count: int, seed: int
) -> None:
    """Two nodes, a row in the same step of three epochs. Given what is seen and all that the first
    node drew, the sum of what both drew is moved by so much, whatever they drew."""
    rng = np.random.default_rng(seed)
    steps, size = count + int(rng.integers(5)), 5
    drawn = rng.integers(-(2**40), 2**40, (2, 3 * steps, size))
    first, last = (followed(count, fresh) for fresh in drawn)
    row = np.zeros((3 * steps, size), np.int64)
    norm = 2**30
    for epoch in range(3):
        direction = rng.normal(size=size)
        row[epoch * steps] = norm * direction / np.linalg.norm(direction)
    # Without the row, the same is seen if the last node's noise contains it instead.
    other = last + row
    again = other + (times_bands(count, other) - PRECISION * other + PRECISION // 2) // PRECISION
    moved = np.linalg.norm((again - drawn[1]).astype(float))
    exact = norm * sqrt(3 * square(count))
    assert exact * 0.999 < moved < exact + sqrt(row.size) + 10
    assert (first + last + row == first + other).all()


def gaussian(variance: float, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize(("v", "w"), [(9.0, 9.0), (16.0, 6.0)])
def test_residues_of_one_node_say_nothing_of_the_sum(v: float, w: float) -> None:
    """The bound of the proof, with M = 4 and deviations so small that it can be seen."""
    modulus, reach = 4, 60
    one, two = gaussian(v, reach), gaussian(w, reach)
    joint = np.zeros((modulus, 41))
    for k, total in enumerate(range(-20, 21)):
        for z in range(-reach, reach + 1):
            if abs(total - z) <= reach:
                joint[z % modulus, k] += one[z + reach] * two[total - z + reach]
    law = gaussian(v + w, 2 * reach)[2 * reach - 20 : 2 * reach + 21]
    apart = np.abs(np.log(joint * modulus / law)).max()
    u = 1 / (1 / v + 1 / w)
    assert 0.01 * exp(-2 * pi**2 * u / modulus**2) < apart
    assert apart < 5 * exp(-2 * pi**2 * u / modulus**2)


@pytest.mark.parametrize("count", [2, 7, 16, 64])
def test_no_noise_is_larger_than_its_bound(count: int) -> None:
    """Against the worst that can be drawn: always the largest, with the worst signs."""
    column = np.array(inverse(count))
    steps = min(len(column), 400)
    worst = np.where(column[:steps][::-1] > 0, 1, -1)[:, None] * np.int64(2**40)
    found = followed(count, worst)
    assert abs(found[-1, 0]) <= spread(count) * (2**40 + Fraction(1, 2))
    assert abs(found[-1, 0]) > 0.95 * float(spread(count)) * 2**40


def test_less_noise_adds_up() -> None:
    """As noise that is really drawn does."""
    rng = np.random.default_rng(3)
    fresh = np.rint(rng.normal(0, 2**20, (48, 3000))).astype(np.int64)
    independent = np.cumsum(fresh, 0).astype(float).var()
    for count in (4, 16):
        found = np.cumsum(followed(count, fresh), 0).astype(float).var() * float(square(count))
        assert sqrt(found / independent) == pytest.approx(left_over(count, 48), rel=0.03)
    assert left_over(16, 48) < 0.45 and left_over(1, 48) == pytest.approx(1)


def test_no_repr_shows_noise() -> None:
    past = Past(3)
    past.follow(np.array([123456789], np.int64))
    assert repr(past) == "Past(bands=3, steps=1)"
