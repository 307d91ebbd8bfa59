"""The view of corrupted evaluators does not depend on the secrets of the others.

In full size: `transcript_first` fixes the view before the secrets are known; the program has to
compute the right result for every choice of secrets all the same. In a small ring: `enumeration`
runs all values of all randomness and compares how often each view occurs. At the end, programs
that leak on purpose show that both find it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mpc_train.networks.graph import layers_of
from mpc_train.networks.models import uniform_words
from mpc_train.networks.network import Network
from mpc_train.training.losses import CrossEntropy
from mpc_train.training.optim import SGD
from mpc_train.training.trainer import Trainer
from protocols import crypten_functions, functions
from protocols.arithmetic import matmul, multiply, remask, round_off, select, truncate
from protocols.comparison import all_of, argmax, below, maximum, negative, relu, weighted
from protocols.crypten_backend import MaskedTensor, attach
from protocols.evaluator import Evaluator
from protocols.fixed_point import encode
from protocols.inputs import from_dealer, from_outside
from protocols.masked import Additive, Early, Masked, public
from protocols.reveal import Output, RevealGate
from protocols.role import Mask, Role, Words
from protocols.scaling import extremes, floor_quotient, inverse_deviation
from tests.support.enumeration import InsecureEnumeration, Window, view_distribution
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.transcript_first import OutsideStub, View, run_scripted

F = 20
ONE = 1 << F
CORRUPTED = [
    (2, (0,)),
    (2, (1,)),
    (3, (0,)),
    (3, (1,)),
    (3, (2,)),
    (3, (0, 1)),
    (3, (0, 2)),
    (3, (1, 2)),
]

Outputs = list[np.ndarray]


def fixed(x: Masked) -> Masked:
    """x as it is straight after a truncation, with its early form."""
    return truncate(x.scale(ONE).shares(), F)


@dataclass(frozen=True)
class Case:
    """A program of one secret tensor, and what has to come out of it."""

    draw: Callable[[np.random.Generator], Words]
    program: Callable[[Masked], Sequence[Masked]]
    check: Callable[[Words, Outputs], None]


def words_in(low: int, high: int, *shape: int) -> Callable[[np.random.Generator], Words]:
    return lambda rng: rng.integers(low, high, shape, np.int64)


def equals(*expected: Callable[[Words], Words]) -> Callable[[Words, Outputs], None]:
    def check(x: Words, outputs: Outputs) -> None:
        for function, output in zip(expected, outputs, strict=True):
            np.testing.assert_array_equal(output, function(x))

    return check


def near(expected: Callable[[np.ndarray], np.ndarray], bound: float) -> Callable[..., None]:
    def check(x: Words, outputs: Outputs) -> None:
        np.testing.assert_allclose(outputs[0] / ONE, expected(x / ONE), atol=bound, rtol=0)

    return check


def one_up(x: Words, outputs: Outputs) -> None:
    assert set(np.unique(outputs[0] - (x >> F))) <= {0, 1}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True)
    return result


def first_one_hot(x: Words) -> Words:
    return (np.arange(x.shape[-1]) == x.argmax(-1)[..., None]).astype(np.int64)


FULL = words_in(-(2**63), 2**63 - 1, 9)
WIDE = words_in(-(2**62), 2**62, 9)


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
        lambda x: [functions.sigmoid(fixed(x), F)],
        near(lambda x: 1 / (1 + np.exp(-x)), 2**-14 + 3 / ONE),
    ),
    "tanh": Case(
        words_in(-6 * ONE, 6 * ONE, 9),
        lambda x: [functions.tanh(x, F)],
        near(np.tanh, 2**-14 + 3 / ONE),
    ),
    "exp": Case(
        words_in(-12 * ONE, 1, 9), lambda x: [functions.exp(x, F)], near(np.exp, 2**-14 + 3 / ONE)
    ),
    "reciprocal": Case(
        words_in(ONE, 60 * ONE, 9),
        lambda x: [functions.reciprocal(x, F, 64)],
        near(lambda x: 1 / x, 2**-13 + 3 / ONE),
    ),
    "rsqrt": Case(
        words_in(ONE // 4, 60 * ONE, 9),
        lambda x: [functions.rsqrt(x, F, 64)],
        near(lambda x: x**-0.5, 2**-11 + 3 / ONE),
    ),
    "divide": Case(
        words_in(ONE, 60 * ONE, 2, 4),
        lambda x: [functions.divide(x.select(0), x.select(1), F)],
        near(lambda x: x[0] / x[1], 2**-9),
    ),
    "inverse deviation": Case(
        words_in(0, 1 << 44, 9),
        lambda x: [inverse_deviation(x, F)],
        near(lambda x: np.where(x < 1, 1, np.maximum(x, 1) * 2.0**-16) ** -0.5, 2**-9),
    ),
    "extremes": Case(
        words_in(-(2**60), 2**60, 3, 4),
        lambda x: list(extremes(x, x)),
        equals(lambda x: x.min(-1), lambda x: x.max(-1)),
    ),
    "floor": Case(WIDE, lambda x: [floor_quotient(x.shares(), F)], equals(lambda x: x >> F)),
    "softmax": Case(
        words_in(-6 * ONE, 6 * ONE, 3, 7),
        lambda x: [functions.softmax(x, F)],
        near(softmax, 2**-12),
    ),
}


def secrets_of(case: Case) -> list[Words]:
    """Different secrets of one shape: some at random, and both ends of the range everywhere."""
    drawn = [case.draw(np.random.default_rng(seed)) for seed in range(4)]
    return [*drawn, np.full_like(drawn[0], max(d.max() for d in drawn)), np.sort(drawn[1], -1)]


def honest_owner(evaluators: int, corrupted: Sequence[int]) -> int:
    return next(i for i in range(evaluators) if i not in corrupted)


def same_views(views: Sequence[View]) -> None:
    for first, second in pairwise(views):
        assert [kind for kind, _ in first] == [kind for kind, _ in second]
        assert first == second


@pytest.mark.parametrize(("evaluators", "corrupted"), CORRUPTED)
@pytest.mark.parametrize("name", CASES)
def test_primitive(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Six secrets under one view; the honest coins that the view leaves free differ too."""
    case = CASES[name]
    views = []
    for coins, value in enumerate(secrets_of(case)):

        def program(role: Role, value: Words = value) -> Any:
            x = secret(role, value, honest_owner(evaluators, corrupted))
            return [shares_of(output) for output in case.program(x)]

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        outputs = [combine_masked(parts) for parts in zip(*results, strict=True)]
        case.check(value, outputs)
        views.append(view)
    same_views(views)


@pytest.mark.parametrize(
    ("evaluators", "corrupted"), [(4, (2,)), (4, (0, 1, 3)), (5, (0, 1, 2, 4))]
)
def test_many_evaluators(evaluators: int, corrupted: tuple[int, ...]) -> None:
    for name in ("multiply", "truncate", "relu", "sigmoid"):
        test_primitive(name, evaluators, corrupted)


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

            def spy(part: Any, mask: Mask, bits: int = 64) -> Any:
                opened = original(part, mask, bits)
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


WIDTHS = (5, 4, 3)


def training_step(role: Role, rows: np.ndarray, labels: np.ndarray, owner: int, steps: int) -> Any:
    """Steps of an MLP with momentum and weight decay, over the CrypTen layer."""
    crypten_functions.install()
    attach(role, F)
    weights = {
        f"{2 * i}.{kind}": uniform_words(
            (WIDTHS[i + 1], WIDTHS[i])[: 1 if kind == "bias" else 2], ONE // 2, 1, f"{i}{kind}"
        )
        for i in range(2)
        for kind in ("weight", "bias")
    }
    model = Network(layers_of(WIDTHS), weights)
    named = model.parameters
    optimizer = SGD(named, momentum=Fraction(9, 10), weight_decay=Fraction(1, 100))
    trainer = Trainer(model, CrossEntropy(), named, optimizer)
    x = MaskedTensor(rows, src=owner, shape=rows.shape)
    y = MaskedTensor(labels, src=owner, shape=labels.shape)
    for step in range(steps):
        role.begin_step(step + 1)
        trainer.step(x, y, Fraction(1, 10))
        role.finish()
    return [shares_of(parameter.masked()) for parameter in named.values()]


def plain_training(rows: np.ndarray, labels: np.ndarray, steps: int) -> list[np.ndarray]:
    import torch

    layers: list[Any] = []
    for i in range(2):
        layer = torch.nn.Linear(WIDTHS[i], WIDTHS[i + 1], dtype=torch.float64)
        for kind, target in (("weight", layer.weight), ("bias", layer.bias)):
            start = uniform_words(tuple(target.shape), ONE // 2, 1, f"{i}{kind}") / ONE
            target.data = torch.from_numpy(start)
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(rows)), torch.from_numpy(labels)
        )
        loss.backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("evaluators", "corrupted"), [(2, (0,)), (2, (1,)), (3, (1,)), (3, (0, 2))]
)
def test_training_steps(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Two steps of the MLP: the weights are right and the view is the same for all data."""
    owner = honest_owner(evaluators, corrupted)
    views = []
    for coins in range(3):
        rng = np.random.default_rng(coins)
        rows = rng.uniform(-2, 2, (6, WIDTHS[0]))
        labels = np.eye(WIDTHS[-1])[rng.integers(0, WIDTHS[-1], 6)]

        def program(role: Role, rows: Any = rows, labels: Any = labels) -> Any:
            return training_step(role, rows, labels, owner, 2)

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        for got, expected in zip(
            zip(*results, strict=True), plain_training(rows, labels, 2), strict=True
        ):
            np.testing.assert_allclose(combine_masked(got) / ONE, expected, atol=2**-10)
        views.append(view)
    same_views(views)


# All randomness of small instances


def _with_value(program: Callable[..., Any], value: int, role: Role, lanes: int) -> Any:
    return program(role, lanes, value)


def distributions(
    program: Callable[[Role, int, int], Any],
    secrets: Sequence[int],
    corrupted: Sequence[int],
    windows: Sequence[Window],
    supports: Sequence[int] = (),
    evaluators: int = 2,
    expected: Callable[[int], set[int]] | None = None,
    result_bits: int = 64,
) -> list[dict[int, int]]:
    found = []
    for value in secrets:
        results, counts, random_bits = view_distribution(
            partial(_with_value, program, value),
            evaluators,
            corrupted,
            windows=windows,
            supports=supports,
            seed=5,
        )
        assert sum(counts.values()) >= 1 << random_bits
        if expected is not None:
            plain = combine_masked(results) & ((1 << result_bits) - 1 if result_bits < 64 else -1)
            assert set(np.unique(plain)) == expected(value)
        found.append(counts)
    return found


def constant(role: Role, lanes: int, value: int) -> Masked:
    return secret(role, np.full(lanes, value), 0)


RING = 4


def small_product(role: Role, lanes: int, value: int) -> Any:
    x, y = constant(role, lanes, value % 16), constant(role, lanes, value // 16)
    return shares_of(remask(multiply(x, y)))


def test_all_views_of_a_product() -> None:
    """x·y modulo 2^4, all masks; every view occurs equally often."""
    found = distributions(
        small_product,
        [0, 1, 0x5F, 0xF7, 0x88, 0xFF],
        (1,),
        [(RING, 0)] * 4,
        expected=lambda v: {(v % 16) * (v // 16) % 16},
        result_bits=RING,
    )
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_product_three_evaluators() -> None:
    windows = [(2, 0)] * 4
    for corrupted in ((1,), (2,), (1, 2)):
        found = distributions(small_product, [0, 0x33, 0x21], corrupted, windows, evaluators=3)
        assert all(counts == found[0] for counts in found)


def small_truncation(top: int) -> Callable[[Role, int, int], Any]:
    def program(role: Role, lanes: int, value: int) -> Any:
        return shares_of(truncate(constant(role, lanes, value << top).shares(), 61))

    return program


@pytest.mark.parametrize(
    ("evaluators", "corrupted", "width", "dealt"),
    [(2, (1,), 5, (4, 2, 2)), (3, (1, 2), 5, (4, 2, 2)), (3, (2,), 4, (2, 1, 1))],
)
def test_all_views_of_a_truncation(
    evaluators: int, corrupted: tuple[int, ...], width: int, dealt: tuple[int, ...]
) -> None:
    """Z_2^width at the top of the ring, one or two fractional bits, every value that fits."""
    top, cut = 64 - width, width - 3
    found = distributions(
        small_truncation(top),
        range(-(1 << (width - 2)), 1 << (width - 2)),
        corrupted,
        [(width, top), (width, top), *((bits, 0) for bits in dealt)],
        evaluators=evaluators,
        expected=lambda v: {(v >> cut) % 8, ((v >> cut) + (v % (1 << cut) > 0)) % 8},
        result_bits=3,
    )
    assert all(counts == found[0] for counts in found)


SIGN_BITS = 6
SIGN_SUPPORTS = (0b1_0000_0001, 0b11)
"""x is a multiple of 8 modulo 2^6: its digits of 4 and 1 bits are 0 or 8, and 0 or 1."""


def small_form(role: Role, lanes: int, value: int) -> Masked:
    x = constant(role, lanes, value << 3)
    early = Early(SIGN_BITS, x.delta, x.lam if role.is_dealer else None)
    return Masked(role, x.shape, x.delta, x.lam, True, early)


def small_sign(role: Role, lanes: int, value: int) -> Any:
    return shares_of(remask(negative(small_form(role, lanes, value)).shares()))


def small_thresholds(role: Role, lanes: int, value: int) -> Any:
    bits = below(small_form(role, lanes, value), (0, 8))
    return [shares_of(remask(bits.select(i).shares())) for i in range(2)]


def small_relu(role: Role, lanes: int, value: int) -> Any:
    x = constant(role, lanes, value << 60)
    low = small_form(role, lanes, value)
    return shares_of(remask(select(negative(low), x)))


def test_all_views_of_a_sign() -> None:
    found = distributions(
        small_sign,
        range(-4, 4),
        (1,),
        [(3, 3), (2, 0), (2, 0)],
        SIGN_SUPPORTS,
        expected=lambda v: {int(v < 0)},
        result_bits=2,
    )
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_sign_three_evaluators() -> None:
    windows = [(3, 3), (1, 0), (1, 0)]
    found = distributions(small_sign, (-4, -1, 0, 3), (1, 2), windows, SIGN_SUPPORTS, 3)
    assert all(counts == found[0] for counts in found)


def test_all_views_of_two_thresholds() -> None:
    windows = [(3, 3), (1, 0), (1, 0), (1, 0)]
    found = distributions(small_thresholds, (-3, -1, 0, 1, 3), (1,), windows, SIGN_SUPPORTS)
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_selection() -> None:
    windows = [(3, 60), (3, 3), (3, 0), (3, 60), (3, 60)]
    found = distributions(
        small_relu,
        (-4, -1, 0, 3),
        (1,),
        windows,
        SIGN_SUPPORTS,
        expected=lambda v: {min(v, 0) << 60},
    )
    assert all(counts == found[0] for counts in found)


# Programs that leak on purpose


def insecure_mask_twice(x: Masked) -> Sequence[Masked]:
    """Two products opened under one mask: their difference is public."""
    mask = x.role.mask(x.shape)
    again = Mask(mask.array)
    return [
        Masked(x.role, x.shape, x.role.open(z.part, m), m.words)
        for z, m in ((x.shares(), mask), (x.scale(3).shares(), again))
    ]


def insecure_mask_of_zero(x: Masked) -> Sequence[Masked]:
    mask = Mask(np.zeros(x.shape, np.int64))
    return [Masked(x.role, x.shape, x.role.open(x.shares().part, mask), mask.words)]


def insecure_old_mask(x: Masked) -> Sequence[Masked]:
    """A second value opened under the mask that x has already."""
    fresh = remask(x.shares())
    assert fresh.lam is not None
    delta = x.role.open(x.scale(2).shares().part, Mask(fresh.lam))
    return [Masked(x.role, x.shape, delta, fresh.lam)]


def insecure_wrap_bit(x: Masked) -> Sequence[Masked]:
    """Truncation that publishes whether z + r has wrapped around."""
    role = x.role
    mask = role.mask(x.shape)
    opened = role.open(x.shares().shift(1 << 62).part, mask)
    r = mask.words
    u = role.deal((r.view(np.uint64) >> np.uint64(F)).view(np.int64), x.shape)
    m = role.deal((r.view(np.uint64) >> np.uint64(63)).view(np.int64), x.shape)
    nothing = Mask(np.zeros(x.shape, np.int64))
    wrapped = role.open(opened.map(lambda c: np.where(c < 0, 0, m)), nothing)
    high = np.int64(1 << (64 - F))

    def delta(c: Words) -> Words:
        words: Words = (c.view(np.uint64) >> np.uint64(F)).view(np.int64)
        return words + high * wrapped.get() - np.int64(1 << (62 - F))

    lam = (r.view(np.uint64) >> np.uint64(F)).view(np.int64) if role.is_dealer else u
    return [Masked(role, x.shape, opened.map(delta), lam)]


def insecure_reveal(x: Masked) -> Sequence[Masked]:
    """The output's mask as it was opened, not dealt anew: tells the summands apart."""
    fresh = remask(x.shares())
    if isinstance(x.role, Evaluator):
        assert fresh.lam is not None
        x.role.broadcast(b"rvl ", fresh.lam)
    return [public(x.role, np.zeros(x.shape, np.int64))]


@pytest.mark.parametrize(
    "leak",
    [insecure_mask_twice, insecure_mask_of_zero, insecure_old_mask, insecure_wrap_bit],
)
def test_leaks_are_seen(leak: Callable[[Masked], Sequence[Masked]]) -> None:
    """The results stay right, so only the view can tell."""
    views = []
    for seed in range(4):
        value = np.random.default_rng(seed).integers(-(2**62), 2**62, 64)

        def program(role: Role, value: Words = value) -> Any:
            return [shares_of(output) for output in leak(secret(role, value, 0))]

        results, view = run_scripted(program, 2, (1,))
        outputs = [combine_masked(parts) for parts in zip(*results, strict=True)]
        factors = {"insecure_mask_twice": (1, 3), "insecure_old_mask": (2,)}.get(leak.__name__)
        if factors is not None:
            for factor, output in zip(factors, outputs, strict=True):
                np.testing.assert_array_equal(output, factor * value)
        views.append(view)
    assert any(view != views[0] for view in views[1:])


def test_leak_of_a_reveal_is_seen() -> None:
    views = []
    for seed in range(4):
        tensors = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, (2, 4))

        def program(role: Role, tensors: Words = tensors) -> Any:
            x = secret(role, tensors[0], 0) + secret(role, 7 - tensors[0], 1)
            return [shares_of(output) for output in insecure_reveal(x)]

        views.append(run_scripted(program, 3, (2,))[1])
    assert any(view != views[0] for view in views[1:])


def test_leak_of_a_wrap_bit_is_counted() -> None:
    """The same in the small ring, where the distributions themselves differ."""

    def program(role: Role, lanes: int, value: int) -> Any:
        x = constant(role, lanes, value << 59)
        mask = role.mask(x.shape)
        opened = role.open(x.shares().shift(1 << 62).part, mask)
        nothing = Mask(np.zeros(x.shape, np.int64))
        top = (mask.words.view(np.uint64) >> np.uint64(63)).view(np.int64)
        m = role.deal(top, x.shape)
        role.open(opened.map(lambda c: np.where(c < 0, 0, m)), nothing)

    windows = [(5, 59), (5, 59), (1, 0)]
    assert len({str(d) for d in distributions(program, (-8, 0, 7), (1,), windows)}) > 1


def test_leak_of_shared_leaf_masks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mask for the leaves of two thresholds, everything else as it should be."""
    drawn = InsecureEnumeration.planes

    def shared(self: Any, i: int, shape: tuple[int, ...], source: Any) -> Any:
        lanes = self.lanes // 8
        if len(shape) == 2 and shape[0] == 2 and shape[-1] == 2 * lanes:
            half = drawn(self, i, (*shape[:-1], lanes), source)
            return np.concatenate([half, half], axis=-1)
        return drawn(self, i, shape, source)

    monkeypatch.setattr(InsecureEnumeration, "planes", shared)
    windows = [(3, 3), (1, 0), (1, 0), (1, 0)]
    found = distributions(small_thresholds, range(-4, 4), (1,), windows, SIGN_SUPPORTS)
    assert any(counts != found[0] for counts in found)


def test_encoding_of_the_training_data_is_what_is_shared() -> None:
    """The rows of the training test really enter: other rows, other weights."""
    rows = np.random.default_rng(0).uniform(-2, 2, (6, WIDTHS[0]))
    labels = np.eye(WIDTHS[-1])[[0, 1, 2, 0, 1, 2]]
    assert not np.array_equal(encode(rows, F), encode(-rows, F))
    first, second = plain_training(rows, labels, 2), plain_training(-rows, labels, 2)
    assert not np.allclose(first[0], second[0], atol=2**-8)


def test_additive_values_print_nothing() -> None:
    def program(role: Role) -> str:
        x = secret(role, np.array([123456789]))
        z: Additive = multiply(x, x)
        bit = negative(x)
        mask = role.mask((1,))
        return " ".join(map(repr, (x, z, bit, mask, role, x.delta)))

    for text in run_scripted(program, 2, (1,))[0]:
        assert "12345" not in text and "array" not in text and "[" not in text
