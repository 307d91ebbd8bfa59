"""Operations that change their input in place although something else still uses that input.

A graph has values and no memory: relu(x, inplace=True) is a new value, and x does not change. That
is the module's meaning as long as nothing uses x afterwards, or anything that shares memory with
it; otherwise the network would silently be a different one.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

_VIEWS = {
    *("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous"),
    *("expand", "expand_as", "chunk", "split", "float", "double", "to", "type", "long", "int"),
    *(torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze, torch.permute),
    *(torch.transpose, torch.chunk, torch.split, operator.getitem),
}
_VIEWING = (nn.Flatten, nn.Unflatten, nn.Identity)


def changed_and_used(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes that change a value in place that is used again after them."""
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    return [
        node
        for node in order
        if _in_place(traced, node)
        and any(
            order[user] > order[node]
            for member in _sharing(traced, node)
            for user in member.users
            if user is not node
        )
    ]


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op != "call_function":
        return False
    if node.meta.get("in_place") or node.kwargs.get("inplace"):
        return True
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False  # functions without a signature do not work in place
    return bool(given.arguments.get("inplace"))


def _source(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _shares(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result lies in its input's memory."""
    if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), _VIEWING):
        return True
    return node.target in _VIEWS or _in_place(traced, node)


def _sharing(traced: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The values in the memory that `node` changes, without those derived from its result."""
    base = _source(node)
    while isinstance(base, fx.Node) and _shares(traced, base):
        base = _source(base)
    found = [base] if isinstance(base, fx.Node) else []
    for member in found:
        found += [
            user
            for user in member.users
            if user is not node and _source(user) is member and _shares(traced, user)
        ]
    return found
