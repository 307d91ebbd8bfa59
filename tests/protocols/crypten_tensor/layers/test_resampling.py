"""Interpolation by whole numbers against PyTorch's: forward, backward, what stays exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from protocols.crypten_tensor.layers import resampling  # noqa: F401  registers its functions
from protocols.crypten_tensor.layers.resampling import interpolation
from tests.support.layers import UNIT, F, forward_and_gradients, torch_forward_and_gradients

SIZES = [((4, 3), (8, 6)), ((4, 3), (7, 5)), ((5, 4), (2, 3)), ((1, 6), (3, 1)), ((6,), (11,))]


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("sizes", "outputs"), SIZES)
def test_torch_says_the_same(sizes: tuple[int, ...], outputs: tuple[int, ...], align: bool) -> None:
    rng = np.random.default_rng(1)
    x, upstream = rng.uniform(-2, 2, (2, 3, *sizes)), rng.uniform(-2, 2, (2, 3, *outputs))
    mode = "linear" if len(sizes) == 1 else "bilinear"
    found, slopes = forward_and_gradients(lambda x: x.resampled(outputs, align), {"x": x}, upstream)
    plain, expected = torch_forward_and_gradients(
        lambda x: functional.interpolate(x, outputs, mode=mode, align_corners=align),
        {"x": x},
        upstream,
    )
    assert np.abs(found - plain).max() <= 8 * UNIT
    assert np.abs(slopes["x"] - expected["x"]).max() <= 64 * UNIT


@pytest.mark.parametrize("bits", [12, F, 26])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("sizes", "outputs"), [*SIZES, ((300, 3), (1000, 777))])
def test_weights_add_up_to_one(
    sizes: tuple[int, ...], outputs: tuple[int, ...], align: bool, bits: int
) -> None:
    made = interpolation(sizes, outputs, align, bits)
    assert 0 <= made.bits <= bits
    total = np.sum([weights for _, weights in made.taps], axis=0)
    assert (total == 1 << made.bits).all()
    ones = made.forward(np.full((1, 1, *sizes), 3, np.int64))
    assert (ones == 3 << made.bits).all()


def test_factors_of_two_are_exact_and_short() -> None:
    made = interpolation((3, 5), (6, 20), False, F)
    assert made.bits == 2 + 3
    words = np.arange(15).reshape(1, 1, 3, 5)
    exact = functional.interpolate(
        torch.from_numpy(words.astype(float)), (6, 20), mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(made.forward(words) / 2.0**made.bits, exact.numpy())


def test_the_adjoint_is_one() -> None:
    made, rng = interpolation((5, 4), (7, 9), True, F), np.random.default_rng(2)
    x, y = rng.integers(-99, 99, (2, 1, 5, 4)), rng.integers(-99, 99, (2, 1, 7, 9))
    assert (made.forward(x) * y).sum() == (x * made.backward(y)).sum()
