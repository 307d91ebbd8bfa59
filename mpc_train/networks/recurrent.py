"""GRU, LSTM and RNN as operations of a graph, and values whose rows are on their second axis.

A layer of L sublayers in D directions becomes L · D matrix products of all steps with `weight_ih`,
each followed by a `recurrent` operation, which goes through the steps with `weight_hh`. Names and
order of the gates are PyTorch's.

PyTorch puts rows on the second axis if `batch_first` is False, and always in the last states. A
graph always has rows first. `node.meta["turned"]` marks a value that has rows second in the module;
in the graph it has rows first, and the shape in `node.meta` omits rows as for any other value.
`TURNED` lists everything that may take or give such a value; all else is refused, because its axes
would not be those that the module means.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from mpc_train.networks.compositions import Emission, Rule
from mpc_train.networks.convert_rules import (
    Unsupported,
    argument,
    decimal_text,
    permuted_axes,
    transposed_axes,
)


def is_turned(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta.get("turned"))


def _recurrent(out: Emission) -> str:
    layer: Any = out.layer
    source = out.source()
    first = argument(out.node, 1, "hx")
    for state in first if isinstance(first, tuple | list) else (first,):
        if state is not None and not is_zeros(state):
            raise Unsupported("the initial state is 0: call the layer with its input only")
    if len(source.meta["shape"]) != 2:
        raise Unsupported("the input must be [rows, steps, features]")
    if layer.batch_first == is_turned(source):
        raise Unsupported(
            "would run over the rows: set batch_first = True for rows that come first"
            if not layer.batch_first
            else "would run over the rows: batch_first = True takes rows that come first"
        )
    if getattr(layer, "proj_size", 0):
        raise Unsupported("proj_size is not supported: put a Linear after it")
    steps, width = source.meta["shape"]
    x, last = out.value(), []
    for level in range(layer.num_layers):
        if level and layer.dropout:
            p = decimal_text(float(layer.dropout))
            x = out.add("dropout", (x,), (steps, width), p=p)
        found = [_direction(out, x, level, reverse) for reverse in range(1 + layer.bidirectional)]
        width = layer.hidden_size * len(found)
        last += [(name, 0 if reverse else steps - 1) for reverse, name in enumerate(found)]
        x = found[0] if len(found) == 1 else out.add("cat", found, (steps, width), axis=1)
    out.node.meta["last"] = last, layer.hidden_size
    return x


def _direction(out: Emission, x: str, level: int, reverse: int) -> str:
    layer: Any = out.layer
    steps = out.source().meta["shape"][0]
    kind = layer.mode.lower()
    gates = {"gru": 3, "lstm": 4}.get(kind, 1) * layer.hidden_size
    suffix = f"_l{level}{'_reverse' * reverse}"

    def tensors(side: str) -> dict[str, str]:
        keys = ("weight", "bias") if layer.bias else ("weight",)
        return {key: f"{out.node.target}.{key}_{side}{suffix}" for key in keys}

    wide = out.add("linear", (x,), (steps, gates), tensors("ih"))
    shape = (steps, layer.hidden_size)
    return out.add("recurrent", (wide,), shape, tensors("hh"), cell=kind, reverse=bool(reverse))


def _result(out: Emission) -> str:
    """layer(x)[0], the states of all steps; layer(x)[1], the last ones; [1][0] of an LSTM."""
    source: Any = out.node.args[0]
    index = out.node.args[1]
    if "last" not in source.meta:
        return _step(out)
    if index == 0 and not source.meta.get("cells"):
        return out.named(source)
    if index != (0 if source.meta.get("cells") else 1):
        raise Unsupported("the last states of an LSTM's cells are not supported: use those of h")
    last, hidden = source.meta["last"]
    if out.node.meta.get("several"):  # (h, c): the next index selects one
        out.node.meta |= {"last": (last, hidden), "cells": True}
        return out.named(source)
    states = [
        out.add("slice", (name,), (1, hidden), axis=0, start=step, stop=step + 1)
        for name, step in last
    ]
    return states[0] if len(states) == 1 else out.add("cat", states, (len(states), hidden), axis=0)


def _step(out: Emission) -> str:
    """x[step], x[step, :, :], x[a:b] of a value whose first axis is that of the steps."""
    source: Any = out.node.args[0]
    index: Any = out.node.args[1]
    if not is_turned(source):
        raise Unsupported("rows stay first: unsqueeze after them")
    first, *rest = index if isinstance(index, tuple) else (index,)
    if not isinstance(first, int | slice) or any(each != slice(None) for each in rest):
        raise Unsupported(
            "index a step or a slice of the steps first, and keep all of the other axes"
        )
    x, shape = out.named(source), source.meta["shape"]
    if isinstance(first, int):
        first = slice(first % shape[0], first % shape[0] + 1)
    start, stop, stride = first.indices(shape[0])
    if stride != 1:
        raise Unsupported("slices without steps only")
    if (start, stop) != (0, shape[0]):
        part = (stop - start, *shape[1:])
        x = out.add("slice", (x,), part, axis=0, start=start, stop=stop)
        shape = part
    return x if shape == out.shape else out.add("reshape", (x,), out.shape)


def _reordered(out: Emission) -> str:
    """permute and transpose from or to rows on the second axis."""
    source, node = out.source(), out.node
    permutes = node.target in ("permute", torch.permute)
    order = permuted_axes(node) if permutes else transposed_axes(node)
    rows = int(is_turned(source))
    others = tuple(axis - (axis > rows) for axis in order if axis != rows)
    x = out.value()
    return (
        x
        if others == tuple(range(len(others)))
        else out.add("permute", (x,), out.shape, axes=others)
    )


def _squeezed(out: Emission) -> str:
    if argument(out.node, 1, "dim") != 0 or is_turned(out.node):
        raise Unsupported("squeeze(0) if there is only one step or state")
    return out.add("reshape", (out.value(),), out.shape)


def _viewed(out: Emission) -> str:
    """view(-1, width), if there is only one step or state."""
    length, *_ = out.source().meta["shape"]
    if length > 1 or is_turned(out.node) or not is_turned(out.source()):
        raise Unsupported("would mix steps and rows: put rows first beforehand, by transpose(0, 1)")
    return out.add("reshape", (out.value(),), out.shape)


RECURRENT: dict[Any, Rule] = dict.fromkeys((nn.GRU, nn.LSTM, nn.RNN), _recurrent)
TURNED: dict[Any, Rule | None] = {
    **RECURRENT,
    operator.getitem: _result,
    **dict.fromkeys((torch.permute, torch.transpose, "permute", "transpose"), _reordered),
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeezed),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _viewed),
    **dict.fromkeys((nn.Dropout, nn.Embedding, nn.Linear, nn.ReLU, nn.Sigmoid, nn.Tanh)),
}
"""Rules for what may take or give a value with rows on its second axis, by the layer's type, the
function or the method's name; None: the ordinary rule, which touches only the last axis."""


def rule_of_turned(node: fx.Node, layer: nn.Module | None) -> Rule | None:
    """The rule for a node that takes or gives such a value; raises Unsupported if there is none,
    and returns None if the ordinary rule applies."""
    key = node.target if layer is None else type(layer)
    if key not in TURNED:
        raise Unsupported(
            "gets rows on the second axis: put them first beforehand, by transpose(0, 1)"
        )
    return TURNED[key]


def takes_or_gives_turned(node: fx.Node) -> bool:
    source: Any = node.args[0] if node.args else None
    taken_apart = (
        node.target is operator.getitem and isinstance(source, fx.Node) and "last" in source.meta
    )
    return taken_apart or is_turned(node) or any(map(is_turned, node.all_input_nodes))


def is_zeros(node: Any) -> bool:
    """Whether it is a tensor of zeros that forward makes, possibly moved to another device."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target in ("to", "detach", "requires_grad_"):
        return is_zeros(node.args[0])
    return node.target in (torch.zeros, "new_zeros")


def is_first_state(node: fx.Node, layer_of: Callable[[str], nn.Module]) -> bool:
    """Whether only recurrent layers use it, and only as their initial state."""
    return all(
        is_first_state(user, layer_of)
        if is_zeros(user)
        else user.op == "call_module"
        and type(layer_of(str(user.target))) in RECURRENT
        and user.args[:1] != (node,)
        and user.kwargs.get("input") is not node
        for user in node.users
    )


def is_idle(node: fx.Node) -> bool:
    """Whether it selects a part of a result that nothing uses."""
    return node.target is operator.getitem and all(map(is_idle, node.users))
