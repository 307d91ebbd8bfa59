"""A network as data: operations on tensors, in order, without code or weights.

`convert` makes one from a torch module, `network` runs it over shares, `plain` in float64. Feature
maps are [channels, *sizes] here: all shapes omit the axis of rows, which comes first and which no
operation may touch. Real numbers in settings are decimals or fractions as text, so that every
machine reads the same numbers.

A graph comes with a job from elsewhere: `check_graph` checks that it is well formed, and
`plain.dry_run` that its shapes are correct.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Literal

import msgspec

GRAPH_VERSION = 2
"""The latest version that this program reads; it reads all earlier ones. A graph has the smallest
version that knows all its operations (`version_of`), so that a node of an older release reads every
graph that it can run and refuses others by their version."""
MAX_NODES = 4096
MAX_ELEMENTS = 1 << 28
MAX_AXES = 8
MAX_SETTING = 1 << 20
"""The largest number and the longest list in a setting: of strides, axes, slices and the like."""
NUMBER = re.compile(r"-?\d{1,60}(\.\d{1,60}|/\d{1,60})?\Z", re.ASCII)

Setting = bool | int | str | tuple[int, ...]
Kind = Literal["parameter", "frozen", "statistic", "counter"]


NORMS = ("batch_norm", "layer_norm", "group_norm")
WEIGHT_BITS = 24
"""Initial weights have this scale; below 2^7 they fit four bytes."""


class GraphError(ValueError):
    """The graph contradicts itself; the message names the node."""


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the state_dict.

    kind: a parameter that is trained; a frozen parameter or buffer, which stays public; a statistic
    that training updates (secret); a step counter, which everybody knows.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "parameter"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation. tensors: the entries of the state_dict that it uses, by the operation's name
    for each."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    tensors: dict[str, str] = {}
    settings: dict[str, Setting] = {}

    @property
    def place(self) -> str:
        """Its place in the module, as far as its tensors show."""
        for key, name in self.tensors.items():
            if name != key:
                return name.removesuffix(f".{key}")
        return f"{self.name} ({self.op})"

    def sizes(self, key: str) -> tuple[int, ...]:
        value = self.settings[key]
        if not isinstance(value, tuple):
            raise GraphError(f"{self.name}: {key} must be a list of whole numbers")
        return value

    def count(self, key: str) -> int:
        value = self.settings[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise GraphError(f"{self.name}: {key} must be a whole number")
        return value

    def real(self, key: str) -> Fraction:
        value = self.settings[key]
        # Limit the length: the text may come from elsewhere, and 1e999999999 would never end.
        if not isinstance(value, str) or not NUMBER.match(value):
            raise GraphError(f"{self.name}: {key} must be a decimal or a fraction as text")
        try:
            return Fraction(value)
        except ZeroDivisionError:
            raise GraphError(f"{self.name}: {key} is divided by 0") from None

    def flag(self, key: str) -> bool:
        value = self.settings[key]
        if not isinstance(value, bool):
            raise GraphError(f"{self.name}: {key} must be true or false")
        return value


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A graph: nodes in an order in which they can run; entries in the order of the state_dict."""

    input_name: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    output: str
    entries: tuple[Tensor, ...]
    version: int = 1

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {entry.name: entry for entry in self.entries}

    @property
    def output_shape(self) -> tuple[int, ...]:
        for node in self.nodes:
            if node.name == self.output:
                return node.shape
        return self.input_shape

    def named(self, *kinds: Kind) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors of these kinds."""
        for name, tensor in self.tensors.items():
            if tensor.kind in kinds:
                yield name, tensor.shape

    def uses(self) -> dict[str, int]:
        """How often each value is used, including as the output."""
        count: dict[str, int] = {self.output: 1}
        for node in self.nodes:
            for name in node.inputs:
                count[name] = count.get(name, 0) + 1
        return count


@dataclass(frozen=True)
class Spec:
    """What a node with this operation has. inputs: their number, 0 for one or more."""

    inputs: int = 1
    tensors: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


_AFFINE = ("weight", "bias")
_WINDOW = ("kernel", "stride", "padding", "dilation")
_SIZES = {*_WINDOW, "outputs", "axes", "numerators", "denominators"}
_REALS = {"eps", "momentum", "p", "slope", "low", "high", "factor", "summand"}
_FLAGS = {"round_up", "keep", "reverse", "aligned"}
"""Kinds of settings by key; those in `CHOICES` are names, and all others are counts."""
SPECS: dict[str, Spec] = {
    "linear": Spec(tensors=("weight",), optional=("bias",)),
    "conv": Spec(tensors=("weight",), optional=("bias",), settings=(*_WINDOW, "groups")),
    "max_pool": Spec(settings=(*_WINDOW, "round_up")),
    "average_pool": Spec(settings=(*_WINDOW, "round_up", "divisor")),
    "adaptive_average_pool": Spec(settings=("outputs",)),
    "batch_norm": Spec(
        optional=(*_AFFINE, "running_mean", "running_var", "num_batches_tracked"),
        settings=("eps", "momentum"),
    ),
    "layer_norm": Spec(optional=_AFFINE, settings=("axes", "eps")),
    "group_norm": Spec(optional=_AFFINE, settings=("groups", "eps")),
    "dropout": Spec(settings=("p",)),
    "embedding": Spec(tensors=("weight",)),
    "relu": Spec(),
    "leaky_relu": Spec(settings=("slope",)),
    "clamp": Spec(settings=("low", "high")),
    "sigmoid": Spec(),
    "tanh": Spec(),
    "smooth": Spec(settings=("table",)),
    "softmax": Spec(),
    "log_softmax": Spec(),
    "reshape": Spec(),
    "permute": Spec(settings=("axes",)),
    "add": Spec(inputs=2),
    "sub": Spec(inputs=2),
    "mul": Spec(inputs=2),
    "add_weight": Spec(tensors=("weight",), settings=("behind",)),
    "mul_weight": Spec(tensors=("weight",), settings=("behind",)),
    "scale": Spec(settings=("factor",)),
    "shift": Spec(settings=("summand",)),
    "cat": Spec(inputs=0, settings=("axis",)),
    "slice": Spec(settings=("axis", "start", "stop")),
    "mean": Spec(settings=("axes", "keep")),
    "sum": Spec(settings=("axes", "keep")),
    "matmul": Spec(inputs=2),
    "attention": Spec(
        inputs=3,
        tensors=("in_proj_weight", "out_proj.weight"),
        optional=("in_proj_bias", "out_proj.bias"),
        settings=("heads",),
    ),
    "recurrent": Spec(tensors=("weight",), optional=("bias",), settings=("cell", "reverse")),
    "resize": Spec(settings=("aligned", "numerators", "denominators")),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "table": ("ELU", "GELU", "SILU", "SMOOTH_RELU"),
    "cell": ("gru", "lstm", "rnn_relu", "rnn_tanh"),
}
"""The possible values of a setting, by its name."""
SINCE = {
    **dict.fromkeys(("add_weight", "mul_weight", "recurrent", "resize"), 2),
    "ELU": 2,
}
"""The first version that knows an operation or a choice, if it is not 1. Graphs of version 1 with
`add_weight` and `mul_weight` exist, and are read."""


def version_of(nodes: Iterable[Node]) -> int:
    """The smallest version that knows all of them."""
    said = ((node.op, *node.settings.values()) for node in nodes)
    return max(
        (SINCE.get(word, 1) for words in said for word in words if isinstance(word, str)), default=1
    )


def check_graph(graph: Graph) -> None:
    """Raise GraphError unless every node is well formed and uses only earlier values."""
    if not 1 <= graph.version <= GRAPH_VERSION:
        raise GraphError(
            f"version {graph.version}: this program reads versions 1 to {GRAPH_VERSION}; install "
            "the release that wrote it"
        )
    if not 1 <= len(graph.nodes) <= MAX_NODES:
        raise GraphError(f"{len(graph.nodes)} nodes, must be 1 to {MAX_NODES}")
    if len(graph.tensors) < len(graph.entries):
        raise GraphError("two tensors have the same name")
    for name, tensor in graph.tensors.items():
        _check_shape(name, tensor.shape)
    _check_shape(graph.input_name, graph.input_shape)
    known = {graph.input_name}
    used: set[str] = set()
    for node in graph.nodes:
        _check_node(node, graph, known)
        known.add(node.name)
        used.update(node.tensors.values())
    if graph.output not in known:
        raise GraphError(f"the output {graph.output!r} is not a node")
    idle = [name for name in graph.tensors if name not in used]
    if idle:
        raise GraphError(f"no node uses {', '.join(idle)}: remove it from the module")


def _check_node(node: Node, graph: Graph, known: set[str]) -> None:
    spec = SPECS.get(node.op)
    if spec is None:
        raise GraphError(
            f"{node.name}: this program does not know the operation {node.op!r}; install the "
            "release that wrote the network"
        )
    if node.name in known:
        raise GraphError(f"{node.name}: two nodes have this name")
    for name in node.inputs:
        if name not in known:
            raise GraphError(f"{node.name}: {name!r} does not exist before it")
    if len(node.inputs) != spec.inputs and (spec.inputs or not node.inputs):
        raise GraphError(f"{node.name}: {node.op} takes {spec.inputs} values")
    if set(node.settings) != set(spec.settings):
        raise GraphError(f"{node.name}: {node.op} has the settings {', '.join(spec.settings)}")
    for key in CHOICES.keys() & node.settings.keys():
        if node.settings[key] not in CHOICES[key]:
            raise GraphError(
                f"{node.name}: this program does not know {key} {node.settings[key]!r}, only "
                f"{', '.join(CHOICES[key])}"
            )
    for key, value in node.settings.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > MAX_AXES or any(
            isinstance(each, int) and abs(each) > MAX_SETTING for each in numbers
        ):
            raise GraphError(f"{node.name}: {key} is too large")
        _check_kind(node, key)
    allowed = {*spec.tensors, *spec.optional}
    if not set(spec.tensors) <= set(node.tensors) <= allowed:
        raise GraphError(f"{node.name}: {node.op} has the tensors {', '.join(sorted(allowed))}")
    for name in node.tensors.values():
        if name not in graph.tensors:
            raise GraphError(f"{node.name}: there is no tensor {name!r}")
    _check_shape(node.name, node.shape)


def _check_kind(node: Node, key: str) -> None:
    """Check the kind of a setting: code that reads it later would not raise a named error."""
    if key in _SIZES and (node.op, key) != ("layer_norm", "axes"):
        node.sizes(key)
    elif key in _REALS:
        node.real(key)
    elif key in _FLAGS:
        node.flag(key)
    elif key not in CHOICES:  # which are checked already
        node.count(key)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_AXES:
        raise GraphError(f"{name}: the shape has {len(shape)} axes, at most {MAX_AXES}")
    if any(size < 1 for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{name}: the shape {list(shape)} is not possible")


def layers_of(widths: tuple[int, ...], input_name: str = "x") -> Graph:
    """Linear layers of these widths with ReLU between them.

    Tensors are named as in one torch.nn.Linear, or in the torch.nn.Sequential of Linear, ReLU, …,
    Linear.
    """
    nodes: list[Node] = []
    entries: list[Tensor] = []
    several = len(widths) > 2
    value = input_name
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            nodes.append(Node(f"relu{index}", "relu", (value,), (inputs,)))
            value = nodes[-1].name
        prefix = f"{2 * index}." if several else ""
        names = {part: f"{prefix}{part}" for part in _AFFINE}
        entries.append(Tensor(names["weight"], (outputs, inputs)))
        entries.append(Tensor(names["bias"], (outputs,)))
        nodes.append(Node(f"linear{index}", "linear", (value,), (outputs,), tensors=names))
        value = nodes[-1].name
    return Graph(input_name, (widths[0],), tuple(nodes), value, tuple(entries))


def pool_before_relu(graph: Graph) -> Graph:
    """The same function, with a ReLU whose only user is a max-pool moved after it.

    relu(max(x)) = max(relu(x)), and after the pool there are fewer elements to compare.
    """
    uses = graph.uses()
    nodes = {node.name: node for node in graph.nodes}
    order = [node.name for node in graph.nodes]
    for name in list(order):
        pool = nodes[name]
        if pool.op != "max_pool":
            continue
        relu = nodes.get(pool.inputs[0])
        if relu is None or relu.op != "relu" or uses[relu.name] > 1:
            continue
        # Each keeps its place in the order but takes the other's operation, and the pool's name
        # goes to the last of the two, so that users need not change.
        first = msgspec.structs.replace(pool, name=relu.name, inputs=relu.inputs)
        nodes[relu.name] = first
        nodes[pool.name] = msgspec.structs.replace(
            relu, name=pool.name, inputs=(first.name,), shape=pool.shape
        )
    return msgspec.structs.replace(graph, nodes=tuple(nodes[name] for name in order))
