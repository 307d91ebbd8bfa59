"""Shapes are plain numbers while a module is traced; what cannot be traced is said in its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mpc_train.networks.convert import ConversionError, convert
from tests.mpc_train.networks.test_convert import Function, problems


def _asserts(self: Any, x: torch.Tensor) -> Any:
    assert x.shape[1] == 4 and x.shape[1:] == (4,) and x.size(-1) == 4
    assert x.dim() == 2 and x.ndim == 2 and len(x.shape) == 2
    return self.head(x)


def _branches(self: Any, x: torch.Tensor) -> Any:
    if x.dim() > 2:
        x = x.flatten(1)
    rows, width = x.shape
    for _ in range(width // 4):
        x = torch.relu(x)
    return self.head(x.reshape(rows, width))


def _behind_layers(self: Any, x: torch.Tensor) -> Any:
    y = self.head(torch.relu(x))
    return y.view(y.size(0), 1, y.shape[-1]).mean(1) if y.shape[1] == 3 else torch.exp(y)


@pytest.mark.parametrize("run", [_asserts, _branches, _behind_layers])
def test_conditions_and_assertions_over_shapes_are_evaluated(run: Callable[..., Any]) -> None:
    converted = convert(Function(run, head=nn.Linear(4, 3)), (4,))
    assert converted.graph.output_shape == (3,)


def test_tracing_moves_no_statistic() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    convert(module, (4,))
    assert int(module[1].num_batches_tracked) == 0  # type: ignore[arg-type]
    assert module[1].training


def test_an_assertion_that_fails_is_called_one() -> None:
    def run(self: Any, x: torch.Tensor) -> Any:
        assert x.shape[1] == 5, "five columns"
        return self.head(x)

    (line,) = problems(Function(run, head=nn.Linear(4, 3)), (4,))
    assert "assertion" in line and "test_tracing.py:" in line and "five columns" in line


def test_conditions_over_values_and_rows_are_control_flow() -> None:
    def values(self: Any, x: torch.Tensor) -> Any:
        return self.head(x) if x.sum() > 0 else x

    def rows(self: Any, x: torch.Tensor) -> Any:
        return self.head(x) if x.shape[0] > 3 else x

    for run in (values, rows):
        (line,) = problems(Function(run, head=nn.Linear(4, 3)), (4,))
        assert "control flow" in line and "test_tracing.py:" in line


@pytest.mark.parametrize("layer", [nn.LazyLinear(3), nn.LazyBatchNorm1d()])
def test_lazy_layers_are_named_with_the_layer_to_use(layer: nn.Module) -> None:
    (line,) = problems(nn.Sequential(nn.Linear(4, 4), layer), (4,))
    assert line.startswith("1 (Lazy") and "until it sees data" in line
    assert f"use {type(layer).__name__.removeprefix('Lazy')} " in line


def test_a_lazy_layer_that_has_seen_data_is_an_ordinary_one() -> None:
    module = nn.Sequential(nn.LazyLinear(3))
    module(torch.zeros(2, 4))
    assert convert(module, (4,)).graph.output_shape == (3,)


@pytest.mark.parametrize(
    ("run", "instead", "not_instead"),
    [
        (lambda self, x: self.head(x.exp()), "Softplus", "job.md"),
        (lambda self, x: self.head(x.repeat(1, 1)), "torch.cat", "Softplus"),
        (lambda self, x: self.head(x.expm1()), "job.md", "Softplus"),
        (lambda self, x: self.head(torch.maximum(x, x)), "job.md", "MaxPool2d"),
        (lambda self, x: self.head(nn.functional.mish(x)), "SiLU", "job.md"),
    ],
)
def test_suggestions_fit_what_was_written(
    run: Callable[..., Any], instead: str, not_instead: str
) -> None:
    with pytest.raises(ConversionError) as caught:
        convert(Function(run, head=nn.Linear(4, 3)), (4,))
    assert instead in str(caught.value) and not_instead not in str(caught.value)
