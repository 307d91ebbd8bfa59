"""What cannot be trained is refused at once, all of it, with its place and what to use instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from mpc_train.networks.convert import ConversionError, convert
from mpc_train.networks.graph import Graph, GraphError, check_graph, layers_of, pool_before_relu
from mpc_train.networks.plain import dry_run


class Function(nn.Module):
    """A module whose forward is a function of it and x."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def problems(module: nn.Module, shape: tuple[int, ...]) -> list[str]:
    with pytest.raises(ConversionError) as caught:
        convert(module, shape)
    return caught.value.problems


def test_everything_unsupported_is_named_at_once() -> None:
    found = problems(
        nn.Sequential(
            nn.Linear(4, 4), nn.Mish(), nn.Sequential(nn.Linear(4, 4), nn.RReLU()), nn.LogSigmoid()
        ),
        (4,),
    )
    assert len(found) == 3
    for line, place, instead in zip(
        found,
        ("1 (Mish)", "2.1 (RReLU)", "3 (LogSigmoid)"),
        ("SiLU", "LeakyReLU", "logits"),
        strict=True,
    ):
        assert line.startswith(place) and "use " in line and instead in line


def test_functions_are_named_with_the_module_that_calls_them() -> None:
    inner = Function(lambda self, x: torch.exp(x) + torch.fft.fft(x).real)
    (first, second) = problems(Function(lambda self, x: self.inner(x), inner=inner), (4,))[:2]
    assert first.startswith("inner, exp()") and "Softplus" in first
    assert second.startswith("inner, fft")


CASES: list[tuple[Callable[[Any, Any], Any], tuple[int, ...], str]] = [
    (lambda self, x: x if x.sum() > 0 else -x, (4,), "control flow depends on data at .*test_conv"),
    (lambda self, x: x - x.mean(), (4,), "rows must come first"),
    (lambda self, x: x - x.mean(0), (4,), "rows must come first"),
    (lambda self, x: x.t(), (4,), "not supported"),
    (lambda self, x: torch.cat([x, x], 0), (4,), "rows must come first"),
    (lambda self, x: x.reshape(-1, 2), (4,), "rows must come first"),
    (lambda self, x: torch.relu(x)[:, ::2], (4,), "slices must not have steps"),
    (lambda self, x: 1 / x, (4,), "division by a tensor"),
    (lambda self, x: torch.softmax(x, 1), (4, 3), "last axis"),
    (lambda self, x: (torch.relu(x), x), (4,), "return one tensor"),
]


@pytest.mark.parametrize(("run", "shape", "message"), CASES)
def test_a_function_that_does_not_fit(
    run: Callable[..., Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(Function(run), shape)


def test_shapes_that_do_not_fit_the_rows() -> None:
    (line,) = problems(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(9, 2)), (1, 4, 4))
    assert "[1, 4, 4]" in line and "2" in line


def test_first_weights_are_finite_small_and_not_shared() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
        layer.bias[1] = 200
    first, second = problems(layer, (2,))
    assert "weight: " in first and "not finite" in first
    assert "bias: " in second and "scale it" in second
    shared = nn.Linear(2, 2)
    found = problems(Function(lambda self, x: self.b(self.a(x)), a=shared, b=shared), (2,))
    assert any("the same tensor as a.weight" in line for line in found)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(2, ceil_mode=True, padding=1),
        nn.BatchNorm2d(1, momentum=None),
        nn.GELU(approximate="tanh"),
        nn.Softplus(beta=2),
        nn.Softplus(threshold=1),
        nn.Softmax(1),
    ],
)
def test_settings_that_are_not_offered(layer: nn.Module) -> None:
    (line,) = problems(Function(lambda self, x: self.layer(x), layer=layer), (1, 6, 6))
    assert re.match(r"layer at \S*test_convert\.py:\d+: ", line)


def test_conversion_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    convert(module, (3,))
    assert [part.training for part in module] == [True, False, True]
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_max_pool_comes_before_relu() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    graph = convert(module, (1, 6, 6)).graph
    assert [node.op for node in graph.nodes] == ["conv", "max_pool", "relu", "reshape"]
    dry_run(graph)
    assert pool_before_relu(graph) == graph


def test_a_graph_from_elsewhere_is_checked() -> None:
    graph = layers_of((3, 4, 2))
    check_graph(graph)
    dry_run(graph)
    assert msgspec.json.decode(msgspec.json.encode(graph), type=Graph) == graph
    node = graph.nodes[0]

    def changed(**fields: Any) -> Graph:
        other = msgspec.structs.replace(node, **fields)
        return msgspec.structs.replace(graph, nodes=(other, *graph.nodes[1:]))

    for wrong, message in (
        (changed(op="call"), "does not know the operation 'call'; install the release"),
        (changed(inputs=("y",)), "'y' does not exist"),
        (changed(inputs=("x", "x")), "takes 1"),
        (changed(tensors={"weight": "nothing"}), "no tensor 'nothing'"),
        (changed(tensors={"bias": "0.bias"}), "has the tensors"),
        (changed(settings={"p": "1"}), "has the settings"),
        (changed(shape=(0,)), "the shape"),
        (msgspec.structs.replace(graph, output="z"), "not a node"),
        (
            msgspec.structs.replace(graph, version=3),
            "version 3: this program reads versions 1 to 2",
        ),
        (msgspec.structs.replace(graph, version=0), "version 0"),
        (
            changed(op="smooth", tensors={}, settings={"table": "SINE"}),
            "does not know table 'SINE', only ELU",
        ),
    ):
        with pytest.raises(GraphError, match=message):
            check_graph(wrong)
    with pytest.raises(GraphError, match=r"gives \[4\], not \[5\]"):
        dry_run(changed(shape=(5,)))
    with pytest.raises(GraphError, match="linear0"):
        dry_run(msgspec.structs.replace(graph, input_shape=(7,)))


def test_a_refusal_names_the_line_of_the_call() -> None:
    def run(self: Any, x: torch.Tensor) -> Any:
        y = self.body(x)
        return torch.cumsum(y, 1)

    body = nn.Sequential(nn.Linear(4, 4), nn.Mish())
    layer, function = problems(Function(run, body=body), (4,))
    start = run.__code__.co_firstlineno
    assert f"body.1 (Mish) at {__file__}:{start + 1}: is not supported" in layer
    assert f"cumsum() (cumsum) at {__file__}:{start + 2}: is not supported" in function


def test_a_refusal_inside_of_torch_names_the_layer_alone() -> None:
    (line,) = problems(nn.Sequential(nn.Linear(4, 4), nn.Mish()), (4,))
    assert line.startswith("1 (Mish): is not supported")


def test_a_graph_has_the_least_version_that_knows_its_operations() -> None:
    first = convert(nn.Sequential(nn.Linear(3, 3), nn.GELU()), (3,)).graph
    assert first.version == 1
    for layer in (nn.ELU(), nn.PReLU()):
        graph = convert(nn.Sequential(nn.Linear(3, 3), layer), (3,)).graph
        assert graph.version == 2
        # Graphs of before that version was counted say 1 all the same.
        check_graph(msgspec.structs.replace(graph, version=1))


LOOKED_UP: list[Callable[[Any, Any], Any]] = [
    lambda self, x: self.e(x.long()),
    lambda self, x: self.e(x[:, 1].to(torch.int64)).unsqueeze(1),
    lambda self, x: self.e(x.type(torch.long)[:, :2].flatten(1)),
    lambda self, x: self.e(x.to(dtype=torch.long).unsqueeze(1)),
    lambda self, x: self.e(x.to(x.device).int()) + x[:, :1].to(torch.float32).unsqueeze(2),
]
CUT: list[Callable[[Any, Any], Any]] = [
    lambda self, x: self.e(x.long()) + x.long().unsqueeze(2),
    lambda self, x: (x * 10).int() * 0.1,
    lambda self, x: x.to(torch.int32).float(),
    lambda self, x: x.type(dtype=torch.bool) * 1.0,
]


@pytest.mark.parametrize("run", LOOKED_UP)
def test_whole_numbers_are_looked_up(run: Callable[..., Any]) -> None:
    dry_run(convert(Function(run, e=nn.Embedding(5, 2)), (3,)).graph)


@pytest.mark.parametrize("run", CUT)
def test_digits_are_not_cut_off_without_a_word(run: Callable[..., Any]) -> None:
    found = problems(Function(run, e=nn.Embedding(5, 2)), (3,))
    assert any("whole numbers is only for the input of an Embedding" in line for line in found)


def test_code_in_a_folder_called_torch_is_the_module_s_own(tmp_path: Path) -> None:
    path = tmp_path / "torch" / "nets.py"
    source = "def run(self, x):\n    return x if x.sum() > 0 else -x\n"
    space: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), space)  # noqa: S102 - the test's own lines
    (line,) = problems(Function(space["run"]), (3,))
    assert f"control flow depends on data at {path}:2 in run" in line


def _residual_in_place(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.l(x)
    z = y
    y += x
    return y + z


def _view_changed(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.l(x)
    first = y[:, :1]
    return self.act(y) + first


def _changed_by_a_view(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.l(x)
    self.act(y[:, 1:])
    return y + 1


def _residual(self: Any, x: torch.Tensor) -> torch.Tensor:
    """As torchvision writes it: changed, and used by its result alone."""
    y = self.act(self.l(x))
    y = self.l2(y)
    y += x
    return self.act(y)


def _used_before(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.l(x)
    z = y * 2
    return self.act(y) + z


ALIASED = [
    _residual_in_place,
    _view_changed,
    _changed_by_a_view,
    lambda self, x: self.act(x) + x,
    lambda self, x: nn.functional.relu(x, True) + x,
    lambda self, x: nn.functional.elu(x, 1.0, inplace=True).flatten(1) + x.flatten(1),
]


@pytest.mark.parametrize("run", ALIASED)
def test_what_is_changed_in_place_is_used_no_more(run: Callable[..., Any]) -> None:
    module = Function(run, l=nn.Linear(3, 3), act=nn.ReLU(inplace=True))
    assert any(
        "changes a value in place that is used again" in line for line in problems(module, (3,))
    )


@pytest.mark.parametrize("run", [_residual, _used_before])
def test_changes_in_place_that_nobody_sees_are_fine(run: Callable[..., Any]) -> None:
    layers = {"l": nn.Linear(3, 3), "l2": nn.Linear(3, 3), "act": nn.ReLU(inplace=True)}
    if run is _used_before:
        layers.pop("l2")
    dry_run(convert(Function(run, **layers), (3,)).graph)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda self, x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode"),
        (lambda self, x: nn.functional.softplus(x, 2.0), "beta must be 1"),
        (lambda self, x: x.sum(dim=1, keepdim=True, dtype=torch.int64), "dtype"),
        (lambda self, x: nn.functional.softplus(x, threshold=1), "threshold 20"),
    ],
)
def test_settings_of_functions_are_read(run: Callable[..., Any], said: str) -> None:
    (line,) = problems(Function(run), (3,))
    assert said in line


def test_keywords_may_come_in_any_order() -> None:
    module = Function(
        lambda self, x: self.a(x * 2, value=x * 3, key=x)[0],
        a=nn.MultiheadAttention(4, 2, batch_first=True),
    )
    graph = convert(module, (3, 4)).graph
    (attention,) = (node for node in graph.nodes if node.op == "attention")
    factors = {node.name: node.settings["factor"] for node in graph.nodes if node.op == "scale"}
    assert [factors.get(name) for name in attention.inputs] == ["2", None, "3"]
