"""From a torch module to a graph and its initial weights, by torch.fx.

`convert(module, input_shape)` traces the module once, without running any of its layers' code on
data, and turns every layer and function into a node. Everything that cannot be trained over shares
is collected and reported at once, with its place and what to use instead (`ConversionError`).
Shapes come from a run on zeros with two and with three rows: a shape that depends on the number of
rows in an axis other than the first is refused.

The initial weights are integers at scale 2^WEIGHT_BITS, and are made only here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch import fx, nn

from mpc_train.networks.activations import ACTIVATIONS
from mpc_train.networks.compositions import (
    MOVES,
    WITH_WEIGHT,
    Emission,
    Rule,
    is_weight,
)
from mpc_train.networks.convert_rules import (
    FUNCTIONS,
    INSTEAD,
    METHODS,
    MODULES,
    SHAPE_ONLY,
    Unsupported,
    is_tensor,
)
from mpc_train.networks.graph import (
    WEIGHT_BITS,
    Graph,
    Kind,
    Node,
    Tensor,
    check_graph,
    pool_before_relu,
    version_of,
)
from mpc_train.networks.in_place import changed_and_used
from mpc_train.networks.recurrent import (
    RECURRENT,
    TURNED,
    is_first_state,
    is_idle,
    is_zeros,
    rule_of_turned,
    takes_or_gives_turned,
)
from mpc_train.networks.tracing import (
    ShapeTracer,
    is_own_code,
    rows_axis,
    source_line,
    uninitialised,
)
from protocols.arrays import Words

WEIGHT_LIMIT = 1 << 7
"""Initial weights are below this: each fits four bytes."""

COMPOSED: dict[Any, Rule] = {**MOVES, **ACTIVATIONS, **RECURRENT}
"""Rules for layers, functions and methods that become several operations."""
COMPOSED_LAYERS = {key for key in COMPOSED if isinstance(key, type)}


class ConversionError(ValueError):
    """Everything in a module that cannot be trained over shares, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Converted:
    """A graph and its initial weights, int64 at scale 2^WEIGHT_BITS, without counters."""

    graph: Graph
    initial: dict[str, Words]


@dataclass
class _Building:
    prefix: str
    """The prefix of tensor names that the state_dict's names do not have."""
    nodes: list[Node] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    value_of: dict[fx.Node, str] = field(default_factory=dict)


def convert(module: nn.Module, input_shape: tuple[int, ...]) -> Converted:
    """The module as a graph on rows of `input_shape`.

    Raises ConversionError with everything that does not fit: unsupported layers and functions,
    control flow that depends on data, shapes, shared or non-finite weights.
    """
    if lazy := uninitialised(module):
        raise ConversionError(lazy)
    modes = {part: part.training for part in module.modules()}
    try:
        return _convert(module.train(), tuple(input_shape))
    finally:
        for part, training in modes.items():
            part.training = training


def _convert(module: nn.Module, input_shape: tuple[int, ...]) -> Converted:
    entries, initial, problems = _tensors(module)
    alone = type(module) in MODULES or type(module) in COMPOSED
    try:
        traced = _trace(_Alone(module) if alone else module, input_shape)
    except Exception as error:  # the module's own code may raise anything
        raise ConversionError([*problems, _why_not_traced(error)]) from error
    unsupported = _unsupported(traced)
    if problems or unsupported:
        raise ConversionError([*problems, *unsupported])
    _shapes(traced, input_shape)
    building = _Building(_ALONE if alone else "")
    output = input_name = ""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            input_name = building.value_of[node] = node.name
        elif node.op == "output":
            (result,) = node.args
            known = isinstance(result, fx.Node) and result in building.value_of
            if not known or result.meta.get("several"):
                raise ConversionError(building.problems or ["output: return one tensor"])
            output = building.value_of[result]
        elif (is_tensor(node) or _is_plain_layer(traced, node)) and not is_idle(node):
            try:
                _add(building, traced, node)
            except Unsupported as problem:
                building.problems.append(f"{_place(node)}: {problem}")
                building.value_of[node] = node.name
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                building.problems.append(
                    f"{_place(node)}: arguments that cannot be read ({error}); use plain numbers"
                )
                building.value_of[node] = node.name
    if building.problems:
        raise ConversionError(building.problems)
    nodes, version = tuple(building.nodes), version_of(building.nodes)
    graph = pool_before_relu(Graph(input_name, input_shape, nodes, output, entries, version))
    try:
        check_graph(graph)
    except ValueError as error:
        raise ConversionError([str(error)]) from error
    return Converted(graph, initial)


def _is_plain_layer(traced: fx.GraphModule, node: fx.Node) -> bool:
    """A layer that becomes one operation, regardless of what it is set to return."""
    return node.op == "call_module" and type(traced.get_submodule(str(node.target))) in MODULES


def _tensors(module: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Words], list[str]]:
    entries: list[Tensor] = []
    initial: dict[str, Words] = {}
    problems: list[str] = []
    seen: dict[int, str] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) in seen:
            problems.append(f"{name}: is the same tensor as {seen[id(value)]}; give it its own")
        seen[id(value)] = name
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            entries.append(Tensor(name, shape, "counter"))
            continue
        if name in parameters:
            kind: Kind = "parameter" if value.requires_grad else "frozen"
        else:
            running = name.endswith(("running_mean", "running_var"))
            kind = "statistic" if running else "frozen"
        entries.append(Tensor(name, shape, kind))
        real = value.detach().to(torch.float64).numpy()
        if not np.isfinite(real).all():
            problems.append(f"{name}: contains a weight that is not finite; initialise it again")
        elif (np.abs(real) >= WEIGHT_LIMIT).any():
            problems.append(f"{name}: contains a weight of {WEIGHT_LIMIT} or more; scale it")
        else:
            initial[name] = np.rint(np.ldexp(real, WEIGHT_BITS)).astype(np.int64)
    return tuple(entries), initial, problems


_ALONE = "layer."


class _Alone(nn.Module):
    """A module that is a single layer: tracing needs one around it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


def _trace(module: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    return fx.GraphModule(
        module, ShapeTracer(input_shape, (*MODULES, *COMPOSED_LAYERS)).trace(module)
    )


def _why_not_traced(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if is_own_code(code.co_filename):
            place = f" at {code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    if isinstance(error, AssertionError):
        return f"an assertion on the shape of a row fails{place}: {text}"
    if isinstance(error, fx.proxy.TraceError) or "Proxy" in text:
        return (
            f"control flow depends on data{place}: a graph is the same for all rows; put torch "
            "operations in place of branches and loops over values"
        )
    return f"the module cannot be traced{place}: {text}"


def _unsupported(traced: fx.GraphModule) -> list[str]:
    problems = []
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.get_submodule(str(node.target))
            if type(layer) not in MODULES and type(layer) not in COMPOSED:
                kind = type(layer).__name__
                problems.append(_refusal(f"{node.target} ({kind}){source_line(node)}", kind))
        elif node.op in ("call_function", "call_method"):
            table: Mapping[Any, Any] = FUNCTIONS if node.op == "call_function" else METHODS
            if is_zeros(node):
                if not is_first_state(node, traced.get_submodule):
                    problems.append(
                        f"{_place(node)}: zeros are supported only as the initial state of a "
                        "recurrent layer"
                    )
            elif not any(node.target in known for known in (table, SHAPE_ONLY, COMPOSED)):
                name = getattr(node.target, "__name__", str(node.target))
                problems.append(_refusal(_place(node), name))
        elif node.op == "get_attr" and not all(user.target in WITH_WEIGHT for user in node.users):
            problems.append(
                f"{node.target}{source_line(node)}: a tensor used outside a layer may only be "
                "added, subtracted and multiplied; for anything else put it into a layer (Linear, "
                "a norm)"
            )
    problems += [
        f"{_place(node)}: changes a value in place that is used again later: set inplace = False, "
        "or write x = x + y instead of x += y"
        for node in changed_and_used(traced)
    ]
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        problems.append("forward: must take exactly one tensor, the rows' features")
    return problems


def _refusal(place: str, kind: str) -> str:
    written = kind.replace("_", "").lower()
    for layer, instead in INSTEAD.items():
        # A whole name, or a kind of layer and its axes: expand_as() has nothing to do with exp().
        if re.fullmatch(layer.lower() + r"(\dd|cell|encoder.*|decoder.*)?", written):
            return f"{place}: is not supported over shares; use {instead}"
    return f"{place}: is not supported over shares; mpc_train/docs/job.md lists what is"


def _place(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    where = ""
    if stack:
        where = next(reversed(stack.values()))[0]
    if node.op == "call_module":
        return f"{node.target}{source_line(node)}"
    name = getattr(node.target, "__name__", str(node.target))
    return f"{where or 'forward'}, {name}() ({node.name}){source_line(node)}"


def _shapes(traced: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Record each value's shape without rows in node.meta; refuse operations that mix rows."""
    found: list[dict[fx.Node, Any]] = []
    for rows in (2, 3):
        running = _Shapes(traced.eval())  # evaluation mode changes no statistics
        with torch.no_grad():
            try:
                running.run(torch.zeros(rows, *input_shape))
            except ConversionError as error:
                (reason,) = error.problems
                raise ConversionError(
                    [f"shapes do not fit rows of {list(input_shape)}: {reason}"]
                ) from error
        found.append(running.found)
    problems = []
    for node, shape in found[0].items():
        if is_zeros(node):
            continue
        axis = rows_axis(shape, found[1][node])
        kind = type(traced.get_submodule(str(node.target))) if node.op == "call_module" else None
        turned = axis == 1 and (kind or node.target) in TURNED
        if axis != 0 and not turned and not is_idle(node):
            problems.append(
                f"{_place(node)}: gives {list(shape)} for two rows; rows must come first and stay "
                "separate"
            )
        node.meta["shape"] = tuple(size for place, size in enumerate(shape) if place != axis)
        node.meta["turned"] = turned
    if problems:
        raise ConversionError(problems)


class _Shapes(fx.Interpreter):
    """Runs the layers on zeros in float32, embeddings on whole numbers. `found`: the shapes.

    Of an attention layer's several results it keeps the first.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConversionError([f"{_place(n)}: {reason}"]) from error
        first = result
        if isinstance(result, tuple) and not isinstance(result, torch.Size) and result:
            n.meta["several"], first = True, result[0]
        if isinstance(first, torch.Tensor) and n.op != "get_attr":
            self.found[n] = first.shape
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.fetch_attr(target), nn.Embedding):
            args = (args[0].long(), *args[1:])
        return super().call_module(target, args, kwargs)


def _add(building: _Building, traced: fx.GraphModule, node: fx.Node) -> None:
    """Append the node's operation; a value that does not change keeps its name."""
    part = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    rule = COMPOSED.get(node.target if part is None else type(part))
    if any(is_weight(value) for value in node.args):
        rule = WITH_WEIGHT[node.target]
    if takes_or_gives_turned(node):
        rule = rule_of_turned(node, part)
    if rule is not None:
        emitted = Emission(node, part, building.value_of)
        building.value_of[node] = rule(emitted)
        for each in emitted.nodes:
            own = {key: name.removeprefix(building.prefix) for key, name in each.tensors.items()}
            building.nodes.append(msgspec.structs.replace(each, tensors=own))
        return
    if node.op == "call_module":
        layer = traced.get_submodule(str(node.target))
        op, settings = MODULES[type(layer)](layer, node)
        names = [str(name) for name, _ in layer.named_parameters()]
        names += [str(name) for name, _ in layer.named_buffers()]
        tensors = {name: f"{node.target}.{name}".removeprefix(building.prefix) for name in names}
        # In the order of forward's own arguments, not of the call's.
        given = inspect.signature(layer.forward).bind(*node.args, **node.kwargs).arguments
        inputs = [value for value in given.values() if isinstance(value, fx.Node)]
    else:
        table: Mapping[Any, Any] = FUNCTIONS if node.op == "call_function" else METHODS
        found = table.get(node.target)
        if found is None:
            raise Unsupported("is not supported over shares")
        op, settings, inputs = found(node)
        tensors = {}
    if op == "same":
        building.value_of[node] = building.value_of[inputs[0]]
        return
    for value in inputs:
        if value not in building.value_of:
            raise Unsupported(f"uses {value.name}, which is not a tensor of this network")
    building.value_of[node] = node.name
    building.nodes.append(
        Node(
            node.name,
            op,
            tuple(building.value_of[value] for value in inputs),
            node.meta["shape"],
            tensors,
            dict(settings),
        )
    )
