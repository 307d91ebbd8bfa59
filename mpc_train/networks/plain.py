"""A graph in float64 PyTorch: the twin of `network`, and the check of a graph's shapes.

`PlainGraph` is an ordinary module whose state_dict has the names and shapes of the graph's original
module, so that a trained model loads into either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from mpc_train.networks.graph import Graph, GraphError, Node
from mpc_train.networks.network import dropout_mask

Tensor = torch.Tensor


class PlainGraph(torch.nn.Module):
    """Runs the graph's nodes in order on [rows, *input_shape]. seed: for the dropout masks."""

    def __init__(self, graph: Graph, seed: int = 0) -> None:
        super().__init__()
        self.graph = graph
        self._seed = seed
        self.steps = 0
        for name, tensor in graph.tensors.items():
            *path, last = name.split(".")
            place: torch.nn.Module = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, torch.nn.Module())
                place = place.get_submodule(part)
            if tensor.kind in ("parameter", "frozen"):
                value = torch.zeros(tensor.shape, dtype=torch.float64)
                trained = tensor.kind == "parameter"
                place.register_parameter(last, torch.nn.Parameter(value, requires_grad=trained))
            else:
                dtype = torch.int64 if tensor.kind == "counter" else torch.float64
                place.register_buffer(last, torch.zeros(tensor.shape, dtype=dtype))

    def load_words(self, words: Mapping[str, NDArray[np.int64]], fraction_bits: int) -> None:
        """Take integers at scale 2^fraction_bits; counters start at 0."""
        scale = 2.0**-fraction_bits
        state = {name: torch.from_numpy(value * scale) for name, value in words.items()}
        self.load_state_dict(state, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        values = {self.graph.input_name: x.reshape(len(x), *self.graph.input_shape)}
        for node in self.graph.nodes:
            tensors = {key: self._tensor(name) for key, name in node.tensors.items()}
            inputs = [values[name] for name in node.inputs]
            values[node.name] = OPERATIONS[node.op](self, node, inputs, tensors)
        return values[self.graph.output]

    def _tensor(self, name: str) -> Any:
        path, _, last = name.rpartition(".")
        return getattr(self.get_submodule(path), last)

    def kept(self, node: Node, rows: int) -> Tensor:
        return torch.from_numpy(dropout_mask(self._seed, self.steps, node, rows))


def dry_run(graph: Graph) -> None:
    """Run the graph on the shapes of two rows; GraphError names the node whose shape is wrong.

    Uses torch's meta device, so no element is created, whatever sizes the graph states.
    """
    with torch.device("meta"):
        module = PlainGraph(graph).eval()
        values = {graph.input_name: torch.zeros(2, *graph.input_shape, dtype=torch.float64)}
    for node in graph.nodes:
        tensors = {key: module._tensor(name) for key, name in node.tensors.items()}
        inputs = [values[name] for name in node.inputs]
        try:
            with torch.no_grad():
                value = OPERATIONS[node.op](module, node, inputs, tensors)
        except (RuntimeError, ValueError, IndexError, TypeError, ArithmeticError) as error:
            shapes = ", ".join(str(list(value.shape[1:])) for value in inputs)
            reason = str(error).splitlines()[0]
            raise GraphError(f"{node.name} ({node.op}) of {shapes}: {reason}") from error
        if tuple(value.shape) != (2, *node.shape):
            raise GraphError(
                f"{node.name} ({node.op}) gives {list(value.shape[1:])}, not {list(node.shape)}"
            )
        values[node.name] = value


Run = Callable[[PlainGraph, Node, list[Tensor], dict[str, Tensor]], Tensor]


def _conv(_: PlainGraph, node: Node, x: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    kernel = node.sizes("kernel")
    if tuple(tensors["weight"].shape[2:]) != kernel:
        raise ValueError(
            f"a weight of shape {list(tensors['weight'].shape)} for a kernel of {kernel}"
        )
    convolve: Any = functional.conv1d if len(kernel) == 1 else functional.conv2d
    return convolve(
        x[0],
        tensors["weight"],
        tensors.get("bias"),
        node.sizes("stride"),
        node.sizes("padding"),
        node.sizes("dilation"),
        node.count("groups"),
    )


def _max_pool(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    kernel = node.sizes("kernel")
    pool: Any = functional.max_pool1d if len(kernel) == 1 else functional.max_pool2d
    parts = [node.sizes(key) for key in ("stride", "padding", "dilation")]
    return pool(x[0], kernel, *parts, node.flag("round_up"))


def _average_pool(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    kernel, divisor = node.sizes("kernel"), node.count("divisor")
    inputs, spatial = x[0], node.sizes("kernel")
    if len(kernel) == 1:
        inputs, spatial = x[0].unsqueeze(2), (1, *kernel)
    stride, padding = node.sizes("stride"), node.sizes("padding")
    if len(kernel) == 1:
        stride, padding = (1, *stride), (0, *padding)
    y = functional.avg_pool2d(
        inputs, spatial, stride, padding, node.flag("round_up"), divisor != 0, divisor or None
    )
    return y.squeeze(2) if len(kernel) == 1 else y


def _adaptive(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    outputs = node.sizes("outputs")
    pool: Any = functional.adaptive_avg_pool1d
    if len(outputs) == 2:
        pool = functional.adaptive_avg_pool2d
    return pool(x[0], outputs)


def _batch_norm(net: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    mean, spread = tensors.get("running_mean"), tensors.get("running_var")
    if net.training and "num_batches_tracked" in tensors:
        tensors["num_batches_tracked"].add_(1)
    return functional.batch_norm(
        x[0],
        mean,
        spread,
        tensors.get("weight"),
        tensors.get("bias"),
        net.training or mean is None,
        float(node.real("momentum")),
        float(node.real("eps")),
    )


def _layer_norm(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    shape = x[0].shape[-node.count("axes") :]
    eps = float(node.real("eps"))
    return functional.layer_norm(x[0], shape, tensors.get("weight"), tensors.get("bias"), eps)


def _group_norm(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    groups, eps = node.count("groups"), float(node.real("eps"))
    return functional.group_norm(x[0], groups, tensors.get("weight"), tensors.get("bias"), eps)


def _dropout(net: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    kept = 1 - node.real("p")
    if not net.training or kept == 1:
        return x[0]
    return x[0] * net.kept(node, len(x[0])) / float(kept)


def _cat(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    return torch.cat(x, node.count("axis") + 1)


def _slice(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    start, stop = node.count("start"), node.count("stop")
    return x[0].narrow(node.count("axis") + 1, start, stop - start)


def _attention(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    module = functional.multi_head_attention_forward
    query, key, value = (part.transpose(0, 1) for part in x)
    mixed, _weights = module(
        query,
        key,
        value,
        query.shape[-1],
        node.count("heads"),
        tensors["in_proj_weight"],
        tensors.get("in_proj_bias"),
        None,
        None,
        False,
        0.0,
        tensors["out_proj.weight"],
        tensors.get("out_proj.bias"),
        need_weights=False,
    )
    return mixed.transpose(0, 1)


def _recurrent(_: PlainGraph, node: Node, x: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    """torch's own layer with the identity as its inputs' weight, because that product is already
    computed."""
    weight, bias, cell = tensors["weight"], tensors.get("bias"), str(node.settings["cell"])
    wide, hidden = weight.shape
    one = torch.eye(wide, dtype=weight.dtype, device=weight.device)
    pair = [] if bias is None else [torch.zeros_like(bias), bias]
    first: Any = torch.zeros(1, len(x[0]), hidden, dtype=weight.dtype, device=weight.device)
    runs: dict[str, Any] = {
        "gru": torch.gru,
        "lstm": torch.lstm,
        "rnn_relu": torch.rnn_relu,
        "rnn_tanh": torch.rnn_tanh,
    }
    given = x[0].flip(1) if node.flag("reverse") else x[0]
    if cell == "lstm":
        first = (first, first)
    weights, has_bias = [one, weight, *pair], bias is not None
    y = runs[cell](given, first, weights, has_bias, 1, 0.0, False, False, True)[0]
    return y.flip(1) if node.flag("reverse") else y


def _resize(_: PlainGraph, node: Node, x: list[Tensor], tensors: Any) -> Tensor:
    factors = [*map(Fraction, node.sizes("numerators"), node.sizes("denominators"))]
    axes, aligned = len(factors), node.flag("aligned")
    given, wanted = x[0].shape[-axes:], node.shape[-axes:]
    mode = ("linear", "bilinear")[axes - 1]
    if aligned or all(a * f == b for a, b, f in zip(given, wanted, factors, strict=True)):
        return functional.interpolate(x[0], wanted, mode=mode, align_corners=aligned)
    scale = tuple(map(float, factors))
    return functional.interpolate(x[0], scale_factor=scale, mode=mode, align_corners=False)


def _spread(node: Node, weight: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *[1] * node.count("behind"))


def _axes(node: Node) -> list[int]:
    return [axis + 1 for axis in node.sizes("axes")]


SMOOTH: dict[object, Callable[[Tensor], Tensor]] = {
    "ELU": functional.elu,
    "GELU": functional.gelu,
    "SILU": functional.silu,
    "SMOOTH_RELU": functional.softplus,
}

OPERATIONS: dict[str, Run] = {
    "linear": lambda _, node, x, t: functional.linear(x[0], t["weight"], t.get("bias")),
    "conv": _conv,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "adaptive_average_pool": _adaptive,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "dropout": _dropout,
    "embedding": lambda _, node, x, t: functional.embedding(x[0].long(), t["weight"]),
    "relu": lambda _, node, x, t: functional.relu(x[0]),
    "leaky_relu": lambda _, node, x, t: functional.leaky_relu(x[0], float(node.real("slope"))),
    "clamp": lambda _, node, x, t: functional.hardtanh(
        x[0], float(node.real("low")), float(node.real("high"))
    ),
    "sigmoid": lambda _, node, x, t: torch.sigmoid(x[0]),
    "tanh": lambda _, node, x, t: torch.tanh(x[0]),
    "smooth": lambda _, node, x, t: SMOOTH[node.settings["table"]](x[0]),
    "softmax": lambda _, node, x, t: torch.softmax(x[0], -1),
    "log_softmax": lambda _, node, x, t: torch.log_softmax(x[0], -1),
    "reshape": lambda _, node, x, t: x[0].reshape(len(x[0]), *node.shape),
    "permute": lambda _, node, x, t: x[0].permute(0, *_axes(node)),
    "add": lambda _, node, x, t: x[0] + x[1],
    "sub": lambda _, node, x, t: x[0] - x[1],
    "mul": lambda _, node, x, t: x[0] * x[1],
    "add_weight": lambda _, node, x, t: x[0] + _spread(node, t["weight"]),
    "mul_weight": lambda _, node, x, t: x[0] * _spread(node, t["weight"]),
    "scale": lambda _, node, x, t: x[0] * float(node.real("factor")),
    "shift": lambda _, node, x, t: x[0] + float(node.real("summand")),
    "cat": _cat,
    "slice": _slice,
    "mean": lambda _, node, x, t: x[0].mean(_axes(node), node.flag("keep")),
    "sum": lambda _, node, x, t: x[0].sum(_axes(node), node.flag("keep")),
    "matmul": lambda _, node, x, t: x[0] @ x[1],
    "attention": _attention,
    "recurrent": _recurrent,
    "resize": _resize,
}
