"""Recurrent layers of a module: what becomes of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mpc_train.networks.convert import convert
from mpc_train.networks.plain import PlainGraph, dry_run
from tests.mpc_train.networks.test_convert import Function, problems

SHAPE = (4, 3)


def _summed_steps(self: Any, x: torch.Tensor) -> Any:
    """Where time comes first, `shape[0]` is the number of steps and a plain number."""
    out, _ = self.layer(x.permute(1, 0, 2))
    steps, _, width = out.shape
    total = out[0]
    for step in range(1, steps):
        total = total + out[step]
    return (total / steps)[:, :width]


def _stacked(self: Any, x: torch.Tensor) -> Any:
    out, _ = self.layer(self.wide(x.transpose(0, 1)))
    return self.second(self.drop(out))[0][1:3].transpose(0, 1).flatten(1)


def _states(self: Any, x: torch.Tensor) -> Any:
    return self.layer(x)[1][0].transpose(0, 1).flatten(1)


def _from_zeros(self: Any, x: torch.Tensor) -> Any:
    h = torch.zeros(2, x.size(0), 2).to(x.device)
    c = torch.zeros(2, x.shape[0], 2, device=x.device)
    turned = x.transpose(0, 1)
    first, _ = self.layer(x, (h, c))
    second, _ = self.second(turned, torch.zeros(1, turned.size(1), 3))
    return torch.cat([first[:, -1], second[-1]], 1)


def _written_out(self: Any, x: torch.Tensor) -> Any:
    zeros = x.new_zeros(1, x.size(0), 2)
    first = self.layer(x, torch.zeros(1, x.size(0), 2).requires_grad_().detach())[1].view(-1, 2)
    return torch.cat([first, self.second(x, zeros)[1].reshape(x.size(0), 2)], 1)


READS: dict[str, tuple[Callable[..., Any], dict[str, nn.Module]]] = {
    "all steps, time first": (_summed_steps, {"layer": nn.GRU(3, 2)}),
    "layers in between, time first": (
        _stacked,
        {
            "wide": nn.Linear(3, 4),
            "layer": nn.LSTM(4, 2, 2, dropout=0.5, bidirectional=True),
            "drop": nn.Dropout(0.5),
            "second": nn.RNN(4, 3),
        },
    ),
    "states as tutorials write them": (
        _written_out,
        {"layer": nn.GRU(3, 2, batch_first=True), "second": nn.RNN(3, 2, batch_first=True)},
    ),
    "first states of zeros": (
        _from_zeros,
        {"layer": nn.LSTM(3, 2, 2, batch_first=True), "second": nn.GRU(3, 3)},
    ),
    "last states": (_states, {"layer": nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)}),
    "an LSTM's pair": (
        lambda self, x: self.layer(x)[1][0][-1] * self.layer(x)[1][0].squeeze(0),
        {"layer": nn.LSTM(3, 2, batch_first=True)},
    ),
}


@pytest.mark.parametrize("name", READS)
def test_results_are_those_of_the_module(name: str) -> None:
    run, layers = READS[name]
    module = Function(run, **layers).eval()
    converted = convert(module, SHAPE)
    dry_run(converted.graph)
    plain = PlainGraph(converted.graph).eval()
    plain.load_words(converted.initial, 24)
    x = torch.randn(7, *SHAPE)
    torch.testing.assert_close(plain(x.double()).float(), module(x), atol=1e-5, rtol=0)
    assert list(plain.state_dict()) == list(module.state_dict())
    module.load_state_dict(plain.state_dict(), strict=True)


def _given(self: Any, x: torch.Tensor) -> Any:
    _, h = self.layer(x)
    return self.layer(x, h)[0][:, -1]


REFUSED: list[tuple[Callable[..., Any], nn.Module, str]] = [
    # Either reads rows as steps: the module would say nothing.
    (lambda self, x: self.layer(x)[0][:, -1], nn.GRU(3, 2), "set batch_first = True"),
    (
        lambda self, x: self.layer(x.transpose(0, 1))[0].transpose(0, 1).flatten(1),
        nn.GRU(3, 2, batch_first=True),
        "batch_first = True takes rows that come first",
    ),
    (lambda self, x: self.layer(x.flatten(1))[0], nn.GRU(12, 2), "must be [rows, steps, features]"),
    (_given, nn.GRU(3, 2, batch_first=True), "the initial state is 0"),
    (
        lambda self, x: self.layer(x)[0][:, -1] + torch.zeros(1, x.size(0), 2)[0],
        nn.GRU(3, 2, batch_first=True),
        "zeros are supported only as the initial",
    ),
    (
        lambda self, x: self.layer(torch.zeros(4, x.size(0), 3))[0][-1] + x[:, 0, :2],
        nn.GRU(3, 2, batch_first=True),
        "zeros are supported only as the initial",
    ),
    (lambda self, x: self.layer(x)[1][1][-1], nn.LSTM(3, 2, batch_first=True), "an LSTM's cells"),
    (
        lambda self, x: self.layer(x)[0].flatten(1),
        nn.LSTM(3, 4, batch_first=True, proj_size=2),
        "proj_size",
    ),
    (
        lambda self, x: self.layer(x.transpose(0, 1))[0].mean(0),
        nn.GRU(3, 2),
        "rows on the second axis: put them first",
    ),
    (
        lambda self, x: self.layer(x.transpose(0, 1))[0][:, 0],
        nn.GRU(3, 2),
        "rows must come first and stay separate",
    ),
    (
        lambda self, x: self.layer(x.transpose(0, 1))[0],
        nn.GRU(3, 2),
        "output() (output): gives [4, 2, 2] for two rows",
    ),
    (lambda self, x: self.layer(x), nn.GRU(3, 2, batch_first=True), "return one tensor"),
    (lambda self, x: x[None] * 2, nn.Identity(), "rows must come first"),
    (lambda self, x: x.transpose(0, 1) * 2, nn.Identity(), "rows must come first"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_refused(case: int) -> None:
    run, layer, message = REFUSED[case]
    assert any(message in line for line in problems(Function(run, layer=layer), SHAPE))


def test_a_cell_that_is_called_step_by_step_is_named_with_its_layer() -> None:
    (line,) = problems(Function(lambda self, x: self.cell(x), cell=nn.GRUCell(3, 2)), (3,))
    assert "use GRU" in line


def test_a_view_that_would_mix_layers_and_rows_is_refused() -> None:
    """[layers, rows, width] as [rows, layers · width]: the shape is right, and the rows are not."""
    module = Function(
        lambda self, x: self.layer(x)[1].view(x.size(0), -1),
        layer=nn.GRU(3, 2, 2, batch_first=True),
    )
    (line,) = problems(module, SHAPE)
    assert "view() (view)" in line and "would mix steps and rows" in line
