"""Signs, thresholds, maxima: exact for every value that fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.comparison.compare import all_of, argmax, below, maximum, negative, relu, weighted
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask, truncate
from protocols.shares.masked import Masked, concatenate, public
from tests.support.lockstep import compute
from tests.support.loopback import secret


def edges(bits: int) -> np.ndarray:
    """Every power of two and digit boundary and its neighbours, and both ends."""
    top = 2 ** (bits - 1)
    found = {0, -1, 1, top - 1, -top, top - 2, -top + 1}
    for k in range(bits - 1):
        for value in (2**k, -(2**k), 2**k - 2 ** (k // 2), (16 ** (k // 4) - 1)):
            found.update(v for v in (value - 1, value, value + 1) if -top <= v < top)
    return np.array(sorted(found))


def random_words(bits: int, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wide = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count)
    return wide >> rng.integers(0, bits - 1, count)


def signs(x: np.ndarray, bits: int, evaluators: int, seed: int = 1) -> np.ndarray:
    """Signs of x, compared modulo 2^bits as straight after a truncation by 64 − bits."""

    def program(role: Role) -> Masked:
        value = secret(role, x)
        form = value if bits == 64 else value.narrowed(bits)
        return remask(negative(form).shares())

    found: np.ndarray = compute(program, evaluators, seed)
    return found


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [64, 44, 63, 32, 21, 9, 6, 5, 4, 3, 2])
def test_sign_at_all_edges(bits: int, evaluators: int) -> None:
    x = edges(bits)
    for seed in range(3):
        np.testing.assert_array_equal(signs(x, bits, evaluators, seed), x < 0)


@pytest.mark.parametrize("bits", [64, 44])
def test_sign_of_ten_thousand(bits: int) -> None:
    x = random_words(bits, 10_000, bits)
    np.testing.assert_array_equal(signs(x, bits, 2), x < 0)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [64, 44])
def test_sign_of_a_million(bits: int) -> None:
    x = random_words(bits, 1_000_000, bits)
    np.testing.assert_array_equal(signs(x, bits, 3), x < 0)


@pytest.mark.parametrize("bits", [64, 44])
def test_sign_of_one_value_under_many_masks(bits: int) -> None:
    for value in (0, -1, 1):
        x = np.full(4000, value)
        np.testing.assert_array_equal(signs(x, bits, 2, seed=value + 5), x < 0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=9),
    st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=7),
    st.integers(2, 5),
)
def test_thresholds(values: list[int], thresholds: list[int], evaluators: int) -> None:
    x, t = np.array(values), [*thresholds, values[0]]
    out = compute(lambda r: remask(below(secret(r, x), t).shares()), evaluators)
    np.testing.assert_array_equal(out, x < np.array(t)[:, None])


def test_thresholds_that_do_not_fit() -> None:
    for bits, bad in ((64, 2**63), (64, -(2**63) - 1), (44, 2**43), (6, -33)):

        def program(role: Role, bits: int = bits, bad: int = bad) -> Masked:
            x = secret(role, np.zeros(3))
            form = x if bits == 64 else x.narrowed(bits)
            return remask(below(form, (0, bad)).shares())

        with pytest.raises(RangeError, match=str(bits)):
            compute(program)


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16, 17, 21])
def test_all_of(count: int, evaluators: int) -> None:
    rng = np.random.default_rng(count)
    x = rng.integers(-1, 2 + 3 * count, (count, 11))
    x[:, :3] = 5
    x[rng.integers(0, count), 0] = -1
    out = compute(lambda r: remask(all_of(negative(secret(r, x)).negate()).shares()), evaluators)
    np.testing.assert_array_equal(out, (x >= 0).all(axis=0))


@pytest.mark.parametrize("evaluators", [2, 3, 5])
@pytest.mark.parametrize("classes", [2, 3, 5, 10, 16])
def test_argmax_with_ties(classes: int, evaluators: int) -> None:
    rng = np.random.default_rng(classes)
    x = np.concatenate(
        [
            rng.integers(-2, 3, (12, classes)),
            np.zeros((1, classes), np.int64),
            rng.integers(-(2**61), 2**61, (6, classes)),
        ]
    )

    def program(role: Role) -> Masked:
        top, winner = maximum(secret(role, x))
        return concatenate([top, remask(winner.shares())], 1)

    out = compute(program, evaluators)
    np.testing.assert_array_equal(out[:, 0], x.max(1))
    np.testing.assert_array_equal(out[:, 1:], np.arange(classes) == x.argmax(1)[:, None])


def test_argmax_of_one_class() -> None:
    with pytest.raises(ValueError, match="one class"):
        compute(lambda r: remask(argmax(secret(r, np.zeros((3, 1)))).shares()))


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_relu_of_a_truncation(evaluators: int) -> None:
    x = np.concatenate([edges(42), random_words(42, 500, 3)])

    def program(role: Role) -> Masked:
        value, bit = relu(truncate(secret(role, x).scale(1 << 20).shares(), 20))
        return concatenate([value, remask(bit.shares())])

    out = compute(program, evaluators)
    np.testing.assert_array_equal(out[: len(x)], np.maximum(x, 0))
    np.testing.assert_array_equal(out[len(x) :], x >= 0)


def test_relu_of_a_wide_value() -> None:
    x = edges(63)
    np.testing.assert_array_equal(compute(lambda r: relu(secret(r, x))[0]), np.maximum(x, 0))


def test_weighted_bits() -> None:
    x = np.arange(-4, 4)

    def program(role: Role) -> Masked:
        return remask(weighted(below(secret(role, x), (-2, 0, 3)), np.array([2**40, -1, 7])))

    expected = (x < -2) * 2**40 - (x < 0) + 7 * (x < 3)
    np.testing.assert_array_equal(compute(program, 3), expected)


def test_public_values_compare_too() -> None:
    x = np.arange(-4, 4)
    out = compute(lambda r: remask(negative(public(r, x)).shares()))
    np.testing.assert_array_equal(out, x < 0)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65])
def test_lanes_that_do_not_fill_bytes(count: int) -> None:
    x = random_words(60, count, count)
    for evaluators in (2, 3):
        out = compute(lambda r: relu(secret(r, x))[0], evaluators)
        np.testing.assert_array_equal(out, np.maximum(x, 0))
