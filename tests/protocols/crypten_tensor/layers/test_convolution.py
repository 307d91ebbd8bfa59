"""Convolutions and pools over shares against PyTorch: forward and gradients, random shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.crypten_tensor.layers import convolution, pooling  # noqa: F401  register the functions
from protocols.crypten_tensor.layers.window import Window, columns, from_columns
from tests.support.layers import UNIT, forward_and_gradients, torch_forward_and_gradients

EXAMPLES = settings(max_examples=12, deadline=None)


@dataclass(frozen=True)
class Shape:
    axes: int
    channels: int
    rows: int
    sizes: tuple[int, ...]
    window: Window

    def maps(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-2, 2, (self.channels, self.rows, *self.sizes))


@st.composite
def shapes(draw: Any, dilated: bool = True, pool: bool = False) -> Shape:
    axes = draw(st.integers(1, 2))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel = some(1, 3)
    stride = some(1, 3)
    padding = tuple(draw(st.integers(0, k // 2 if pool else 2)) for k in kernel)
    dilation = some(1, 2) if dilated else (1,) * axes
    sizes = tuple(
        d * (k - 1) + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True)
    )
    round_up = pool and draw(st.booleans())
    window = Window(kernel, stride, padding, dilation, round_up)
    return Shape(axes, draw(st.integers(1, 4)), draw(st.integers(1, 3)), sizes, window)


def to_torch(x: torch.Tensor) -> torch.Tensor:
    """Channels first to rows first, and back."""
    return x.transpose(0, 1)


def close(ours: Any, theirs: Any, bound: float) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max(initial=0) <= bound


@EXAMPLES
@given(shapes(), st.integers(1, 2), st.sampled_from(["one", "two", "all"]), st.integers(2, 3))
def test_convolution(shape: Shape, outputs: int, grouping: str, evaluators: int) -> None:
    rng = np.random.default_rng(prod(shape.sizes))
    groups = {"one": 1, "two": 2, "all": shape.channels}[grouping]
    if shape.channels % groups:
        groups = 1
    out = outputs * groups
    window = shape.window
    inputs = {
        "x": shape.maps(rng),
        "weight": rng.uniform(-1, 1, (out, shape.channels // groups, *window.kernel)),
        "bias": rng.uniform(-1, 1, out),
    }
    upstream = rng.uniform(-1, 1, (out, shape.rows, *window.outputs(shape.sizes)))
    convolve = functional.conv1d if shape.axes == 1 else functional.conv2d

    def plain(x: Any, weight: Any, bias: Any) -> Any:
        y = convolve(
            to_torch(x),
            weight,
            bias,
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            groups=groups,
        )
        return to_torch(y)

    expected, gradients = torch_forward_and_gradients(plain, inputs, upstream)
    found, ours = forward_and_gradients(
        lambda x, weight, bias: x.convolve(weight, bias, window, groups),
        inputs,
        upstream,
        evaluators,
    )
    # Inputs are the same integers on both sides; each result is truncated once.
    close(found, expected, 1.01 * UNIT)
    for name in inputs:
        close(ours[name], gradients[name], 1.01 * UNIT)


@EXAMPLES
@given(shapes(pool=True), st.integers(2, 3))
def test_max_pool_is_exact(shape: Shape, evaluators: int) -> None:
    rng = np.random.default_rng(prod(shape.sizes))
    window = shape.window
    # Distinct values: of equal ones, torch may send the gradient elsewhere.
    count = prod((shape.channels, shape.rows, *shape.sizes))
    values = rng.permutation(count).reshape(shape.channels, shape.rows, *shape.sizes) / 16 - 3
    pool = functional.max_pool1d if shape.axes == 1 else functional.max_pool2d

    def plain(x: Any) -> Any:
        y = pool(
            to_torch(x),
            window.kernel,
            window.stride,
            window.padding,
            window.dilation,
            window.round_up,
        )
        return to_torch(y)

    upstream = rng.uniform(-1, 1, (shape.channels, shape.rows, *window.outputs(shape.sizes)))
    expected, gradients = torch_forward_and_gradients(plain, {"x": values}, upstream)
    found, ours = forward_and_gradients(
        lambda x: x.max_pool(window), {"x": values}, upstream, evaluators
    )
    close(found, expected, 0)
    close(ours["x"], gradients["x"], 1e-12)


def test_max_pool_after_a_truncation_is_exact() -> None:
    """The comparisons of both levels then run over 44 bits."""
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-300, 300, (1, 2, 4, 6)), rng.uniform(-300, 300, (1, 2, 4, 6))
    window = Window((3, 2), (1, 2), (1, 0), (1, 1))
    product, _ = forward_and_gradients(lambda x, y: x.mul(y), {"x": x, "y": y})
    found, _ = forward_and_gradients(lambda x, y: x.mul(y).max_pool(window), {"x": x, "y": y})
    plain = functional.max_pool2d(torch.tensor(product), (3, 2), (1, 2), (1, 0)).numpy()
    close(found, plain, UNIT)


@EXAMPLES
@given(
    shapes(dilated=False, pool=True),
    st.sampled_from(["padding", "taps", "seven"]),
    st.integers(2, 3),
)
def test_average_pool(shape: Shape, divided_by: str, evaluators: int) -> None:
    rng = np.random.default_rng(prod(shape.sizes))
    window = Window(
        *(getattr(shape.window, k) for k in ("kernel", "stride", "padding", "dilation"))
    )
    x = shape.maps(rng)
    if shape.axes == 1:
        divided_by = "padding" if divided_by == "seven" else divided_by
    divisor = {"padding": prod(window.kernel), "taps": None, "seven": 7}[divided_by]

    def plain(x: Any) -> Any:
        arguments = (window.kernel, window.stride, window.padding, False, divided_by != "taps")
        if shape.axes == 1:
            return to_torch(functional.avg_pool1d(to_torch(x), *arguments))
        override = 7 if divided_by == "seven" else None
        return to_torch(functional.avg_pool2d(to_torch(x), *arguments, override))

    upstream = rng.uniform(-1, 1, (shape.channels, shape.rows, *window.outputs(shape.sizes)))
    expected, gradients = torch_forward_and_gradients(plain, {"x": x}, upstream)
    found, ours = forward_and_gradients(
        lambda x: x.average_pool(window, divisor), {"x": x}, upstream, evaluators
    )
    # A divisor is a factor of 20 bits, or a word at scale 2^F: the sum of at most nine elements
    # below 2 is off by 18 halves of a unit and one for the truncation.
    close(found, expected, 10 * UNIT)
    close(ours["x"], gradients["x"], 10 * UNIT)


@EXAMPLES
@given(shapes(dilated=False), st.data(), st.integers(2, 3))
def test_adaptive_average_pool(shape: Shape, data: Any, evaluators: int) -> None:
    rng = np.random.default_rng(prod(shape.sizes))
    outputs = tuple(data.draw(st.integers(1, size + 1)) for size in shape.sizes)
    x = shape.maps(rng)
    pool: Any = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)[shape.axes - 1]
    upstream = rng.uniform(-1, 1, (shape.channels, shape.rows, *outputs))
    expected, gradients = torch_forward_and_gradients(
        lambda x: to_torch(pool(to_torch(x), outputs)), {"x": x}, upstream
    )
    found, ours = forward_and_gradients(
        lambda x: x.adaptive_average_pool(outputs), {"x": x}, upstream, evaluators
    )
    sums = 1 + max(shape.sizes) ** shape.axes  # words of 1 / n are off by half a unit each
    close(found, expected, sums * UNIT)
    close(ours["x"], gradients["x"], sums * UNIT)


@EXAMPLES
@given(*(st.integers(1, most) for most in (5, 4, 4, 4)), st.integers(2, 3))
def test_batched_matmul(batch: int, m: int, k: int, n: int, evaluators: int) -> None:
    rng = np.random.default_rng(batch)
    inputs = {"x": rng.uniform(-2, 2, (batch, m, k)), "y": rng.uniform(-2, 2, (batch, k, n))}
    upstream = rng.uniform(-1, 1, (batch, m, n))
    expected, gradients = torch_forward_and_gradients(
        lambda x, y: torch.bmm(x, y), inputs, upstream
    )
    found, ours = forward_and_gradients(
        lambda x, y: x.batched_matmul(y), inputs, upstream, evaluators
    )
    close(found, expected, 1.01 * UNIT)
    for name in inputs:
        close(ours[name], gradients[name], 1.01 * UNIT)


@EXAMPLES
@given(shapes())
def test_columns_and_their_adjoint(shape: Shape) -> None:
    """<columns(x), y> = <x, from_columns(y)> modulo 2^64."""
    rng = np.random.default_rng(3)
    x = rng.integers(-(2**63), 2**63, (shape.channels, shape.rows, *shape.sizes), np.int64)
    cols = columns(x, shape.window)
    y = rng.integers(-(2**63), 2**63, cols.shape, np.int64)
    assert (cols * y).sum() == (x * from_columns(y, shape.window, x.shape)).sum()


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Window((5, 5), (1, 1), (0, 0), (1, 1)).outputs((4, 8))
