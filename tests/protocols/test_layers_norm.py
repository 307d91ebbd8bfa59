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

from protocols import layers_activation, layers_norm  # noqa: F401  register the functions
from protocols.layers_norm import inverse_root
from tests.support.layers import (
    UNIT,
    F,
    forward_and_gradients,
    opened,
    torch_forward_and_gradients,
)
from tests.support.lockstep import run_lockstep
from tests.support.loopback import secret, shares_of

EXAMPLES = settings(max_examples=8, deadline=None)
SMOOTH: dict[str, Callable[..., Any]] = {
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


def test_inverse_root() -> None:
    values = np.concatenate([2.0 ** np.linspace(-10, 11.99, 400), [0.25, 1, 4, 1024]])
    words = np.rint(values / UNIT).astype(np.int64)
    results = run_lockstep(
        lambda role: shares_of(inverse_root(secret(role, words), F)), evaluators=3
    )
    exact = 1 / np.sqrt(words * UNIT)
    found = opened(results)
    # v as a word is exact here; the last product is rounded.
    assert (np.abs(found - exact) <= exact * 2.0**-17 + 2 * UNIT).all()
    low = np.array([4, 9, 100], np.int64)
    found = opened(run_lockstep(lambda role: shares_of(inverse_root(secret(role, low), F)), 2))
    np.testing.assert_allclose(found, 1 / np.sqrt(low * UNIT), rtol=2.0**-14)


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize(("rows", "count"), [(1, 3), (5, 40), (3, 512), (2, 1300)])
@pytest.mark.parametrize("spread", [0.25, 6.0])
def test_standardize(rows: int, count: int, spread: float, evaluators: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(3, spread, (rows, count))
    upstream = rng.uniform(-1, 1, (rows, count))

    def plain(x: Any) -> Any:
        return functional.layer_norm(x, (count,), eps=1e-5)

    expected, gradients = torch_forward_and_gradients(plain, {"x": x}, upstream)
    found, ours = forward_and_gradients(
        lambda x: x.standardize(Fraction("0.00001"))[0], {"x": x}, upstream, evaluators
    )
    size = max(1.0, np.abs(expected).max())
    # What the module states for the row of least and that of largest variance.
    least, most = x.var(axis=1).min(), x.var(axis=1).max()
    relative = 2.0**-18 + 2 * UNIT / least + 4 * UNIT * most**0.5
    bound = relative * size + 2 * UNIT / least**0.5 + UNIT
    assert np.abs(found - expected).max() <= bound
    # The gradient is (g − mean(g) − y · mean(g · y)) / spread: y enters squared, the root once.
    after = (3 * bound * size + relative * np.abs(upstream).max() + 4 * UNIT) / least**0.5
    assert np.abs(ours["x"] - gradients["x"]).max() <= after
