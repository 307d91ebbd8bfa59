"""Splines, quotients and softmax: within the bounds that their docstrings state."""

from collections.abc import Callable

import numpy as np
import pytest

from protocols.errors import RangeError
from protocols.functions import splines
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from protocols.shares.masked import Masked
from tests.support.lockstep import compute
from tests.support.loopback import secret

Function = Callable[..., Masked]

CASES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float, float]] = {
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -14, 14, 2**-14),
    "tanh": (np.tanh, -9, 9, 2**-14),
    "exp": (np.exp, -16, 0, 2**-14),
    "reciprocal": (lambda x: 1 / x, 1, 64, 2**-13),
    "rsqrt": (lambda x: x**-0.5, 0.25, 64, 2**-11),
}
SCALES = [14, 17, 20, 22, 24]


def evaluated(
    name: str, x: np.ndarray, bits: int, evaluators: int = 2, cut: bool = True
) -> np.ndarray:
    """`name` of x at scale 2^bits, straight after a truncation or not."""
    words = np.rint(x * 2**bits).astype(np.int64)

    def program(role: Role) -> Masked:
        value = secret(role, words)
        if cut:
            value = truncate(value.scale(1 << bits).shares(), bits)
        extra = {"upper": 64} if name in ("reciprocal", "rsqrt") else {}
        result: Masked = getattr(splines, name)(value, bits, **extra)
        return result

    found: np.ndarray = compute(program, evaluators)
    return found / 2**bits


def grid(low: float, high: float, bits: int, count: int = 4001) -> np.ndarray:
    steps: np.ndarray = np.rint(np.linspace(low, high, count) * 2**bits) / 2**bits
    return steps


def slack(name: str, bits: int) -> float:
    """Units of 2^-bits: of the rounding of x, twice of products, and, where pieces are wide and
    the scale is small, of the slopes."""
    wide = name in ("reciprocal", "rsqrt")
    return float((7 if wide else 4) + (96 if wide and bits < 20 else 0)) * 2.0**-bits


@pytest.mark.parametrize("bits", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_bound_on_a_dense_grid(name: str, bits: int) -> None:
    """The stated bound, and some units: the inputs' rounding, and that of three truncations."""
    plain, low, high, bound = CASES[name]
    x = grid(low, high, bits)
    assert np.abs(evaluated(name, x, bits) - plain(x)).max() <= bound + slack(name, bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(14, 25))
@pytest.mark.parametrize("name", CASES)
def test_bound_on_a_finer_grid(name: str, bits: int) -> None:
    plain, low, high, bound = CASES[name]
    x = grid(low, high, bits, 100_001)
    assert np.abs(evaluated(name, x, bits) - plain(x)).max() <= bound + slack(name, bits)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("bits", SCALES)
def test_exact_outside(bits: int, cut: bool) -> None:
    far = float(2 ** (36 - bits))
    left = np.array([-10.01, -20, -1000, -far])
    for name, low, high in (("sigmoid", 0, 1), ("tanh", -1, 1), ("exp", 0, None)):
        edge = left - 1 if name == "exp" else left
        np.testing.assert_array_equal(evaluated(name, edge, bits, cut=cut), low)
        if high is not None:
            np.testing.assert_array_equal(evaluated(name, -left, bits, cut=cut), high)
    np.testing.assert_array_equal(evaluated("exp", np.array([0, 0.5, far]), bits, cut=cut), 1)


@pytest.mark.parametrize("name", CASES)
def test_knots_meet(name: str) -> None:
    """Just beside every knot the bound holds as well."""
    bits = 20
    plain, low, high, bound = CASES[name]
    knots = np.array(splines.spline_at(name.upper(), bits).knots)
    near = (knots[:, None] + np.array([-1, 0, 1])).reshape(-1) / 2**bits
    x = near[(near >= low) & (near <= high)]
    assert np.abs(evaluated(name, x, bits) - plain(x)).max() <= bound + 7 * 2.0**-bits


@pytest.mark.parametrize("evaluators", [3, 4, 5])
@pytest.mark.parametrize("name", CASES)
def test_more_evaluators(name: str, evaluators: int) -> None:
    plain, low, high, bound = CASES[name]
    x = grid(low, high, 20, 101)
    assert np.abs(evaluated(name, x, 20, evaluators) - plain(x)).max() <= bound + 7 * 2.0**-20


@pytest.mark.parametrize("bits", SCALES)
@pytest.mark.parametrize("classes", [2, 3, 10, 16])
def test_softmax(classes: int, bits: int) -> None:
    rng = np.random.default_rng(classes)
    x = np.rint(rng.normal(0, 4, (20, classes)) * 2**bits) / 2**bits
    x[0] = 0
    x[1] = 100.0 * (np.arange(classes) == 1)
    e = np.exp(x - x.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    bound = 2**-12 + 2.0 ** (4 - bits)
    assert np.abs(evaluated("softmax", x, bits) - p).max() <= bound


@pytest.mark.parametrize("evaluators", [2, 3])
def test_divide(evaluators: int) -> None:
    bits = 20
    rng = np.random.default_rng(1)
    b = np.concatenate([2.0 ** rng.uniform(-9, 10, 300), [2**-9, 0.5, 1, 2, 1023.99]])
    a = np.clip(rng.uniform(-1000, 1000, b.size), -1000 * b, 1000 * b)
    words = [np.rint(v * 2**bits).astype(np.int64) for v in (a, b)]

    def program(role: Role) -> Masked:
        return splines.divide(secret(role, words[0]), secret(role, words[1], 1), bits)

    exact = words[0] / words[1]
    error = np.abs(compute(program, evaluators) / 2**bits - exact)
    assert (error <= np.abs(exact) * 2**-15 + 2.0**-10).all()


def test_divide_by_what_a_long_truncation_left() -> None:
    """38 bits cut off leave 26 for a comparison, fewer than the thresholds need."""
    a, b = np.array([0.07, 0.12, 0.5, -1.0]), np.array([0.1, 0.24, 0.5, 3.0])
    over, under = (np.rint(x * 2**20).astype(np.int64) for x in (a, b))

    def program(role: Role) -> Masked:
        divisor = truncate(secret(role, under).scale(1 << 38).shares(), 38)
        return splines.divide(secret(role, over), divisor, 20)

    np.testing.assert_allclose(compute(program, 2) / 2**20, a / b, atol=2**-15)


def test_digest_names_all_constants() -> None:
    digests = {splines.constants_digest(bits) for bits in SCALES}
    assert len(digests) == len(SCALES)
    assert splines.constants_digest(20) == splines.constants_digest(20)


@pytest.mark.parametrize("bits", [22, 24, 26])
def test_ranges_whose_squares_do_not_fit(bits: int) -> None:
    """Between 2^(31 − f) and the last knot, squares would wrap: refused, not wrong."""
    words = np.full(3, 150 << bits)
    for function in (splines.reciprocal, splines.rsqrt):

        def program(role: Role, function: Function = function) -> Masked:
            return function(secret(role, words), bits)

        with pytest.raises(RangeError, match="fraction_bits"):
            compute(program)
