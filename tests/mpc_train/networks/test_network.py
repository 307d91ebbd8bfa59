"""Modules over shares against PyTorch: forward, gradients, 20 steps of training, state_dict."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpc_train.networks.convert import convert
from mpc_train.networks.graph import WEIGHT_BITS, Graph
from mpc_train.networks.network import Network
from mpc_train.networks.plain import PlainGraph, dry_run
from mpc_train.training.optimizers.sgd import SGD
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.roles.role import Role
from tests.support.layers import UNIT, F, opened, part
from tests.support.lockstep import run_lockstep

ROWS = 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.skip = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.second(y) + self.skip(x))
        both = torch.cat([y.mean((2, 3)), nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)], 1)
        both = torch.cat([both, both[:, 1:3]], 1)
        return self.head(both)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x)
        y = self.norm(tokens)
        mixed, _ = self.attention(y, y, y, need_weights=False)
        return self.head((tokens + mixed).reshape(x.size(0), -1))


class OwnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) * 0.5
        return self.head((torch.softmax(scores, dim=-1) @ self.v(x)).mean(1))


class Categories(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x.long()).flatten(1))


LENET = (
    lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ),
    (1, 8, 8),
)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (5,)),
    "lenet": LENET,
    "residual": (Residual, (2, 5, 5)),
    "attention": (Attention, (5, 3)),
    "own_attention": (OwnAttention, (5, 3)),
    "categories": (Categories, (3,)),
    "smooth": (
        lambda: nn.Sequential(
            *(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 5)),
            *(nn.Softplus(), nn.Linear(5, 4), nn.ReLU6(), nn.Linear(4, 4), nn.Tanh()),
            *(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)),
        ),
        (4,),
    ),
    "norms": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6)),
            *(nn.Hardtanh(), nn.LayerNorm(6), nn.Linear(6, 3)),
        ),
        (1, 6, 6),
    ),
    "sequence": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 4, 3, dilation=2, groups=2), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(12, 3)),
        ),
        (2, 14),
    ),
}


class Pieces(nn.Module):
    """Indices, chunks, stacks, expansions and limits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.last = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.head(x).chunk(2, dim=-1)
        first, rest = torch.split(x, [1, 2], dim=2)
        y = torch.stack([left.clamp(-1, 1), right.clamp(min=0.25)], dim=1)
        z = first.expand(-1, -1, 2) + rest.clip(max=0.5) + first.expand_as(rest)
        a, b = y[:, 0, 1:], z[..., -1]
        return self.last(torch.cat([a.flatten(1), b, b[:, :2], y[:, 1, 0, :1]], 1))


CASES["pieces"] = (Pieces, (3, 3))


class Parameters(nn.Module):
    """Parameters that forward uses by itself, on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(8, 3)
        self.position = nn.Parameter(torch.randn(1, 2, 4))
        self.scale = nn.Parameter(torch.rand(4))
        self.offset = nn.Parameter(torch.rand(1))
        self.slopes = nn.PReLU(2)
        self.slope = nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.slopes(self.first(x) + self.position) * self.scale
        y = self.offset - torch.mul(self.scale, y) - self.position
        return self.last(self.slope(y).flatten(1))


CASES["parameters"] = (Parameters, (2, 3))
CASES["hard"] = (
    lambda: nn.Sequential(
        *(nn.Linear(4, 6), nn.Hardswish(), nn.Linear(6, 5), nn.Hardsigmoid(), nn.Linear(5, 3)),
    ),
    (4,),
)
CASES["upsampled"] = (
    lambda: nn.Sequential(
        *(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(2, 2, 3, stride=2), nn.Flatten(), nn.Linear(18, 3)),
    ),
    (1, 6, 6),
)
CASES["instances"] = (
    lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(18, 3)),
    (2, 8),
)
CASES["slopes"] = (
    lambda: nn.Sequential(
        *(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 3)),
    ),
    (4,),
)
CASES["exponential"] = (
    lambda: nn.Sequential(
        *(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 5), nn.ELU(0.5), nn.Linear(5, 5), nn.SELU()),
        *(nn.Linear(5, 5), nn.CELU(2.0), nn.Linear(5, 3)),
    ),
    (4,),
)


class Recurrent(nn.Module):
    """A layer over sequences, and what networks usually make of its results."""

    def __init__(self, layer: nn.Module, width: int, read: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.fc, self.read = layer, nn.Linear(width, 3), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.read(self.layer, x.reshape(x.shape[0], 4, 2)))


def _last(layer: Any, x: torch.Tensor) -> torch.Tensor:
    out, _h = layer(x)
    return out[:, -1]


def _time_first(layer: Any, x: torch.Tensor) -> torch.Tensor:
    out, (h, _c) = layer(x.transpose(0, 1))
    return torch.cat([h[-2], h[-1], out[1], out.permute(1, 2, 0).mean(2)], 1)


def _both(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(x)[1].squeeze(0), layer(x)[0].mean(1)], 1)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: Recurrent(nn.GRU(2, 3, batch_first=True), 3, _last),
    "gru, two layers": lambda: Recurrent(
        nn.GRU(2, 3, 2, batch_first=True, bidirectional=True), 6, _last
    ),
    "lstm": lambda: Recurrent(nn.LSTM(2, 3, batch_first=True), 3, _last),
    "lstm, time first": lambda: Recurrent(nn.LSTM(2, 2, 2, bidirectional=True), 12, _time_first),
    "rnn": lambda: Recurrent(nn.RNN(2, 3, bias=False, batch_first=True), 6, _both),
    "rnn, relu": lambda: Recurrent(nn.RNN(2, 3, nonlinearity="relu", batch_first=True), 3, _last),
}
CASES |= {name: (make, (8,)) for name, make in RECURRENT.items()}
CASES |= {
    "bilinear": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=1.5, mode="bilinear")),
            *(nn.Conv2d(2, 1, 2, stride=2), nn.Upsample((5, 4), mode="bilinear")),
            *(nn.Flatten(), nn.Linear(20, 3)),
        ),
        (1, 5, 6),
    ),
    "bilinear, aligned": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 2, 3), nn.Upsample(7, mode="linear", align_corners=True)),
            *(nn.Unflatten(2, (7, 1)), nn.UpsamplingBilinear2d((3, 2)), nn.Flatten()),
            nn.Linear(12, 3),
        ),
        (2, 6),
    ),
}
SMOOTH_ERROR = 2.0**-12
"""The largest error that a function's spline states."""


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(len(name))
    build, shape = CASES[name]
    return build().double(), shape


def rows_of(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name == "categories":
        return rng.integers(0, 5, (ROWS, *shape)).astype(float)
    return np.rint(rng.uniform(-2, 2, (ROWS, *shape)) / UNIT) * UNIT


def words_at(initial: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """First weights at the scale of the tests."""
    shift = WEIGHT_BITS - F
    return {name: (words + (1 << (shift - 1))) >> shift for name, words in initial.items()}


def load(module: nn.Module, words: dict[str, np.ndarray]) -> None:
    state = {name: torch.from_numpy(value * UNIT) for name, value in words.items()}
    module.load_state_dict(state, strict=False)


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_the_module_in_the_clear(name: str) -> None:
    module, shape = made(name)
    converted = convert(module.float(), shape)
    dry_run(converted.graph)
    words = words_at(converted.initial)
    plain = PlainGraph(converted.graph)
    module.double()
    load(module, words)
    plain.load_words(words, F)
    x = torch.from_numpy(rows_of(name, shape, np.random.default_rng(1)))
    for mode in (True, False):
        module.train(mode)
        plain.train(mode)
        torch.testing.assert_close(plain(x), module(x))
    assert set(plain.state_dict()) == set(module.state_dict()) == set(converted.graph.tensors)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[key], value)
    module.load_state_dict(plain.state_dict())


def over_shares(
    graph: Graph,
    words: dict[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    evaluators: int,
) -> dict[str, np.ndarray]:
    """Outputs, gradients of the first step, tensors after `steps`, and outputs in evaluation."""

    def program(role: Role) -> Any:
        attach(role, F)
        net = Network(graph, words)
        inputs, labels = MaskedTensor(x, src=0), MaskedTensor(y, src=1)
        optimizer = SGD(net.parameters)
        found: dict[str, Any] = {}
        for step in range(steps):
            role.begin_step(step + 1)
            output = net(inputs)
            output.mse_loss(labels).backward()
            if step == 0:
                found["output"] = part(output.detach())
                for name, parameter in net.parameters.items():
                    found[f"grad {name}"] = part(parameter.grad.detach())
            optimizer.step(RATE)
        net.training = False
        found["evaluated"] = part(net(inputs))
        for name, tensor in net.tensors.items():
            found[name] = part(tensor.detach())
        return found

    results = run_lockstep(program, evaluators)
    return {name: opened([result[name] for result in results]) for name in results[0]}


RATE = Fraction(1, 8)


SEVERAL = ("lenet", "norms", "attention")
TRAININGS = [
    *((name, 2, 3) for name in CASES),
    *((name, 3, 2) for name in SEVERAL),
    *(pytest.param(name, 2, 20, marks=pytest.mark.slow) for name in CASES),
    *(pytest.param(name, 3, 20, marks=pytest.mark.slow) for name in CASES),
]


@pytest.mark.parametrize(("name", "evaluators", "steps"), TRAININGS)
def test_training(name: str, evaluators: int, steps: int) -> None:
    module, shape = made(name)
    rng = np.random.default_rng(2)
    converted = convert(module.float(), shape)
    words = words_at(converted.initial)
    module.double().train()
    load(module, words)
    x = rows_of(name, shape, rng)
    y = np.rint(rng.uniform(-1, 1, (ROWS, 3)) / UNIT) * UNIT
    found = over_shares(converted.graph, words, x, y, steps, evaluators)
    optimizer = torch.optim.SGD(module.parameters(), lr=float(RATE))
    smooth = name in (
        "smooth",
        "attention",
        "own_attention",
        "norms",
        "slopes",
        "upsampled",
        "instances",
        "exponential",
        *RECURRENT,
    )
    unit = SMOOTH_ERROR if smooth else 64 * UNIT
    for step in range(steps):
        optimizer.zero_grad()
        output = module(torch.from_numpy(x))
        nn.functional.mse_loss(output, torch.from_numpy(y)).backward()
        if step == 0:
            assert np.abs(found["output"] - output.detach().numpy()).max() <= unit
            for key, parameter in module.named_parameters():
                assert parameter.grad is not None
                # The gradient of a spline is less near than its value.
                near = (16 if name in ("smooth", "exponential") else 4) * unit
                assert np.abs(found[f"grad {key}"] - parameter.grad.numpy()).max() <= near, key
        optimizer.step()
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            drift = np.abs(found[key] - value.numpy()).max()
            assert drift <= steps * float(RATE) * 4 * unit, key
    module.eval()
    with torch.no_grad():
        evaluated = module(torch.from_numpy(x)).numpy()
    assert np.abs(found["evaluated"] - evaluated).max() <= steps * 8 * unit
