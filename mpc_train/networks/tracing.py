"""Tracing a torch module, with the shapes of its values known while its code runs.

Shapes are no data: `x.dim()`, `x.ndim`, `x.shape[1]` and `x.size(1)` are plain numbers to the
module's own code, which may compare them, assert on them and branch on them. The number of rows
alone stays open. Shapes come from the same operations on two rows of zeros; where that fails,
nothing is known, and the conversion says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn


class ShapedProxy(fx.Proxy):
    """A value in tracing that knows its shape but for the number of rows."""

    def _known(self) -> torch.Size | None:
        tracer = self.tracer
        value = tracer.values.get(self.node) if isinstance(tracer, ShapeTracer) else None
        return value.shape if isinstance(value, torch.Tensor) and value.dim() else None

    def _method(self, name: str, *args: Any) -> Any:
        return self.tracer.create_proxy("call_method", name, (self, *args), {})

    def dim(self) -> Any:
        known = self._known()
        return self._method("dim") if known is None else len(known)

    ndimension = dim

    @property
    def ndim(self) -> Any:
        return self.dim()

    @property
    def shape(self) -> Any:
        return self.size()

    def size(self, dim: int | None = None) -> Any:
        known = self._known()
        if known is None:
            return self._method("size") if dim is None else self._method("size", dim)
        if dim is None:
            return (self._method("size", 0), *known[1:])
        return known[dim] if dim % len(known) else self._method("size", 0)


class ShapeTracer(fx.Tracer):
    """fx's tracer for rows of `input_shape`. leaves: layers that are not looked into."""

    def __init__(self, input_shape: tuple[int, ...], leaves: Iterable[type]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Any] = {}
        self._input_shape = input_shape
        self._leaves = frozenset(leaves)
        self._computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self._leaves or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ShapedProxy(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        found = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = found.node
        computing, self._computing = self._computing, True
        try:
            with torch.no_grad():
                self.values[node] = self._computed(node)
        except Exception:  # noqa: S110  `_shapes` runs the same again and reports it
            pass
        finally:
            self._computing = computing
        return found

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return torch.zeros(2, *self._input_shape)
        args: Any = fx.node.map_arg(node.args, lambda each: self.values[each])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda each: self.values[each])
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        layer = self.root.get_submodule(str(node.target))
        weight = next(layer.parameters(), None)
        if isinstance(layer, nn.Embedding):
            args = (args[0].long(), *args[1:])
        elif weight is not None:
            args = tuple(each.to(weight.dtype) for each in args)
        was = layer.training
        layer.eval()  # a batch norm would count these zeros
        try:
            return layer(*args, **kwargs)
        finally:
            layer.train(was)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def uninitialised(module: nn.Module) -> list[str]:
    """A line for each lazy layer that has no weights yet."""
    return [
        f"{name or 'the module'} ({type(part).__name__}): has no weights before it has seen data; "
        f"use {type(part).__name__.removeprefix('Lazy')} with its number of inputs, or call the "
        "module once on zeros before it is converted"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params()  # type: ignore[misc]
    ]
