"""A service answers what the model answers in plain PyTorch: for every layer that is converted.

Each layer is the network of a job whose model stays in shares; a client asks the whole service
(`House`) about rows, and the module itself, with the same weights, says what is right. What a new
layer or operation lacks here is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.training import SOFTMAX_CLASSES
from mpc_train.networks.convert import COMPOSED_LAYERS, convert
from mpc_train.networks.convert_rules import MODULES
from mpc_train.networks.graph import CHOICES, SPECS
from mpc_train.owners.local import Local
from mpc_train.serving import lanes
from protocols.arrays import Reals
from tests.support.carried_models import write_carried
from tests.support.house import Asker, House, only_units_of
from tests.support.jobs import column, job_toml, schema_toml, write_job
from tests.support.layer_programs import LAYERS, SECRET_DROPOUT
from tests.support.served import kept_in_shares, shares_of

TOLERANCE = 2.0**-10
ROWS = 16


@dataclass(frozen=True, eq=False)
class Layer:
    """module: makes the network. shape: of a row. ids: rows are whole numbers below it. answer:
    what is asked for; a probability if the network ends in what a classifier's loss includes."""

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: int = 0
    answer: str = "number"


class Negative(nn.Module):
    """The layer's outputs, flat: as many as a job may have. The sign keeps what ends in a sigmoid
    from being a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.layer(x).flatten(1)[:, :SOFTMAX_CLASSES]


class Moved(nn.Module):
    """Everything that only moves values, and what a module multiplies and sums by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, 3))
        self.parts = nn.Unflatten(1, (2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.parts(x)
        z = y.transpose(1, 2) @ (y * self.weight + self.weight) / 4
        left, right = torch.stack([z, z - 2 * z.sum(1, keepdim=True)], 1).chunk(2, 1)
        return torch.cat([left, right[:, :, 1:]], 2)


def _of(make: Callable[..., nn.Module], *words: Any, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: Negative(make(*words, **settings))


def _ends_in(end: Callable[[], nn.Module], outputs: int) -> Layer:
    return Layer(lambda: nn.Sequential(nn.Linear(4, outputs), end()), (4,), answer="probability")


MAPS = (2, 4, 5)
"""Cases, beyond those of views and traffic, that have an operation or a layer of their own."""
CASES: dict[str, Layer] = {
    **{
        name: Layer(lambda made=one.module: Negative(made()), one.shape, one.ids)  # type: ignore[misc]
        for name, one in (LAYERS | SECRET_DROPOUT).items()
    },
    "max-pool, one axis": Layer(_of(nn.MaxPool1d, 2), (2, 6)),
    "average pool, one axis": Layer(_of(nn.AvgPool1d, 2), (2, 6)),
    "adaptive average pool, one axis": Layer(_of(nn.AdaptiveAvgPool1d, 2), (2, 5)),
    "instance norm": Layer(_of(nn.InstanceNorm2d, 2, affine=True), MAPS),
    "instance norm, one axis": Layer(_of(nn.InstanceNorm1d, 2), (2, 6)),
    "hard sigmoid": Layer(_of(nn.Hardsigmoid), (5,)),
    "hard swish": Layer(_of(nn.Hardswish), (5,)),
    "prelu": Layer(_of(nn.PReLU, 2), (2, 3)),
    "selu": Layer(_of(nn.SELU), (5,)),
    "celu": Layer(_of(nn.CELU, 0.75), (5,)),
    "nearest": Layer(_of(nn.Upsample, scale_factor=2), MAPS),
    "nearest, its own layer": Layer(_of(nn.UpsamplingNearest2d, scale_factor=2), MAPS),
    "bilinear, its own layer": Layer(_of(nn.UpsamplingBilinear2d, (3, 7)), MAPS),
    "identity": Layer(lambda: Negative(nn.Sequential(nn.Identity(), nn.Flatten())), MAPS),
    "moved": Layer(lambda: Negative(Moved()), (6,)),
    "ends in a sigmoid": _ends_in(nn.Sigmoid, 1),
    "ends in a softmax": _ends_in(lambda: nn.Softmax(-1), 3),
    "ends in the logarithm of a softmax": _ends_in(lambda: nn.LogSoftmax(-1), 3),
}


def made(layer: Layer) -> nn.Module:
    """With torch's first weights, and statistics as after training."""
    torch.manual_seed(1)
    module = layer.module().double().eval()
    for name, kept in module.named_buffers():
        if kept.is_floating_point():
            torch.nn.init.uniform_(kept, 0.5, 2) if "var" in name else torch.nn.init.normal_(kept)
    return module


def job_of(folder: Path, layer: Layer, evaluators: int) -> Job:
    """A job with this network, whose model stays in shares."""
    write_carried(folder / "model.json", layer.module(), layer.shape)
    (outputs,) = convert(layer.module(), layer.shape).graph.output_shape
    names = [f"x{k}" for k in range(prod(layer.shape))]
    data, more, features = "test_fraction = 0.2", "[reveal]\nmetrics = []\n", names
    if layer.ids:
        sizes = {**dict.fromkeys(names, layer.ids), "y": outputs}
        columns = [
            column(name, "category", levels=[f"level {k}" for k in range(size)])
            for name, size in sizes.items()
        ]
        (folder / "schema.toml").write_text(schema_toml(*columns))
        data, features = f'{data}\nschema = "schema.toml"', []
        more += "".join(f'[prepare.columns.{name}]\nencoding = "index"\n' for name in names)
    classes = f"classes = {outputs}\n" if outputs > 1 else ""
    text = job_toml(
        features,
        "softmax" if classes else "logistic",
        rows=dict.fromkeys(("ann", "bob", "cleo")[:evaluators], 100),
        data=data,
        model=f'{classes}graph = "model.json"',
        more=more,
    )
    return kept_in_shares(load_job(write_job(folder, text)), answer=layer.answer)


def weights_of(job: Job, module: nn.Module) -> Mapping[str, Reals]:
    kept = module.state_dict()
    return {name: kept[name].numpy() for name in job.shapes}


def rows_of(layer: Layer, count: int, reach: float) -> Reals:
    rng = np.random.default_rng(4)
    size = count, prod(layer.shape)
    if layer.ids:
        return rng.integers(0, layer.ids, size).astype(np.float64)
    return rng.uniform(-reach, reach, size)


def right(layer: Layer, module: nn.Module, rows: Reals) -> Reals:
    """What the module answers."""
    x = torch.from_numpy(rows.reshape(-1, *layer.shape))
    with torch.no_grad():
        found = module(x.long() if layer.ids else x)
    is_log = isinstance(module, nn.Sequential) and isinstance(module[-1], nn.LogSoftmax)
    result: Reals = (found.exp() if is_log else found).numpy()
    return result


def apart(folder: Path, layer: Layer, evaluators: int, count: int, reach: float) -> float:
    """How far the service's answers are from the module's, at most."""
    job, module = job_of(folder, layer, evaluators), made(layer)
    house = House([shares_of(job, dict(weights_of(job, module)))])
    (model,), clinic = house.models, Asker("clinic", house)
    rows = rows_of(layer, count, reach)
    house.serve([clinic.asks(model, Local(rows, np.ones((count, 0))))])
    answer = clinic.answer(model, 1, count)
    assert isinstance(answer, np.ndarray), answer
    assert house.used_twice() == 0
    expected = right(layer, module, rows)
    assert answer.shape == expected.shape
    return float(np.abs(answer - expected).max())


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_units_of(ROWS, monkeypatch)
    found = apart(tmp_path, CASES[name], 2, ROWS, 2.0)
    assert found <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("reach", [0.5, 8.0])
@pytest.mark.parametrize("name", CASES)
def test_answers_of_three_evaluators_to_a_full_question(
    name: str, reach: float, tmp_path: Path
) -> None:
    found = apart(tmp_path, CASES[name], 3, lanes.BUCKETS[-1], reach)
    assert found <= TOLERANCE


def test_every_layer_and_operation_is_here() -> None:
    """And every kind of an operation that has kinds. A layer that becomes operations of others is a
    case of its own; a function or method becomes the operations that its layer becomes."""
    torch.manual_seed(1)
    modules = [layer.module() for layer in CASES.values()]
    layers = {type(part) for module in modules for part in module.modules()}
    assert {*MODULES, *COMPOSED_LAYERS} - layers == set()
    graphs = [
        convert(module, layer.shape).graph
        for module, layer in zip(modules, CASES.values(), strict=True)
    ]
    nodes = [node for graph in graphs for node in graph.nodes]
    assert {*SPECS} - {node.op for node in nodes} == set()
    for key, choices in CHOICES.items():
        assert {*choices} - {node.settings.get(key) for node in nodes} == set()
