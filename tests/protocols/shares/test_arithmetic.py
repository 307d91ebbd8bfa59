"""Products and truncation: exact modulo 2^64, and exact up to one unit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.comparison.compare import negative
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.arithmetic import ROUNDING_BITS, matmul, multiply, remask, select, truncate
from protocols.shares.masked import Masked, public
from tests.support.lockstep import compute
from tests.support.loopback import secret

WORD = st.integers(-(2**63), 2**63 - 1)
TOP = 2**62
EDGES = sorted(
    {
        edge + offset
        for k in range(62)
        for edge in (2**k, -(2**k), TOP, -TOP, 0)
        for offset in (-1, 0, 1)
        if -TOP <= edge + offset < TOP
    }
)


def values(count: int, seed: int = 0) -> np.ndarray:
    """Edges, then words of every magnitude below 2^62."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(-TOP, TOP, count)
    random = wide >> rng.integers(0, 62, count)
    return np.concatenate([np.array(EDGES), random, wide[: count // 2]])[:count]


def checked_truncation(z: np.ndarray, bits: int, evaluators: int, seed: int) -> np.ndarray:
    """What was added to z rounded down: 0 or 1, of z or a number that is nearly z."""
    out = compute(lambda r: truncate(secret(r, z).shares(), bits), evaluators, seed)
    nearly = evaluators << (bits - ROUNDING_BITS) if bits > ROUNDING_BITS else 0
    assert (out >= (z - nearly) >> bits).all() and (out <= ((z + nearly) >> bits) + 1).all()
    up: np.ndarray = out - (z >> bits)
    if not nearly:
        assert not up[z & ((1 << bits) - 1) == 0].any(), "what divides evenly is exact"
    return up


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [1, 7, 16, 20, 33, 40, 61, 62])
def test_truncation_never_wraps(bits: int, evaluators: int) -> None:
    checked_truncation(values(4000, bits), bits, evaluators, seed=bits)


@pytest.mark.slow
def test_truncation_never_wraps_on_ten_million() -> None:
    for seed in range(40):
        bits = (20, 20, 13, 24, 40)[seed % 5]
        checked_truncation(values(250_000, seed), bits, 2 + seed % 2, seed)


@pytest.mark.parametrize(("bits", "evaluators"), [(20, 2), (22, 2), (22, 5), (45, 3)])
def test_rounding_is_unbiased(bits: int, evaluators: int) -> None:
    """Up with probability of the fraction: within five standard deviations of it."""
    count = 40_000
    for fraction in (1, 2**10, 2**19, 3 * 2**18, 2**20 - 1):
        z = np.full(count, (5 << bits) + (fraction << (bits - 20)))
        up = checked_truncation(z, bits, evaluators, seed=fraction).mean()
        p = fraction / 2**20
        assert abs(up - p) < 5 * np.sqrt(p * (1 - p) / count) + 1 / count


@pytest.mark.slow
def test_rounding_has_no_mean_error() -> None:
    z = np.random.default_rng(5).integers(-TOP, TOP, 2_000_000)
    up = checked_truncation(z, 20, 2, seed=5)
    error = up - (z & (2**20 - 1)) / 2**20
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(z))


@pytest.mark.parametrize("bits", [-1, 0, 63, 64])
def test_truncation_by_bits_that_are_not_there(bits: int) -> None:
    with pytest.raises(RangeError):
        compute(lambda r: truncate(secret(r, np.zeros(2)).shares(), bits))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(WORD, WORD), min_size=1, max_size=8),
    st.integers(2, 5),
    st.booleans(),
)
def test_products_are_exact(pairs: list[tuple[int, int]], evaluators: int, constant: bool) -> None:
    x, y = (np.array(column) for column in zip(*pairs, strict=True))

    def program(role: Role) -> Masked:
        right = public(role, y) if constant else secret(role, y, 1)
        return remask(multiply(secret(role, x), right) + multiply(right, right))

    np.testing.assert_array_equal(compute(program, evaluators), x * y + y * y)


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (4, 1, 3), (1, 6, 1), (17, 9, 33)])
def test_matrix_products(shape: tuple[int, int, int], evaluators: int) -> None:
    m, k, n = shape
    rng = np.random.default_rng(m * k * n)
    x, y = (rng.integers(-(2**63), 2**63 - 1, s) for s in ((m, k), (k, n)))

    def program(role: Role) -> Masked:
        a, b = secret(role, x), secret(role, y.T.copy(), 1).transpose()
        return remask(matmul(a, b) + matmul(public(role, x), b) + matmul(a, public(role, y)))

    np.testing.assert_array_equal(compute(program, evaluators), 3 * (x @ y))


def test_matrix_product_of_reversed_rows() -> None:
    x = np.arange(12).reshape(3, 4)

    def program(role: Role) -> Masked:
        a = secret(role, x)
        return remask(matmul(a.select(slice(None, None, -1)), a.transpose()))

    np.testing.assert_array_equal(compute(program), x[::-1] @ x.T)


def test_shapes_that_do_not_fit() -> None:
    x = np.zeros((2, 3))
    for program in (
        lambda r: remask(matmul(secret(r, x), secret(r, x))),
        lambda r: remask(matmul(secret(r, x[0]), secret(r, x))),
        lambda r: remask(multiply(secret(r, x), secret(r, x[:, :2]))),
    ):
        with pytest.raises(ValueError, match="shape"):
            compute(program)


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_broadcast_products(evaluators: int) -> None:
    x, y = np.arange(-6, 6).reshape(3, 4), np.arange(3).reshape(3, 1)
    out = compute(lambda r: remask(multiply(secret(r, x), secret(r, y, 1))), evaluators)
    np.testing.assert_array_equal(out, x * y)


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
def test_select(evaluators: int) -> None:
    rng = np.random.default_rng(evaluators)
    x, y = rng.integers(-(2**63), 2**63 - 1, (2, 5, 4))

    def program(role: Role) -> Masked:
        bit = negative(secret(role, x))
        first = select(bit, secret(role, y, 1)) + select(bit.negate(), public(role, x))
        row = select(bit.select(0).negate(), secret(role, y, 1))
        return remask(first + row)

    expected = np.where(x < 0, y, x) + np.where(x[0] >= 0, y, 0)
    np.testing.assert_array_equal(compute(program, evaluators), expected)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_long_chains(evaluators: int) -> None:
    """Truncations of truncations, used several times, each masked once."""
    x = np.random.default_rng(0).uniform(-3, 3, 50)

    def program(role: Role) -> Masked:
        t = secret(role, np.rint(x * 2**20).astype(np.int64))
        power: Any = t
        for _ in range(6):
            power = truncate(multiply(power, t), 20)
        return power + t

    np.testing.assert_allclose(compute(program, evaluators) / 2**20, x**7 + x, atol=0.02)


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    x = np.full(shape, -5)

    def program(role: Role) -> Masked:
        a = secret(role, x)
        return truncate(multiply(a, a), 1) + remask(a.shares())

    assert compute(program).shape == shape
