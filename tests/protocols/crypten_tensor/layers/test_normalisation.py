"""Activations and normalisation over shares against PyTorch: forward and gradients."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.crypten_tensor.layers import activation, normalisation  # noqa: F401
from protocols.crypten_tensor.layers.normalisation import inverse_root
from protocols.crypten_tensor.layers.normalisation_plan import check_norm, chunk_of
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.errors import RangeError
from protocols.roles.role import Role
from tests.support.layers import (
    UNIT,
    F,
    forward_and_gradients,
    opened,
    part,
    torch_forward_and_gradients,
)
from tests.support.lockstep import run_lockstep
from tests.support.loopback import secret, shares_of

EXAMPLES = settings(max_examples=8, deadline=None)
SMOOTH: dict[str, Callable[..., Any]] = {
    "ELU": lambda x: functional.elu(x),
    "GELU": lambda x: functional.gelu(x),
    "SILU": lambda x: functional.silu(x),
    "SMOOTH_RELU": lambda x: functional.softplus(x),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("evaluators", [2, 3])
def test_smooth(name: str, evaluators: int) -> None:
    x = np.concatenate([np.linspace(-16, 16, 801), [0, -300, 300]])
    upstream = np.full(x.shape, 0.75)
    expected, gradients = torch_forward_and_gradients(SMOOTH[name], {"x": x}, upstream)
    found, ours = forward_and_gradients(lambda x: x.smooth(name), {"x": x}, upstream, evaluators)
    assert np.abs(found - expected).max() <= 2.0**-14 + 3 * UNIT
    assert np.abs(ours["x"] - gradients["x"]).max() <= 2.0**-7


@EXAMPLES
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 3))
def test_leaky_and_clamp(shape: list[int], evaluators: int) -> None:
    rng = np.random.default_rng(sum(shape))
    x, upstream = rng.uniform(-9, 9, shape), rng.uniform(-2, 2, shape)
    cases: list[tuple[Any, Any]] = [
        (lambda x: x.leaky(Fraction("0.01")), lambda x: functional.leaky_relu(x, 0.01)),
        (lambda x: x.leaky(Fraction("0.3")), lambda x: functional.leaky_relu(x, 0.3)),
        (lambda x: x.clamp_between(Fraction(0), Fraction(6)), lambda x: functional.relu6(x)),
        (
            lambda x: x.clamp_between(Fraction(-2), Fraction("0.5")),
            lambda x: functional.hardtanh(x, -2, 0.5),
        ),
    ]
    for over_shares, plain in cases:
        expected, gradients = torch_forward_and_gradients(plain, {"x": x}, upstream)
        found, ours = forward_and_gradients(over_shares, {"x": x}, upstream, evaluators)
        # The slope is rounded to 20 bits, |x| < 2^4; one truncation.
        assert np.abs(found - expected).max() <= 2.0**-17 + UNIT
        assert np.abs(ours["x"] - gradients["x"]).max() <= 2.0**-17 + UNIT


@pytest.mark.parametrize(("classes", "evaluators"), [(2, 3), (7, 2), (16, 2), (19, 3), (40, 2)])
def test_softmax(classes: int, evaluators: int) -> None:
    rng = np.random.default_rng(classes)
    x, upstream = rng.uniform(-5, 5, (3, classes)), rng.uniform(-1, 1, (3, classes))
    expected, gradients = torch_forward_and_gradients(
        lambda x: torch.softmax(x, -1), {"x": x}, upstream
    )
    found, ours = forward_and_gradients(lambda x: x.soft_max(), {"x": x}, upstream, evaluators)
    assert np.abs(found - expected).max() <= 2.0**-12
    # Each factor of the gradient's products is off by 2^-12, their sum by one a class.
    assert np.abs(ours["x"] - gradients["x"]).max() <= (2 + 2**0.5) * 2.0**-12


@pytest.mark.parametrize(("one", "evaluators"), [(1 << F, 2), (3 << 2 * F, 3), (200 << 2 * F, 2)])
def test_inverse_root(one: int, evaluators: int) -> None:
    values = np.concatenate([2.0 ** np.linspace(-16.6, 11.99, 400), [2.0**-16, 0.25, 1, 4, 1024]])
    words = np.rint(values * one).astype(np.int64)
    least, most = int(words.min()), one << 12

    def program(role: Role) -> Any:
        return shares_of(inverse_root(secret(role, words), Fraction(one), least, most, F))

    found = opened(run_lockstep(program, evaluators))
    exact = 1 / np.sqrt(words / one)
    # What the power of two and the mantissa of sqrt(one) add is below a unit.
    assert (np.abs(found - exact) <= exact * 2.0**-17 + 2 * UNIT).all()


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize(
    "count",
    [1, 2, 3, 4, 8, 40, 256, 257, 1300, 20_000],
)
def test_standardize(count: int, evaluators: int) -> None:
    """Any number of values and any variance, down to that of equal ones."""
    rng = np.random.default_rng(count)
    spread = np.repeat([0, 0.0005, 0.003, 0.02, 0.25, 6], 1 if count > 300 else 4)
    x = rng.normal(3, spread[:, None], (len(spread), count))
    upstream = rng.uniform(-1, 1, x.shape)

    def plain(x: Any) -> Any:
        return functional.layer_norm(x, (count,), eps=1e-5)

    expected, gradients = torch_forward_and_gradients(plain, {"x": x}, upstream)
    found, ours = forward_and_gradients(
        lambda x: x.standardize(Fraction("0.00001")), {"x": x}, upstream, evaluators
    )
    root = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    # What the module states, row by row.
    bound = np.abs(expected) * 2.0**-17 + 2 * UNIT * root + UNIT
    assert (np.abs(found - expected) <= bound).all()
    # The gradient is (g − mean(g) − y · mean(g · y)) · root: y enters squared, and at most sqrt(n)
    # of it for one value.
    size = np.maximum(np.abs(expected), 1)
    after = (3 * bound.max(axis=1, keepdims=True) * size + 4 * UNIT) * root
    after += np.abs(gradients["x"]) * 2.0**-17
    assert (np.abs(ours["x"] - gradients["x"]) <= after).all()


def test_kept_statistics() -> None:
    """Mean and variance of rows, as batch norm keeps them."""
    x = np.random.default_rng(4).normal(2, 1.5, (3, 300))

    def program(role: Role) -> Any:
        attach(role, F)
        _, mean, variance = MaskedTensor(x, src=0).standardize(Fraction("0.00001"), True)
        return part(mean), part(variance)

    means, variances = zip(*run_lockstep(program, 2), strict=True)
    mean, variance = opened(means), opened(variances)
    np.testing.assert_allclose(mean, x.mean(axis=1), atol=3 * UNIT)
    np.testing.assert_allclose(variance, x.var(axis=1), rtol=2.0**-18, atol=3 * UNIT)


def test_more_fraction_bits_than_squares_have_room_for() -> None:
    assert chunk_of(20) == 256
    check_norm(1 << 20, 20)
    with pytest.raises(RangeError, match="at most"):
        chunk_of(24)
    with pytest.raises(RangeError, match="smaller batches"):
        check_norm(1 << 30, 20)
