"""Layers and functions that are composed of existing operations of a graph.

Forward, backward, the checks of ranges and the twin in the clear follow from those operations. All
of these are exact except for the rounding of a public factor. This module covers what moves,
repeats and joins values, and parameters that forward uses directly; `activations` and `recurrent`
cover the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from torch import fx, nn

from mpc_train.networks.convert_rules import (
    Unsupported,
    argument,
    decimal_text,
    is_tensor,
)
from mpc_train.networks.graph import MAX_SETTING, Node, Setting


class Emission:
    """Collects the operations of one fx node; the last of them has the node's name."""

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
            raise Unsupported("the first argument must be a tensor of the network")
        return given

    def named(self, node: Any) -> str:
        if not isinstance(node, fx.Node) or node not in self._value_of:
            raise Unsupported("the arguments must be tensors of the network")
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
        """An argument of the layer or of the call."""
        if self.layer is not None:
            return getattr(self.layer, name, default)
        return argument(self.node, place, name, default)


Rule = Callable[[Emission], str]


def _axis(dim: Any, rank: int) -> int:
    """Without the axis of rows. rank: with it."""
    if not isinstance(dim, int) or not -rank <= dim < rank:
        raise Unsupported(f"dim = {dim!r}: a number between 1 and {rank - 1}")
    if dim % rank == 0:
        raise Unsupported("dim = 0 would mix rows")
    return dim % rank - 1


def _instance_norm(out: Emission) -> str:
    layer: Any = out.layer
    if layer.track_running_stats:
        raise Unsupported("track_running_stats = True: remove it, or use BatchNorm")
    if len(out.shape) != (3 if isinstance(layer, nn.InstanceNorm2d) else 2):
        raise Unsupported("rows must be [channels, *sizes]")
    prefix = str(out.node.target)
    tensors = {key: f"{prefix}.{key}" for key in ("weight", "bias")} if layer.affine else {}
    eps, groups = decimal_text(layer.eps), out.shape[0]
    return out.add("group_norm", (out.value(),), out.shape, tensors, groups=groups, eps=eps)


def _repeated(out: Emission, x: str, shape: list[int], axis: int, times: int) -> str:
    """Copies along an axis, one after the other."""
    if times == 1:
        return x
    shape[axis] *= times
    return out.add("cat", (x,) * times, tuple(shape), axis=axis)


def _upsample(out: Emission) -> str:
    """Nearest: each value `factor` times along each axis, by repeating a new axis of length 1 after
    it."""
    mode, given = out.setting(3, "mode", "nearest"), out.source().meta["shape"]
    if mode in ("linear", "bilinear"):
        return _interpolated(out, given)
    if mode != "nearest":
        raise Unsupported('mode must be "nearest", "linear" or "bilinear"')
    x, shape = out.value(), list(given)
    for axis in range(1, len(given)):
        factor, rest = divmod(out.shape[axis], given[axis])
        if rest or not factor:
            raise Unsupported("factors must be whole numbers")
        if factor > 1:
            wider = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
            x = out.add("reshape", (x,), tuple(wider))
            x = _repeated(out, x, wider, axis + 1, factor)
            shape[axis] *= factor
            x = out.add("reshape", (x,), tuple(shape))
    return x


def _interpolated(out: Emission, given: tuple[int, ...]) -> str:
    if out.setting(6, "antialias", False):
        raise Unsupported("antialias is not supported: use average pools")
    # If sizes are rounded down, torch keeps the factor, unless it is to be recomputed.
    asked = out.setting(2, "scale_factor")
    if out.setting(5, "recompute_scale_factor", False):
        asked = None
    axes = len(given) - 1
    factors = [Fraction(size, was) for size, was in zip(out.shape[1:], given[1:], strict=True)]
    if asked is not None:
        each = asked if isinstance(asked, tuple | list) else (asked,) * axes
        factors = [Fraction(decimal_text(float(factor))) for factor in each]
    ends = [(factor.numerator, factor.denominator) for factor in factors]
    if any(end > MAX_SETTING for pair in ends for end in pair):
        raise Unsupported("a scale_factor with many digits: give the size")
    aligned = bool(out.setting(4, "align_corners", False))
    numerators, denominators = zip(*ends, strict=True)
    return out.add(
        "resize",
        (out.value(),),
        out.shape,
        aligned=aligned,
        numerators=numerators,
        denominators=denominators,
    )


def _expand(out: Emission) -> str:
    given, wanted = out.source().meta["shape"], out.shape
    if len(given) != len(wanted):
        raise Unsupported("new axes would come before the rows: unsqueeze first")
    x, shape = out.value(), list(given)
    for axis, size in enumerate(wanted):
        x = _repeated(out, x, shape, axis, size // shape[axis])
    return x


def _stack(out: Emission) -> str:
    parts = argument(out.node, 0, "tensors")
    axis = _axis(argument(out.node, 1, "dim", 0), len(out.shape) + 1)
    one = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    names = [out.add("reshape", (out.named(part),), one) for part in parts]
    return out.add("cat", names, out.shape, axis=axis)


def _pieces(out: Emission) -> str:
    """chunk and split: no operation yet; the pieces become slices where they are used."""
    source = out.source()
    axis = _axis(argument(out.node, 2, "dim", 0), len(out.shape) + 1)
    total = source.meta["shape"][axis]
    sizes = argument(out.node, 1, "split_size", None)
    if sizes is None:
        sizes = out.node.kwargs.get("split_size_or_sections")
    starts = (
        [0, *accumulate(sizes)][:-1]
        if isinstance(sizes, list | tuple)
        else list(range(0, total, out.shape[axis]))
    )
    out.node.meta["pieces"] = axis, starts
    return out.value()


def _get(out: Emission) -> str:
    """x[:, i], x[:, a:b, j]; a piece of a chunk; the first result of an attention layer."""
    source: Any = out.node.args[0]
    index: Any = out.node.args[1]
    if not isinstance(source, fx.Node):
        raise Unsupported("only tensors can be indexed")
    x, shape = out.named(source), list(source.meta["shape"])
    if "pieces" in source.meta:
        axis, starts = source.meta["pieces"]
        if not isinstance(index, int):
            raise Unsupported("select pieces by their number")
        start = starts[index]
        stop = start + out.shape[axis]
        return out.add("slice", (x,), out.shape, axis=axis, start=start, stop=stop)
    if source.meta.get("several"):
        if index != 0:
            raise Unsupported("only the first result of an attention layer is available")
        return x
    steps: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if any(step is None or not isinstance(step, int | slice | type(...)) for step in steps):
        raise Unsupported("use only numbers and slices, like x[:, 2:5, 0]")
    if ... in steps:
        place = steps.index(...)
        fill = len(shape) + 2 - len(steps)
        steps[place : place + 1] = [slice(None)] * fill
    if steps[0] != slice(None):
        raise Unsupported("rows stay together: the first index must be a colon, as in x[:, 2:5]")
    for axis, step in enumerate(steps[1:]):
        size = shape[axis]
        if isinstance(step, int):
            step = slice(step % size, step % size + 1)
        start, stop, stride = step.indices(size)
        if stride != 1:
            raise Unsupported("slices must not have steps")
        if (start, stop) != (0, size):
            shape[axis] = stop - start
            x = out.add("slice", (x,), tuple(shape), axis=axis, start=start, stop=stop)
    return x if tuple(shape) == out.shape else out.add("reshape", (x,), out.shape)


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_MOVED = {
    *("reshape", "view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous"),
    *("long", "int", "to", "type", operator.getitem, torch.reshape, torch.flatten, torch.squeeze),
    *(torch.unsqueeze, torch.permute, torch.transpose),
}


def _whole_numbers(out: Emission) -> str:
    """long(), int(): the same value, if an Embedding looks it up. PyTorch truncates, which does not
    change a column of whole numbers; anywhere else the network would be a different one."""
    owner = out.node.graph.owning_module
    found = [*out.node.users]
    for user in found:
        if user.op == "call_module" and owner is not None:
            if isinstance(owner.get_submodule(str(user.target)), nn.Embedding):
                continue
        elif user.target in _MOVED:
            found += user.users
            continue
        raise Unsupported("conversion to whole numbers is only for the input of an Embedding")
    return out.value()


def _to(out: Emission) -> str:
    """to(dtype), to(device), type(dtype)."""
    given = [*out.node.args[1:], *out.node.kwargs.values()]
    if any(one == dtype for one in given for dtype in _WHOLE):
        return _whole_numbers(out)
    if out.node.target == "type" and any(isinstance(one, str) for one in given):
        raise Unsupported("write a dtype, like torch.long")
    return out.value()


def is_weight(value: Any) -> bool:
    """Whether it is a parameter or buffer that forward uses directly."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _with_weight(op: str) -> Rule:
    """x ∘ parameter or parameter ∘ x; the parameter is broadcast to x, not x to the parameter."""

    def read(out: Emission) -> str:
        left, right = out.node.args[:2]
        weight, value = (left, right) if is_weight(left) else (right, left)
        if out.node.kwargs or not isinstance(value, fx.Node) or not is_tensor(value):
            raise Unsupported("the arguments must be a parameter and a tensor of the network")
        x, shape = out.named(value), out.shape
        if value.meta["shape"] != shape:
            raise Unsupported("the parameter is larger than the tensor: expand the tensor first")
        tensors = {"weight": str(weight.target)}  # type: ignore[union-attr]
        if op == "mul":
            return out.add("mul_weight", (x,), shape, tensors, behind=0)
        if op == "sub":
            x = out.add("scale", (x,), shape, factor="-1")
        x = out.add("add_weight", (x,), shape, tensors, behind=0)
        minus = op == "sub" and weight is right
        return out.add("scale", (x,), shape, factor="-1") if minus else x

    return read


WITH_WEIGHT: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add"), _with_weight("add")),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _with_weight("sub")),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _with_weight("mul")),
}
"""The operations in which a parameter may be used outside a layer."""
MOVES: dict[Any, Rule] = {
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Upsample: _upsample,
    nn.UpsamplingBilinear2d: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    functional.interpolate: _upsample,
    operator.getitem: _get,
    **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), _pieces),
    torch.stack: _stack,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("long", "int"), _whole_numbers),
    **dict.fromkeys(("to", "type"), _to),
}
"""Rules by the layer's type, the function, or the method's name."""
