"""Tracing a torch module, with the shapes of its values known while its code runs.

Shapes are not data: `x.dim()`, `x.ndim`, `x.shape[1]` and `x.size(1)` are plain numbers to the
module's own code, which may compare them, assert on them and branch on them. Only the number of
rows stays open, on whichever axis it is. Shapes come from the same operations on two and on three
rows of zeros; if that fails, no shape is known, and the conversion reports why.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn


class ShapedProxy(fx.Proxy):
    """A traced value that knows its shape except for the number of rows."""

    def _known(self) -> tuple[torch.Size, int] | None:
        """Its shape for two rows, and the axis of the rows."""
        tracer = self.tracer
        values = tracer.values.get(self.node, ()) if isinstance(tracer, ShapeTracer) else ()
        if not values or not all(isinstance(value, torch.Tensor) for value in values):
            return None
        two, three = (value.shape for value in values)
        axis = rows_axis(two, three)
        return None if axis is None else (two, axis)

    def _method(self, name: str, *args: Any) -> Any:
        return self.tracer.create_proxy("call_method", name, (self, *args), {})

    def _changed(self, function: Callable[..., Any], other: Any) -> Any:
        """x += y and the like, which fx would treat as x = x + y."""
        made = self.tracer.create_proxy("call_function", function, (self, other), {})
        made.node.meta["in_place"] = True
        return made

    def __iadd__(self, other: Any) -> Any:
        return self._changed(operator.add, other)

    def __isub__(self, other: Any) -> Any:
        return self._changed(operator.sub, other)

    def __imul__(self, other: Any) -> Any:
        return self._changed(operator.mul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._changed(operator.truediv, other)

    def dim(self) -> Any:
        known = self._known()
        return self._method("dim") if known is None else len(known[0])

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
        shape, rows = known
        if dim is None:
            return tuple(self.size(axis) for axis in range(len(shape)))
        return shape[dim] if dim % len(shape) != rows else self._method("size", dim % len(shape))


def rows_axis(two: torch.Size, three: torch.Size) -> int | None:
    """The axis of the rows, from the shapes for two and for three rows; None if there is not
    exactly one."""
    if len(two) != len(three):
        return None
    changed = [axis for axis, pair in enumerate(zip(two, three, strict=True)) if pair[0] != pair[1]]
    if len(changed) != 1 or (two[changed[0]], three[changed[0]]) != (2, 3):
        return None
    return changed[0]


class ShapeTracer(fx.Tracer):
    """fx's tracer for rows of `input_shape`. leaves: layers that are not traced inside."""

    def __init__(self, input_shape: tuple[int, ...], leaves: Iterable[type]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.values: dict[fx.Node, tuple[Any, ...]] = {}
        """By node: its results for two rows and for three."""
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
                self.values[node] = tuple(self._computed(node, rows) for rows in (2, 3))
        except Exception:  # noqa: S110  `_shapes` runs the same again and reports it
            pass
        finally:
            self._computing = computing
        return found

    def _computed(self, node: fx.Node, rows: int) -> Any:
        if node.op == "placeholder":
            return torch.zeros(rows, *self._input_shape)
        args: Any = fx.node.map_arg(node.args, lambda each: self.values[each][rows - 2])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda each: self.values[each][rows - 2])
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
            dtype = weight.dtype
            args = fx.node.map_aggregate(
                args, lambda each: each.to(dtype) if isinstance(each, torch.Tensor) else each
            )
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


_FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')
_HERE = Path(__file__).parent
_NOT_THEIRS = tuple(f"{folder}{os.sep}" for folder in (_HERE, Path(torch.__file__).parent))


def is_own_code(file: str) -> bool:
    """Whether a file belongs to the module: not to torch or to this folder."""
    return not file.startswith(_NOT_THEIRS)


def source_line(node: fx.Node) -> str:
    """The place of the call in the module's own code: " at FILE:LINE", or nothing if torch makes
    it."""
    for file, line in reversed(_FRAME.findall(node.stack_trace or "")):
        if is_own_code(file):
            return f" at {file}:{line}"
    return ""


def uninitialised(module: nn.Module) -> list[str]:
    """A line for each lazy layer without weights."""
    return [
        f"{name or 'the module'} ({type(part).__name__}): has no weights until it sees data; "
        f"use {type(part).__name__.removeprefix('Lazy')} with its number of inputs, or call the "
        "module once on zeros before the conversion"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params()  # type: ignore[misc]
    ]
