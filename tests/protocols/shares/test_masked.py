"""What is local on masked values: the same as on the plaintext, at all roles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.comparison.compare import below, negative
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import Masked, concatenate, public, reduced_shape
from tests.support.lockstep import compute
from tests.support.loopback import secret

X = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (2, 3, 4))
Y = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, (2, 3, 4))

UNARY: dict[str, tuple[Callable[[Any], Any], Callable[[np.ndarray], Any]]] = {
    "reshape": (lambda x: x.reshape(6, -1), lambda x: x.reshape(6, 4)),
    "transpose": (lambda x: x.transpose(), lambda x: x.T),
    "transpose axes": (lambda x: x.transpose(1, 0, 2), lambda x: x.transpose(1, 0, 2)),
    "select one": (lambda x: x.select(1), lambda x: x[1]),
    "select slice": (
        lambda x: x.select((slice(None), slice(None, None, -2))),
        lambda x: x[:, ::-2],
    ),
    "select rows": (lambda x: x.select(np.array([1, 1, 0])), lambda x: x[[1, 1, 0]]),
    "select last": (lambda x: x.select((..., [3, 0])), lambda x: x[..., [3, 0]]),
    "broadcast": (
        lambda x: x.select((slice(None), slice(0, 1))).broadcast_to((2, 3, 4)),
        lambda x: np.broadcast_to(x[:, :1], (2, 3, 4)),
    ),
    "sum": (lambda x: x.sum(), lambda x: x.sum()),
    "sum axis": (lambda x: x.sum(1), lambda x: x.sum(1)),
    "sum axes": (lambda x: x.sum((0, 2), keepdims=True), lambda x: x.sum((0, 2), keepdims=True)),
    "scale": (lambda x: x.scale(-7), lambda x: x * -7),
    "negation": (lambda x: -x, lambda x: -x),
    "shift": (lambda x: x.shift(12345), lambda x: x + 12345),
    "shift array": (lambda x: x.shift(np.arange(4)), lambda x: x + np.arange(4)),
    "shift wider": (
        lambda x: x.shift(np.arange(10).reshape(5, 1, 1, 2)[..., :1]),
        lambda x: x + np.arange(10).reshape(5, 1, 1, 2)[..., :1],
    ),
}


def as_summands(x: Masked) -> Any:
    return x.shares()


def as_product(x: Masked) -> Any:
    return multiply(x, remask(public(x.role, np.ones(x.shape, np.int64)).shares()))


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, evaluators: int) -> None:
    function, plain = UNARY[name]

    def masked(role: Role) -> Masked:
        return function(secret(role, X, 1))

    def additive(role: Role) -> Masked:
        return remask(function(as_summands(secret(role, X, 1))))

    def product(role: Role) -> Masked:
        return remask(function(as_product(secret(role, X, 1))))

    def constant(role: Role) -> Masked:
        return function(public(role, X))

    for program in (masked, additive, product, constant):
        np.testing.assert_array_equal(compute(program, evaluators), plain(X))


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_binary(evaluators: int) -> None:
    kinds: list[Callable[[Role, np.ndarray, int], Masked]] = [
        secret,
        lambda role, words, _: public(role, words),
    ]
    for left in kinds:
        for right in kinds:
            for small in (Y, Y[:, :1], Y[0, 0], Y[0, 0, 0]):

                def plus(role: Role, left: Any = left, right: Any = right, s: Any = small) -> Any:
                    return left(role, X, 0) + right(role, s, 1)

                def minus(role: Role, left: Any = left, right: Any = right, s: Any = small) -> Any:
                    return right(role, s, 1) - left(role, X, 0)

                np.testing.assert_array_equal(compute(plus, evaluators), X + small)
                np.testing.assert_array_equal(compute(minus, evaluators), small - X)


def test_additive_sums() -> None:
    def program(role: Role) -> Masked:
        x, y = secret(role, X, 0), secret(role, Y[:, :1], 1)
        return remask(multiply(x, x) - y.shares() + multiply(y, y).scale(3))

    y = Y[:, :1]
    np.testing.assert_array_equal(compute(program), X * X - y + 3 * y * y)


def test_concatenate() -> None:
    def program(role: Role) -> Masked:
        return concatenate([secret(role, X, 0), public(role, Y), secret(role, Y, 1)], 1)

    np.testing.assert_array_equal(compute(program, 3), np.concatenate([X, Y, Y], 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**41), 2**41), min_size=1, max_size=9), st.integers(2, 4))
def test_early_forms_follow_their_value(values: list[int], evaluators: int) -> None:
    """What local operations make of the early form gives the same signs as the value itself."""
    x = np.array(values)

    def program(role: Role) -> Masked:
        t = truncate(secret(role, x).scale(1 << 20).shares(), 20)
        u = truncate(secret(role, x[::-1], 1).scale(1 << 20).shares(), 20)
        forms = [
            t,
            -t,
            t - u,
            t + u,
            t.shift(3),
            t.select(slice(None, None, -1)),
            t.reshape(1, -1).transpose().reshape(-1),
            t.reshape(1, -1).broadcast_to((2, len(x))).select(1),
        ]
        assert all(form.early is not None and form.early.bits == 44 for form in forms)
        assert t.scale(2).early is None and t.sum().early is None
        bits = [negative(form).shares().reshape(1, -1) for form in forms]
        plain = [remask(b) for b in bits]
        return concatenate(plain)

    r = x[::-1]
    expected = [x < 0, -x < 0, x - r < 0, x + r < 0, x + 3 < 0, r < 0, x < 0, x < 0]
    np.testing.assert_array_equal(compute(program, evaluators), np.array(expected))


def test_masked_bits() -> None:
    def program(role: Role) -> Masked:
        bits = below(secret(role, np.arange(-3, 3)), (0, 2)).negate().select(1).reshape(2, 3)
        return remask(bits.shares())

    np.testing.assert_array_equal(compute(program), (np.arange(-3, 3) >= 2).reshape(2, 3))


def test_reduced_shape() -> None:
    assert reduced_shape((2, 3, 4), None, False) == ()
    assert reduced_shape((2, 3, 4), (0, -1), True) == (1, 3, 1)


def test_shapes_that_do_not_fit() -> None:
    for bad in (
        lambda x: x.reshape(5, 5),
        lambda x: x.broadcast_to((3, 3)),
        lambda x: x.select(7),
        lambda x: x + x.reshape(4, 3, 2),
    ):

        def program(role: Role, bad: Any = bad) -> Masked:
            return bad(secret(role, X))

        with pytest.raises((ValueError, IndexError)):
            compute(program)
