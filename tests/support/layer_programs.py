"""One layer each, forward and backward, over a single secret vector: for views and traffic.

Rows, weights, kept statistics and the gradient from above are all cut out of the vector, so that
all of them are secret, and a program's cost does not depend on who brings what. `expected` does the
same in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from mpc_train.networks.convert import convert
from mpc_train.networks.graph import Graph
from mpc_train.networks.network import Network
from mpc_train.networks.plain import PlainGraph
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.shares.masked import Masked
from tests.support.layers import UNIT, F

MASK_SEED = 7


@dataclass(frozen=True, eq=False)
class LayerProgram:
    """module: makes the layer. shape: of a row. bound: of the largest error, gradients included.

    ids: rows are whole numbers below it. public_masks: of dropout.
    """

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    bound: float = 2.0**-14
    rows: int = 3
    ids: int = 0
    training: bool = True
    public_masks: bool = False

    @property
    def graph(self) -> Graph:
        return _graph(self)

    def pieces(self) -> list[tuple[str, tuple[int, ...]]]:
        """What is cut out of the vector, in order."""
        named = self.graph.named("parameter", "statistic")
        return [
            ("x", (self.rows, *self.shape)),
            *named,
            ("upstream", (self.rows, *self.graph.output_shape)),
        ]

    @property
    def size(self) -> int:
        return sum(prod(shape) for _, shape in self.pieces())

    def draw(self, rng: np.random.Generator, scale: float = 1.0) -> Reals:
        """Numbers for the vector, multiples of 2^-F."""
        parts = []
        for name, shape in self.pieces():
            values = rng.uniform(-2 * scale, 2 * scale, prod(shape))
            if name == "x" and self.ids:
                values = rng.integers(0, self.ids, prod(shape)).astype(float)
            if name.endswith("running_var"):
                values = rng.uniform(0.5, 2, prod(shape))
            parts.append(values)
        return np.rint(np.concatenate(parts) / UNIT) * UNIT


@cache
def _graph(program: LayerProgram) -> Graph:
    torch.manual_seed(1)
    return convert(program.module(), program.shape).graph


def _cut(program: LayerProgram) -> Iterator[tuple[str, tuple[int, ...], slice]]:
    start = 0
    for name, shape in program.pieces():
        yield name, shape, slice(start, start + prod(shape))
        start += prod(shape)


def run_layer(program: LayerProgram, source: Masked) -> dict[str, MaskedTensor]:
    """Outputs, gradients and kept statistics by name. source: int64[program.size]."""
    attach(source.role, F)
    cut = {
        name: MaskedTensor(
            source.select(where).reshape(*shape),
            requires_grad=not (name == "upstream" or ".running_" in f".{name}"),
        )
        for name, shape, where in _cut(program)
    }
    net = Network(
        program.graph,
        {name: np.zeros(shape, np.int64) for name, shape in program.graph.named("frozen")}
        | {name: np.zeros(shape, np.int64) for name, shape, _ in _cut(program)},
        MASK_SEED if program.public_masks else None,
    )
    net.training = program.training
    net.tensors.update({name: cut[name] for name in net.tensors if name in cut})
    x = cut["x"]
    x.requires_grad = not program.ids
    output = net.passed(x)
    found = {"output": output.detach()}
    output.backward(cut["upstream"])
    for name, tensor in cut.items():
        if tensor.requires_grad:
            found[f"gradient of {name}"] = tensor.grad
        elif ".running_" in f".{name}":
            found[name] = tensor
    return found


def expected(program: LayerProgram, numbers: Reals) -> dict[str, Reals]:
    """The same in float64 PyTorch."""
    cut = {
        name: torch.tensor(numbers[where].reshape(shape)) for name, shape, where in _cut(program)
    }
    plain = PlainGraph(program.graph, MASK_SEED).train(program.training)
    plain.load_state_dict({n: v for n, v in cut.items() if n not in ("x", "upstream")}, False)
    x = cut["x"].requires_grad_(not program.ids)
    output = plain(x)
    output.backward(cut["upstream"])
    found = {"output": output.detach().numpy()}
    if x.grad is not None:
        found["gradient of x"] = x.grad.numpy()
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad.numpy()
    for name, _ in program.graph.named("statistic"):
        found[name] = plain.state_dict()[name].numpy()
    return found


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Sequence(nn.Module):
    """The states of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class _Sums(nn.Module):
    """Residual additions, products, concatenations, slices, means and public numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) + x
        both = torch.cat([y * x - 0.5, x[:, 1:3] * 0.75], 1)
        return torch.cat([both, both.mean(1, keepdim=True)], 1)


SMOOTH, NORM, SPLINE = 2.0**-4, 2.0**-8, 2.0**-9
"""A spline's gradient is within 2^-7 of the function's own, and is multiplied by up to 4; a norm
divides by the spread of few numbers; errors of a softmax are added up over a few outputs."""
RECURRENT = 2.0**-8
"""Weights up to 2 multiply the splines' errors step by step."""


def _alone(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: make(*arguments, **settings)


def attention(width: int, heads: int) -> Callable[[], nn.Module]:
    """Makes attention of a sequence to itself."""
    return lambda: _Attention(width, heads)


def sequence(kind: Callable[..., nn.Module], *sizes: int, **settings: Any) -> Callable[[], Any]:
    """Makes a recurrent layer whose rows come first."""
    return lambda: Sequence(kind(*sizes, batch_first=True, **settings))


LAYERS: dict[str, LayerProgram] = {
    "linear": LayerProgram(_alone(nn.Linear, 4, 3), (4,)),
    "convolution, one axis": LayerProgram(
        _alone(nn.Conv1d, 2, 4, 3, dilation=2, groups=2), (2, 8), rows=2
    ),
    "convolution, two axes": LayerProgram(
        _alone(nn.Conv2d, 2, 3, 3, stride=2, padding=1), (2, 4, 5), rows=2
    ),
    "max-pool": LayerProgram(_alone(nn.MaxPool2d, 2), (2, 4, 5)),
    "max-pool, overlapping": LayerProgram(_alone(nn.MaxPool1d, 3, 2, 1), (2, 7)),
    "average pool": LayerProgram(_alone(nn.AvgPool2d, 2), (2, 4, 4)),
    "average pool, own taps": LayerProgram(
        _alone(nn.AvgPool1d, 3, 2, 1, count_include_pad=False), (2, 6)
    ),
    "adaptive average pool": LayerProgram(_alone(nn.AdaptiveAvgPool2d, (2, 3)), (1, 4, 5)),
    "batch norm, rows": LayerProgram(_alone(nn.BatchNorm1d, 3), (3,), NORM, rows=8),
    "batch norm, maps": LayerProgram(_alone(nn.BatchNorm2d, 2), (2, 3, 2), NORM),
    "batch norm, evaluated": LayerProgram(
        _alone(nn.BatchNorm1d, 3), (3,), 2.0**-12, training=False
    ),
    "layer norm": LayerProgram(_alone(nn.LayerNorm, 6), (6,), NORM),
    "group norm": LayerProgram(_alone(nn.GroupNorm, 2, 4), (4, 5), NORM, rows=2),
    "attention, one head": LayerProgram(attention(4, 1), (3, 4), SMOOTH, rows=2),
    "attention, two heads": LayerProgram(attention(4, 2), (3, 4), SMOOTH, rows=2),
    "embedding": LayerProgram(_alone(nn.Embedding, 5, 3), (3,), ids=5),
    "relu": LayerProgram(_alone(nn.ReLU), (5,)),
    "relu6": LayerProgram(_alone(nn.ReLU6), (5,)),
    "leaky relu": LayerProgram(_alone(nn.LeakyReLU, 0.1), (5,)),
    "hardtanh": LayerProgram(_alone(nn.Hardtanh, -0.5, 1.5), (5,)),
    "sigmoid": LayerProgram(_alone(nn.Sigmoid), (5,), 2.0**-12),
    "tanh": LayerProgram(_alone(nn.Tanh), (5,), 2.0**-11),
    "gelu": LayerProgram(_alone(nn.GELU), (5,), SMOOTH),
    "silu": LayerProgram(_alone(nn.SiLU), (5,), SMOOTH),
    "softplus": LayerProgram(_alone(nn.Softplus), (5,), SMOOTH),
    "elu": LayerProgram(_alone(nn.ELU), (5,), SMOOTH),
    "elu, another alpha": LayerProgram(_alone(nn.ELU, 0.5), (5,), SMOOTH),
    "gru": LayerProgram(sequence(nn.GRU, 2, 2), (3, 2), RECURRENT, rows=2),
    "gru, reversed too": LayerProgram(
        sequence(nn.GRU, 1, 1, 2, bidirectional=True), (2, 1), RECURRENT, rows=2
    ),
    "lstm": LayerProgram(sequence(nn.LSTM, 2, 2), (3, 2), RECURRENT, rows=2),
    "rnn": LayerProgram(sequence(nn.RNN, 2, 2), (3, 2), RECURRENT, rows=2),
    "rnn, relu": LayerProgram(sequence(nn.RNN, 2, 2, nonlinearity="relu"), (3, 2), rows=2),
    "bilinear": LayerProgram(_alone(nn.Upsample, (3, 5), mode="bilinear"), (1, 2, 3), rows=2),
    "softmax": LayerProgram(_alone(nn.Softmax, -1), (4,), SPLINE),
    "softmax, many classes": LayerProgram(_alone(nn.Softmax, -1), (19,), SPLINE, rows=2),
    "dropout, public": LayerProgram(_alone(nn.Dropout, 0.25), (6,), public_masks=True),
    "sums and slices": LayerProgram(_Sums, (4,)),
}
SECRET_DROPOUT = {
    "dropout": LayerProgram(_alone(nn.Dropout, 0.5), (6,)),
    "dropout, 16 bits": LayerProgram(_alone(nn.Dropout, 0.1), (6,)),
}
"""What falls out of these nobody can compute beforehand."""
