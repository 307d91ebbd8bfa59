"""Rows' gradients clipped over shares: none is ever larger than the norm, or much smaller."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.networks.convert import convert
from mpc_train.networks.graph import layers_of as graph_of
from mpc_train.networks.network import Network
from mpc_train.privacy.clip_plan import ClipPlan, Layer, make_plan
from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from mpc_train.training.optimizers import row_clipping
from mpc_train.training.optimizers.gradients import Gradient
from mpc_train.training.optimizers.row_clipping import ClippedSums, Noise, RowsOfLayer, factors
from protocols.arrays import Words
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import concatenate
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, run_roles, secret, shares_of
from tests.support.tensors import attached, shared_in

F = 20
ONE = 1 << F
LAYERS = [Layer(5, 4, True), Layer(4, 3, False)]
LIMIT = 4


def plan_of(
    clip: Fraction = Fraction(1), bits: int = F, batch: int = 32, given: str = "0.weight"
) -> ClipPlan:
    return make_plan(
        LAYERS,
        fraction_bits=bits,
        clip=clip,
        input_square=Fraction(5 * LIMIT**2 + 1),
        sum_limit=clip * batch + 100 * clip,
        rate=Fraction(1, 4),
        given=given,
    )


def rows_of(values: Words) -> list[tuple[Words, Words]]:
    """x and g of each layer, cut out of int64[rows, 16]."""
    x0, g0, x1, g1 = np.split(values, [5, 9, 13], axis=1)
    return [(x0, g0), (x1, g1)]


def over_shares(plan: ClipPlan, values: Words) -> tuple[Words, list[Words]]:
    """φ of each row, and the words of φ·g for each layer, which pass in the opposite order: names
    need not be in that in which a row passes them."""
    clipped = ClippedSums(plan, Noise(Fraction(1)), Fraction(1))

    def program(role: Role) -> tuple[object, ...]:
        layers = [
            RowsOfLayer(
                secret(role, x), secret(role, g, 1), layer.has_bias, index == 0 and bool(plan.given)
            )
            for index, (layer, (x, g)) in enumerate(zip(LAYERS, rows_of(values), strict=True))
        ]
        factor = factors(plan, layers[::-1])
        scaled = [clipped._scaled(layer.g, factor) for layer in layers]
        return tuple(shares_of(each) for each in (factor, *scaled))

    with np.errstate(over="ignore"):
        results = run_roles(program, 2)
        found = [combine_masked(part) for part in zip(*results, strict=True)]
    return found[0], found[1:]


def norms(values: Words, gradients: list[Words]) -> list[int]:
    """The squared norm of each row's part of the sums, in whole words at scale 2^-(2f + kept)."""
    found = []
    for row in range(len(values)):
        total = 0
        for layer, (x, _), g in zip(LAYERS, rows_of(values), gradients, strict=True):
            square = sum(int(word) ** 2 for word in x[row]) + (ONE**2 if layer.has_bias else 0)
            total += square * sum(int(word) ** 2 for word in g[row])
        found.append(total)
    return found


def within(plan: ClipPlan, values: Words) -> tuple[Words, list[int]]:
    factor, scaled = over_shares(plan, values)
    found = norms(values, scaled)
    most = plan.clip * (1 << plan.weight_bits)
    assert all(norm <= most**2 for norm in found)
    return factor, found


def made(scale_x: float, scale_g: float, rows: int = 64, seed: int = 1) -> Words:
    rng = np.random.default_rng(seed)
    x = np.clip(rng.normal(size=(rows, 16)), -3, 3)
    x[:, 5:9] *= scale_g
    x[:, 9:13] *= scale_x
    x[:, 13:] *= scale_g
    return np.rint(x * ONE).astype(np.int64)


@pytest.mark.parametrize("clip", [Fraction(1), Fraction(1, 8), Fraction(3)])
def test_rows_are_clipped_to_the_norm_and_no_further(clip: Fraction) -> None:
    plan = plan_of(clip)
    values = np.concatenate([made(1, scale) for scale in (0.003, 0.1, 1.0)])
    factor, found = within(plan, values)
    before = np.sqrt([float(q) for q in norms(values, [g for _, g in rows_of(values)])]) / ONE**2
    after = np.sqrt([float(q) for q in found]) / 2.0**plan.weight_bits
    wanted = np.minimum(before, float(clip))
    assert (after <= wanted * 1.001 + 1e-4).all()
    assert (after >= wanted * 0.97 - 1e-4).all()
    assert (factor <= 1.01 * (1 << 16)).all()
    assert 0 < (before > float(clip)).sum() < len(before)


def test_rows_out_of_range_are_left_out() -> None:
    """Whatever wrapped around: words as large as a truncation can give."""
    plan, values = plan_of(), made(1, 1, rows=40)
    wild = 1 << (65 - F)
    values[0, 9] = wild
    values[1, 9:13] = -wild
    values[2, 5:9] = wild
    values[3, 13:] = [wild, -wild, wild]
    values[4, 9] = 1 << 32  # its square is 0 modulo 2^64
    values[5, 5] = 1 << 32
    values[6, 13] = 1 << 30
    values[7, 5:] = 1 << 32
    factor, _ = within(plan, values)
    assert (factor[:8] == 0).all()
    assert (factor[8:] > 0).all()


def test_inputs_that_nobody_bounds_are_looked_at() -> None:
    """Squares of computed inputs wrap around as those of hidden ones do."""
    plan, values = plan_of(given=""), made(1, 1, rows=4)
    values[0, 0] = 1 << 32
    values[1, :4] = 1 << 31
    factor, _ = within(plan, values)
    assert (factor[:2] == 0).all() and (factor[2:] > 0).all()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([Fraction(1), Fraction(1, 5), Fraction(2)]),
    st.floats(0, 26),
)
def test_no_row_is_larger_whatever_it_contains(seed: int, clip: Fraction, spread: float) -> None:
    """Words of all magnitudes, up to the largest that a truncation gives."""
    rng = np.random.default_rng(seed)
    sizes = 2 ** rng.uniform(0, 20 + spread, (64, 16)).clip(0, 45)
    sizes[:, :5] = sizes[:, :5].clip(0, LIMIT * ONE)
    values = np.rint(sizes * rng.choice([-1, 0, 1], sizes.shape)).astype(np.int64)
    within(plan_of(clip), values)


def test_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RangeError, match="or raise privacy"):
        plan_of(Fraction(1, 1000))
    with pytest.raises(RangeError, match="fraction_bits"):
        plan_of(bits=26)
    with pytest.raises(RangeError, match="do not fit a word"):
        make_plan(
            LAYERS,
            fraction_bits=19,
            clip=Fraction(512),
            input_square=Fraction(64 * 1024**2 + 1),
            sum_limit=Fraction(1 << 15),
            rate=Fraction(1, 10000),
            given="0.weight",
        )
    with pytest.raises(RangeError, match="too many"):
        make_plan(
            [Layer(5, 60_000, True), Layer(60_000, 3, True)],
            fraction_bits=F,
            clip=Fraction(1),
            input_square=Fraction(6),
            sum_limit=Fraction(100),
            rate=Fraction(1, 4),
        )


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_a_regression_s_rows_are_clipped_over_shares(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the columns: rows of any length, their sums without noise as in the clear."""
    monkeypatch.setattr(row_clipping, "with_noise", lambda gradient, *_: gradient)
    generator, rows, columns = np.random.default_rng(5), 60, 6
    sizes = 2.0 ** generator.integers(-4, 4, (rows, 1))
    x = np.clip(generator.normal(0, 1, (rows, columns)) * sizes, -LIMIT, LIMIT)
    x = np.rint(x * ONE) / ONE
    y = generator.integers(0, 2, (rows, 1)).astype(np.float64)
    w = np.rint(generator.uniform(-1, 1, columns) * ONE) / ONE
    plan = make_plan(
        [Layer(columns, 1, True)],
        fraction_bits=F,
        clip=Fraction(1, 2),
        input_square=Fraction(columns * LIMIT**2 + 1),
        sum_limit=Fraction(100),
        rate=Fraction(1, 8),
    )
    loss = BinaryCrossEntropy() if kind == "logistic" else SquaredError(Fraction(1, 2))
    start = {
        "weight": np.rint(w.reshape(1, -1) * ONE).astype(np.int64),
        "bias": np.zeros(1, np.int64),
    }

    def program(role: Role) -> Any:
        with attached(role, F):
            model = Network(graph_of((columns, 1)), start)
            named = model.parameters
            for tensor in named.values():
                tensor.keeps_rows = True
            # One owner has the first columns, another one the rest.
            left, right = (
                MaskedTensor(torch.from_numpy(part.copy()), src=owner)
                for owner, part in enumerate((x[:, :2], x[:, 2:]))
            )
            inputs = MaskedTensor(concatenate([left.masked(), right.masked()], 1))
            outputs = model(inputs)
            outputs.backward(loss.gradient(outputs, MaskedTensor(torch.from_numpy(y), src=0)))
            sums = ClippedSums(plan, Noise(Fraction(1)), Fraction(1, rows))(named)
            return {
                name: (shares_of(remask(gradient.summands)), gradient.bits)
                for name, gradient in sums.items()
            }

    results = run_lockstep(program, 2)
    found = {
        name: combine_masked([result[name][0] for result in results]) / 2.0 ** results[0][name][1]
        for name in start
    }
    z = x @ w
    residual = (1 / (1 + np.exp(-z)) if kind == "logistic" else z) - y[:, 0]
    gradients = residual[:, None] * np.column_stack([x, np.ones(rows)])
    norms = np.linalg.norm(gradients, axis=1)
    factors_of = np.minimum(1, 0.5 / norms)
    assert 5 < (factors_of < 1).sum() < rows - 5
    clipped = gradients * factors_of[:, None]
    expected, total = clipped.sum(0), abs(clipped).sum(0).max()
    both = np.concatenate([found["weight"][0], found["bias"]])
    # Norms are rounded upwards, so that no row is longer: each is up to 1% shorter.
    np.testing.assert_allclose(both, expected, atol=0.01 * total)


NET = torch.nn.Sequential(
    torch.nn.Conv2d(1, 3, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Flatten(),
    torch.nn.Linear(12, 5),
    torch.nn.ReLU(),
    torch.nn.Linear(5, 3),
)


@pytest.mark.parametrize("size", [0.05, 2.0])
def test_a_convolutional_network_is_clipped_as_in_pytorch(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums over a batch, without noise, are those of rows clipped one by one."""
    monkeypatch.setattr(row_clipping, "with_noise", lambda gradient, *_: gradient)
    torch.manual_seed(3)
    graph = convert(NET.float(), (1, 4, 4)).graph
    module, rows = NET.double(), 8
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -0.6, 0.6)
        parameter.data = torch.round(parameter.data * ONE) / ONE
    images = torch.round(torch.randn(rows, 1, 4, 4, dtype=torch.float64) * size * ONE) / ONE
    classes = torch.arange(rows) % 3
    plan = make_plan(
        [Layer(0, 27), Layer(0, 3), Layer(12, 5, True), Layer(5, 3, True)],
        fraction_bits=F,
        clip=Fraction(1),
        input_square=Fraction(16),
        sum_limit=Fraction(100),
        rate=Fraction(1, 8),
    )
    start = {
        name: np.rint(p.detach().numpy() * ONE).astype(np.int64)
        for name, p in module.named_parameters()
    }

    def program(role: Role) -> Any:
        with attached(role, F):
            model = Network(graph, start)
            named = model.parameters
            for tensor in named.values():
                tensor.keeps_rows = True
            x, y = shared_in(role, images.reshape(rows, -1).numpy(), np.eye(3)[classes.numpy()])
            outputs = model(x)
            outputs.backward(CrossEntropy().gradient(outputs, y))
            sums = ClippedSums(plan, Noise(Fraction(1)), Fraction(1, rows))(named)
            return {
                name: (shares_of(remask(gradient.summands)), gradient.bits)
                for name, gradient in sums.items()
            }

    results = run_lockstep(program, 2)
    found = {
        name: combine_masked([result[name][0] for result in results]) / 2.0 ** results[0][name][1]
        for name in start
    }
    clipped, total = 0, {name: np.zeros(p.shape) for name, p in module.named_parameters()}
    for image, which in zip(images, classes, strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(image[None]), which[None]).backward()
        grads = {name: p.grad.numpy() for name, p in module.named_parameters()}  # type: ignore[union-attr]
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        clipped += norm > 1
        for name, g in grads.items():
            total[name] += g * min(1, 1 / norm)
    assert clipped == (rows if size > 1 else clipped) and (size > 1 or clipped < rows)
    for name, expected in total.items():
        np.testing.assert_allclose(found[name], expected, atol=0.01 * rows)
        assert np.abs(expected).max() > 0.02


def test_noise_with_bands_follows_that_of_its_own_parameter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    followed: list[Any] = []

    def with_noise(gradient: Any, deviation: Fraction, past: Any) -> Any:
        followed.append(past)
        return gradient

    monkeypatch.setattr(row_clipping, "with_noise", with_noise)
    banded, alone, gradient = Noise(Fraction(1), 3), Noise(Fraction(1)), cast(Gradient, None)
    for name in ("weight", "bias", "weight", "bias"):
        banded.on(name, gradient)
    first, second, third, fourth = followed
    assert first is third and second is fourth and first is not second
    assert first.count == second.count == 3
    alone.on("weight", gradient)
    assert followed[-1] is None
    # Another training has noise of its own.
    Noise(Fraction(1), 3).on("weight", gradient)
    assert followed[-1] is not first
