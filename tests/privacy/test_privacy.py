"""The view of corrupted evaluators does not depend on the secrets of the others: primitives.

In full size: `transcript_first` fixes the view before the secrets are known; the program has to
compute the right result for every choice of secrets all the same. Each primitive has a line in
`CASES`. Beside this module: `test_privacy_small` runs all values of all randomness in a small ring
and compares how often each view occurs, `test_privacy_leaks` has programs that leak on purpose,
layers are in `test_privacy_layers`, losses, optimizers and decisions in `tests/mpc_train`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from protocols.arrays import Words
from protocols.comparison.compare import all_of, argmax, below, maximum, negative, relu, weighted
from protocols.functions import splines
from protocols.functions.exponential import exponential_bits, relative_exp
from protocols.functions.magnitude import inverse_root, reciprocal
from protocols.functions.matrix_inverse import inverse
from protocols.functions.matrix_inverse_plan import inverse_plan
from protocols.functions.scaling import extremes, floor_quotient
from protocols.linkage.shuffle import pick, shuffle
from protocols.ring.rational import MANTISSA_BITS
from protocols.roles.role import Mask, Role
from protocols.shares.arithmetic import matmul, multiply, remask, round_off, select, truncate
from protocols.shares.inputs import from_dealer, from_outside
from protocols.shares.masked import Additive, Masked, concatenate
from protocols.shares.reveal import Output, RevealGate
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.magnitudes import check_shifts, shifts
from tests.support.privacy import (
    CORRUPTED,
    ONE,
    Case,
    F,
    Outputs,
    check_case,
    equals,
    fixed,
    honest_owner,
    near,
    one_up,
    same_views,
    words_in,
)
from tests.support.transcript_first import OutsideStub, run_scripted


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True)
    return result


def first_one_hot(x: Words) -> Words:
    return (np.arange(x.shape[-1]) == x.argmax(-1)[..., None]).astype(np.int64)


def assert_near_floor(rounded: Words, x: Words, bits: int) -> None:
    assert set(np.unique(rounded - (x >> bits))) <= {0, 1}


FULL = words_in(-(2**63), 2**63 - 1, 9)
WIDE = words_in(-(2**62), 2**62, 9)


TWO = Fraction(2)
PLAN = inverse_plan(2, Fraction(1, 4))


def turned(x: Masked) -> Masked:
    """The symmetric matrix (1/2 + a, b; b, 1/2 − a), its eigenvalues between 0.3 and 0.7."""
    a, b = x.select(0).reshape(1, 1), x.select(1).reshape(1, 1)
    half = 1 << (PLAN.matrix_bits - 1)
    upper = concatenate([a.shift(half), b], 1)
    return concatenate([upper, concatenate([b, (-a).shift(half)], 1)])


def inverted(x: Words, outputs: Outputs) -> None:
    a, b = x / 2.0**PLAN.matrix_bits
    exact = np.linalg.inv([[0.5 + a, b], [b, 0.5 - a]])
    np.testing.assert_allclose(outputs[0] / 2.0**PLAN.inverse_bits, exact, atol=4e-3)


def shuffled(x: Masked) -> list[Masked]:
    """Rows in an order of each evaluator's, and some of them under positions of their own."""
    for owner in range(x.role.evaluators):
        x = shuffle(x, owner, x.role.permutation(x.shape[0], owner))
    return [x, pick(x, np.arange(x.shape[0])[::-1].copy(), x.shape[0])]


def to_mantissa(expected: Callable[[np.ndarray], np.ndarray]) -> Callable[..., None]:
    def check(x: Words, outputs: Outputs) -> None:
        one = float(1 << MANTISSA_BITS)
        np.testing.assert_allclose(outputs[0] / one, expected(x / one), atol=2**-26, rtol=0)

    return check


def same_rows(x: Words, outputs: Outputs) -> None:
    for output in outputs:
        np.testing.assert_array_equal(np.sort(output, 0), np.sort(x, 0))
    np.testing.assert_array_equal(outputs[1], outputs[0][::-1])


def relu_of_a_rounding(x: Masked) -> list[Masked]:
    """Selections and the lift from one first opening of a truncation."""
    rounding = round_off(x.scale(ONE).shares(), F)
    bit = negative(rounding)
    return [
        remask(select(bit.negate(), rounding)),
        remask(select(bit, rounding)),
        rounding.lift(),
    ]


CASES: dict[str, Case] = {
    "remask": Case(FULL, lambda x: [remask(x.shares())], equals(lambda x: x)),
    "multiply": Case(FULL, lambda x: [remask(multiply(x, x))], equals(lambda x: x * x)),
    "matmul": Case(
        words_in(-(2**63), 2**63 - 1, 3, 4),
        lambda x: [remask(matmul(x, x.transpose())), remask(matmul(x.transpose(), x))],
        equals(lambda x: x @ x.T, lambda x: x.T @ x),
    ),
    "truncate": Case(WIDE, lambda x: [truncate(x.shares(), F)], one_up),
    "truncate by many bits": Case(
        words_in(-(2**61), 2**61, 9),
        lambda x: [truncate(x.shares(), 45)],
        lambda x, outputs: assert_near_floor(outputs[0], x, 45),
    ),
    "truncate a product": Case(
        words_in(-(2**30), 2**30, 9),
        lambda x: [truncate(multiply(x, x), F)],
        lambda x, outputs: one_up(x * x, outputs),
    ),
    "negative, 64 bits": Case(
        FULL, lambda x: [remask(negative(x).shares())], equals(lambda x: (x < 0).astype(np.int64))
    ),
    "negative, 44 bits": Case(
        words_in(-(2**42), 2**42, 9),
        lambda x: [remask(negative(fixed(x)).shares())],
        equals(lambda x: (x < 0).astype(np.int64)),
    ),
    "several thresholds": Case(
        words_in(-8, 8, 9),
        lambda x: [remask(below(x, (-5, 0, 1, 7)).shares())],
        equals(lambda x: (x < np.array([[-5], [0], [1], [7]])).astype(np.int64)),
    ),
    "all_of": Case(
        words_in(-8, 8, 9),
        lambda x: [remask(all_of(below(x, (-5, 0, 1, 3, 4, 7))).shares())],
        equals(lambda x: (x < -5).astype(np.int64)),
    ),
    "weighted": Case(
        words_in(-8, 8, 9),
        lambda x: [remask(weighted(below(x, (0, 5)), np.array([3, -7])))],
        equals(lambda x: 3 * (x < 0) - 7 * (x < 5)),
    ),
    "select": Case(
        words_in(-(2**62), 2**62, 9),
        lambda x: [remask(select(negative(x), x)), remask(select(negative(x).negate(), x))],
        equals(lambda x: np.minimum(x, 0), lambda x: np.maximum(x, 0)),
    ),
    "relu": Case(
        words_in(-(2**42), 2**42, 9),
        lambda x: [relu(fixed(x))[0]],
        equals(lambda x: np.maximum(x, 0)),
    ),
    "relu of a rounding": Case(
        words_in(-(2**42), 2**42, 9),
        relu_of_a_rounding,
        equals(lambda x: np.maximum(x, 0), lambda x: np.minimum(x, 0), lambda x: x),
    ),
    "relu and back": Case(
        words_in(-(2**42), 2**42, 9),
        lambda x: [remask(select(relu(x)[1], x.scale(3)))],
        equals(lambda x: 3 * np.maximum(x, 0)),
    ),
    "argmax": Case(
        words_in(-2, 3, 4, 5), lambda x: [remask(argmax(x).shares())], equals(first_one_hot)
    ),
    "maximum": Case(
        words_in(-(2**60), 2**60, 4, 5),
        lambda x: [maximum(x)[0]],
        equals(lambda x: x.max(-1, keepdims=True)),
    ),
    "sigmoid": Case(
        words_in(-12 * ONE, 12 * ONE, 9),
        lambda x: [splines.sigmoid(fixed(x), F)],
        near(lambda x: 1 / (1 + np.exp(-x)), 2**-14 + 3 / ONE),
    ),
    "tanh": Case(
        words_in(-6 * ONE, 6 * ONE, 9),
        lambda x: [splines.tanh(x, F)],
        near(np.tanh, 2**-14 + 3 / ONE),
    ),
    "exp": Case(
        words_in(-12 * ONE, 1, 9), lambda x: [splines.exp(x, F)], near(np.exp, 2**-14 + 3 / ONE)
    ),
    "reciprocal": Case(
        words_in(ONE, 60 * ONE, 9),
        lambda x: [splines.reciprocal(x, F, 64)],
        near(lambda x: 1 / x, 2**-13 + 3 / ONE),
    ),
    "rsqrt": Case(
        words_in(ONE // 4, 60 * ONE, 9),
        lambda x: [splines.rsqrt(x, F, 64)],
        near(lambda x: x**-0.5, 2**-11 + 3 / ONE),
    ),
    "divide": Case(
        words_in(ONE, 60 * ONE, 2, 4),
        lambda x: [splines.divide(x.select(0), x.select(1), F)],
        near(lambda x: x[0] / x[1], 2**-9),
    ),
    "exp of both signs": Case(
        words_in(-3 * ONE, 3 * ONE, 9),
        lambda x: [truncate(relative_exp(x, F, -TWO, TWO), exponential_bits(TWO) - F)],
        near(lambda x: np.exp(np.clip(x, -2, 2)), 2**-15),
    ),
    "inverse of a matrix": Case(
        words_in(-(1 << PLAN.matrix_bits - 3), 1 << PLAN.matrix_bits - 3, 2),
        lambda x: [inverse(turned(x), PLAN)],
        inverted,
    ),
    "shifted": Case(words_in(0, 1 << 40, 9), shifts, check_shifts),
    "mantissa reciprocal": Case(
        words_in(1 << MANTISSA_BITS, 2 << MANTISSA_BITS, 9),
        lambda x: [reciprocal(x)],
        to_mantissa(lambda u: 1 / u),
    ),
    "mantissa root": Case(
        words_in(1 << MANTISSA_BITS, 4 << MANTISSA_BITS, 9),
        lambda x: [inverse_root(x)],
        to_mantissa(lambda u: u**-0.5),
    ),
    "extremes": Case(
        words_in(-(2**60), 2**60, 3, 4),
        lambda x: list(extremes(x, x)),
        equals(lambda x: x.min(-1), lambda x: x.max(-1)),
    ),
    "floor": Case(WIDE, lambda x: [floor_quotient(x.shares(), F)], equals(lambda x: x >> F)),
    "shuffle": Case(FULL, shuffled, same_rows),
    "softmax": Case(
        words_in(-6 * ONE, 6 * ONE, 3, 7),
        lambda x: [splines.softmax(x, F)],
        near(softmax, 2**-12),
    ),
}


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
@pytest.mark.parametrize("name", CASES)
def test_primitive(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    check_case(CASES[name], evaluators, corrupted)


@pytest.mark.parametrize(
    ("evaluators", "corrupted"), [(4, (2,)), (4, (0, 1, 3)), (5, (0, 1, 2, 4))]
)
def test_many_evaluators(evaluators: int, corrupted: tuple[int, ...]) -> None:
    for name in ("multiply", "truncate", "relu", "sigmoid"):
        check_case(CASES[name], evaluators, corrupted)


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
def test_rounding_follows_the_formula(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """The chosen opening decides the rounding, for every secret as documented."""
    value = WIDE(np.random.default_rng(3))
    seen: dict[str, Words] = {}

    def program(role: Role) -> Any:
        x = secret(role, value, honest_owner(evaluators, corrupted))
        z = x.shares()
        if role.index == 0:
            original = role.open

            def spy(part: Any, mask: Mask, bits: int = 64, low: int = 0) -> Any:
                opened = original(part, mask, bits, low)
                if bits == 64:
                    seen["c"] = opened.get()
                return opened

            role.open = spy  # type: ignore[method-assign]
        return shares_of(truncate(z, F))

    results, _ = run_scripted(program, evaluators, corrupted)
    offset = (seen["c"] - (1 << 62)) & (ONE - 1)
    expected = (value >> F) + (offset < (value & (ONE - 1)))
    np.testing.assert_array_equal(combine_masked(results), expected)


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
def test_inputs(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Tensors of an evaluator, of the dealer and of somebody outside, multiplied."""
    views = []
    for coins in range(5):
        values = np.random.default_rng(coins).integers(-(2**63), 2**63 - 1, (3, 4))

        def program(role: Role, values: Words = values) -> Any:
            x = secret(role, values[0], honest_owner(evaluators, corrupted))
            y = from_dealer(role, (4,), values[1] if role.is_dealer else None)
            stub: Any = None if role.is_dealer else OutsideStub(role, values[2])
            z = from_outside(role, (4,), stub)
            return shares_of(remask(multiply(remask(multiply(x, y)), z)))

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        np.testing.assert_array_equal(combine_masked(results), values[0] * values[1] * values[2])
        views.append(view)
    same_views(views)


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
def test_inputs_of_the_corrupted(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Their own tensor and what a common program makes of it tell them nothing more."""
    mine = np.arange(-3, 4)
    views = []
    for coins in range(5):
        value = np.random.default_rng(coins).integers(-(2**30), 2**30, 7)

        def program(role: Role, value: Words = value) -> Any:
            x = secret(role, value, honest_owner(evaluators, corrupted))
            y = secret(role, mine, corrupted[0])
            return shares_of(relu(truncate(multiply(x, y).scale(8), 3))[0])

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        np.testing.assert_array_equal(combine_masked(results), np.maximum(value * mine, 0))
        views.append(view)
    same_views(views)


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
def test_reveal_shows_the_output_alone(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Different tensors of all owners with one sum: the opened sum is all that shows.

    The coins are the same each time: shares that are revealed are among them.
    """
    views = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tensors = rng.integers(-(2**63), 2**63 - 1, (evaluators, 4))
        for i in corrupted:
            tensors[i] = i
        owner = honest_owner(evaluators, corrupted)
        tensors[owner] = 7 - (tensors.sum(axis=0) - tensors[owner])

        def program(role: Role, tensors: Words = tensors) -> Any:
            total = secret(role, tensors[0], 0)
            for i in range(1, evaluators):
                total = total + secret(role, tensors[i], i)
            gate = RevealGate(frozenset({Output("sum", 0), Output("model", 0)}))
            half = gate.for_recipients("model", 0, total)
            return gate.to_everybody("sum", 0, total), half

        results, view = run_scripted(program, evaluators, corrupted)
        halves = []
        for revealed, half in results[:-1]:
            np.testing.assert_array_equal(revealed, 7)
            halves.append(half)
        np.testing.assert_array_equal(halves[0].delta - sum(h.lam for h in halves), 7)
        # A recipient that evaluates sees all halves: they belong to the view as well.
        seen = [("half", h.delta.tobytes() + h.lam.tobytes()) for h in halves]
        views.append([*view, *seen])
    same_views(views)


def test_additive_values_print_nothing() -> None:
    def program(role: Role) -> str:
        x = secret(role, np.array([123456789]))
        z: Additive = multiply(x, x)
        bit = negative(x)
        mask = role.mask((1,))
        return " ".join(map(repr, (x, z, bit, mask, role, x.delta)))

    for text in run_scripted(program, 2, (1,))[0]:
        assert "12345" not in text and "array" not in text and "[" not in text
