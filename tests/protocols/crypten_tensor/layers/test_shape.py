"""Joining, slicing, embedding and dropping over shares against PyTorch."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols.crypten_tensor.layers.shape  # noqa: F401
from tests.support.layers import UNIT, forward_and_gradients, torch_forward_and_gradients


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 2), st.integers(2, 3))
def test_join_and_part(sizes: list[int], dim: int, evaluators: int) -> None:
    rng = np.random.default_rng(dim)
    inputs = {}
    for number, size in enumerate(sizes):
        shape = [2, 3, 4]
        shape[dim] = size
        inputs[f"x{number}"] = rng.uniform(-2, 2, shape)
    total = [2, 3, 4]
    total[dim] = sum(sizes)
    upstream = rng.uniform(-1, 1, total)[:, 1:]

    def plain(**x: Any) -> Any:
        scaled = [value * (number + 1) for number, value in enumerate(x.values())]
        return torch.cat(scaled, dim)[:, 1:]

    def ours(**x: Any) -> Any:
        first, *others = (value.mul(number + 1) for number, value in enumerate(x.values()))
        return first.join(others, dim).part((slice(None), slice(1, None)))

    if total[1] == 1:
        return
    expected, gradients = torch_forward_and_gradients(plain, inputs, upstream)
    found, mine = forward_and_gradients(ours, inputs, upstream, evaluators)
    assert np.abs(found - expected).max(initial=0) <= UNIT
    for name in inputs:
        assert np.abs(mine[name] - gradients[name]).max() <= UNIT


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_embedding_is_exact(count: int, evaluators: int) -> None:
    rng = np.random.default_rng(count)
    ids = rng.integers(0, count, (4, 3))
    table, upstream = rng.uniform(-2, 2, (count, 2)), rng.uniform(-1, 1, (4, 3, 2))
    expected, gradients = torch_forward_and_gradients(
        lambda table: functional.embedding(torch.tensor(ids), table), {"table": table}, upstream
    )

    def embed(table: Any) -> Any:
        return type(table)(ids.astype(float), src=1).embed(table)

    found, ours = forward_and_gradients(embed, {"table": table}, upstream, evaluators)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(ours["table"], gradients["table"], atol=1e-12)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_drop(evaluators: int) -> None:
    rng = np.random.default_rng(1)
    x, upstream, mask = rng.uniform(-2, 2, (5, 6)), rng.uniform(-1, 1, (5, 6)), np.eye(5, 6)
    expected, gradients = torch_forward_and_gradients(
        lambda x: x * torch.tensor(mask) / 0.75, {"x": x}, upstream
    )
    words = mask.astype(np.int64)
    found, ours = forward_and_gradients(
        lambda x: x.drop(words, Fraction(3, 4)), {"x": x}, upstream, evaluators
    )
    # The factor 4/3 has 20 bits.
    assert np.abs(found - expected).max() <= 4 * UNIT
    assert np.abs(ours["x"] - gradients["x"]).max() <= 4 * UNIT
