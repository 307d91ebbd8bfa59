"""Where the operations go that one layer or call of a torch module becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from mpc_train.networks.convert_rules import Unsupported, argument, is_tensor
from mpc_train.networks.graph import Node, Setting


class Emission:
    """Where the operations of one fx node go; the last of them has the node's name."""

    def __init__(self, node: fx.Node, layer: nn.Module | None, value_of: dict[fx.Node, str]):
        self.node, self.layer = node, layer
        self.nodes: list[Node] = []
        self._value_of = value_of

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.meta["shape"]

    def value(self, place: int = 0) -> str:
        return self.named(self.source(place))

    def source(self, place: int = 0) -> fx.Node:
        given = self.node.args[place] if len(self.node.args) > place else None
        if given is None:
            given = self.node.kwargs.get("input")
        if not isinstance(given, fx.Node) or not is_tensor(given):
            raise Unsupported("takes a tensor of the network first")
        return given

    def named(self, node: Any) -> str:
        if not isinstance(node, fx.Node) or not self._value_of.get(node):
            raise Unsupported("takes tensors of the network")
        return self._value_of[node]

    def add(
        self,
        op: str,
        inputs: Iterable[str],
        shape: tuple[int, ...],
        tensors: dict[str, str] | None = None,
        **settings: Setting,
    ) -> str:
        name = f"{self.node.name}.{len(self.nodes)}"
        self.nodes.append(Node(name, op, tuple(inputs), tuple(shape), tensors or {}, settings))
        return name

    def setting(self, place: int, name: str, default: Any = None) -> Any:
        """Of the layer, or of the call."""
        if self.layer is not None:
            return getattr(self.layer, name, default)
        return argument(self.node, place, name, default)


Rule = Callable[[Emission], str]


def axis_of(dim: Any, rank: int) -> int:
    """Without the axis of rows. rank: with it."""
    if not isinstance(dim, int) or not -rank <= dim < rank:
        raise Unsupported(f"dim = {dim!r}: a number between 1 and {rank - 1}")
    if dim % rank == 0:
        raise Unsupported("dim = 0 would mix rows")
    return dim % rank - 1
