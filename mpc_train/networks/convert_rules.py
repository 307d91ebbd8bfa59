"""The rule for each torch layer and function, and what to use instead of unsupported ones.

A rule reads the settings of one layer or call and raises `Unsupported` for unsupported ones. Real
numbers become text: the decimals that Python prints.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import isfinite, prod
from typing import Any

import torch
import torch.nn.functional as functional
from torch import fx, nn

from mpc_train.networks.graph import Setting

Settings = Mapping[str, Setting]


class Unsupported(Exception):
    """A layer or call that, with its settings, has no operation over shares."""


def is_tensor(node: fx.Node) -> bool:
    """Whether the node gives a tensor, and not a size."""
    return "shape" in node.meta


INSTEAD = {
    "RNNCell": "GRU, LSTM or RNN, which run over the sequence",
    "GRUCell": "GRU, which runs over the sequence",
    "LSTMCell": "LSTM, which runs over the sequence",
    "Conv3d": "Conv2d on a reshaped input",
    "ConvTranspose": "Conv2d after Upsample by reshape, or a Linear layer",
    "AdaptiveMaxPool": "MaxPool2d with fixed sizes, or AdaptiveAvgPool2d",
    "LPPool": "AvgPool2d",
    "FractionalMaxPool": "MaxPool2d",
    "Transformer": "MultiheadAttention, LayerNorm and Linear, combined",
    "RReLU": "LeakyReLU",
    "Mish": "SiLU",
    "LogSigmoid": "nothing: the cross-entropy loss takes the logits",
    "logsigmoid": "nothing: the cross-entropy loss takes the logits",
    "EmbeddingBag": "Embedding and a mean",
    "Bilinear": "Linear on a concatenation",
    "LocalResponseNorm": "GroupNorm or BatchNorm2d",
    "Dropout2d": "Dropout",
    "truediv": "multiplication by a constant, or a norm layer",
    "exp": "Softplus, Sigmoid or Softmax",
    "einsum": "matmul",
    "repeat": "torch.cat of copies",
    "max": "MaxPool2d",
    "amax": "MaxPool2d",
}


def decimal_text(value: float) -> str:
    """A Python number as the decimal that Python prints."""
    if not isfinite(value):
        raise Unsupported(f"{value} is not a finite number")
    if value and not 1e-30 < abs(value) < 1e30:
        raise Unsupported(f"{value}: numbers must lie between 1e-30 and 1e30")
    return str(Fraction(str(value)))


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),) * axes


def _conv(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if layer.padding_mode != "zeros":
        raise Unsupported(f"padding_mode = {layer.padding_mode!r}: use zeros")
    axes = len(layer.kernel_size)
    padding = layer.padding
    if padding == "valid":
        padding = 0
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(total % 2 for total in reach):
            raise Unsupported("padding = 'same' with an even kernel: pad by numbers")
        padding = tuple(total // 2 for total in reach)
    return "conv", {
        "kernel": _each(layer.kernel_size, axes),
        "stride": _each(layer.stride, axes),
        "padding": _each(padding, axes),
        "dilation": _each(layer.dilation, axes),
        "groups": layer.groups,
    }


def _pool_window(axes: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Settings:
    return {
        "kernel": _each(kernel, axes),
        "stride": _each(kernel if stride is None else stride, axes),
        "padding": _each(padding, axes),
        "dilation": _each(dilation, axes),
    }


def _max_pool(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if layer.return_indices:
        raise Unsupported("return_indices: which element wins stays secret")
    axes = len(node.meta["shape"]) - 1
    window = _pool_window(axes, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return "max_pool", {**window, "round_up": bool(layer.ceil_mode)}


def _average_pool(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    axes = len(node.meta["shape"]) - 1
    window = _pool_window(axes, layer.kernel_size, layer.stride, layer.padding, 1)
    return "average_pool", _divided(
        window,
        bool(layer.ceil_mode),
        layer.count_include_pad,
        getattr(layer, "divisor_override", 0),
    )


def _divided(window: Settings, round_up: bool, with_padding: bool, override: Any) -> Settings:
    padded = any(window["padding"])  # type: ignore[arg-type]
    if round_up and padded and with_padding and not override:
        raise Unsupported("ceil_mode with padding: set count_include_pad = False")
    own = round_up or (padded and not with_padding)
    divisor = int(override or 0) or (0 if own else prod(window["kernel"]))  # type: ignore[arg-type]
    return {**window, "round_up": round_up, "divisor": divisor}


def _adaptive(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    return "adaptive_average_pool", {"outputs": tuple(node.meta["shape"][1:])}


def _batch_norm(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if layer.momentum is None:
        raise Unsupported("momentum = None: use a number")
    return "batch_norm", {"eps": decimal_text(layer.eps), "momentum": decimal_text(layer.momentum)}


def _activation(op: str, **settings: Setting) -> Callable[..., tuple[str, Settings]]:
    return lambda layer, node: (op, settings)


def _softmax(op: str) -> Callable[..., tuple[str, Settings]]:
    def read(layer: Any, node: fx.Node) -> tuple[str, Settings]:
        _last_axis(layer.dim, node)
        return op, {}

    return read


def _last_axis(dim: Any, node: fx.Node) -> None:
    if dim not in (-1, len(node.meta["shape"])):
        raise Unsupported("only along the last axis: permute the axes first and set dim = -1")


def _gelu(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if layer.approximate != "none":
        raise Unsupported('use approximate = "none": the spline is nearer than its tanh form')
    return "smooth", {"table": "GELU"}


def _softplus(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    _plain_softplus(layer.beta, layer.threshold)
    return "smooth", {"table": "SMOOTH_RELU"}


def _plain_softplus(beta: Any, threshold: Any) -> None:
    if beta != 1 or threshold != 20:
        raise Unsupported("beta must be 1 and threshold 20")


def _embedding(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if layer.padding_idx is not None or layer.max_norm is not None:
        raise Unsupported("padding_idx and max_norm are not supported: remove them")
    return "embedding", {}


def _attention(layer: Any, node: fx.Node) -> tuple[str, Settings]:
    if not layer.batch_first:
        raise Unsupported("use batch_first = True")
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        raise Unsupported("kdim, vdim, add_bias_kv and add_zero_attn are not supported")
    if layer.dropout:
        raise Unsupported("use dropout = 0 and a Dropout layer after it")
    given = set(node.kwargs) - {"need_weights", "query", "key", "value"}
    if given or len(node.args) > 3:
        raise Unsupported(f"masks are not supported ({', '.join(sorted(given)) or 'positional'})")
    return "attention", {"heads": layer.num_heads}


MODULES: dict[type, Callable[[Any, fx.Node], tuple[str, Settings]]] = {
    nn.Linear: _activation("linear"),
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _adaptive,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: lambda layer, node: (
        "layer_norm",
        {"axes": len(layer.normalized_shape), "eps": decimal_text(layer.eps)},
    ),
    nn.GroupNorm: lambda layer, node: (
        "group_norm",
        {"groups": layer.num_groups, "eps": decimal_text(layer.eps)},
    ),
    nn.Dropout: lambda layer, node: ("dropout", {"p": decimal_text(layer.p)}),
    nn.Embedding: _embedding,
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("clamp", low="0", high="6"),
    nn.Hardtanh: lambda layer, node: (
        "clamp",
        {"low": decimal_text(layer.min_val), "high": decimal_text(layer.max_val)},
    ),
    nn.LeakyReLU: lambda layer, node: ("leaky_relu", {"slope": decimal_text(layer.negative_slope)}),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.GELU: _gelu,
    nn.SiLU: _activation("smooth", table="SILU"),
    nn.Softplus: _softplus,
    nn.Softmax: _softmax("softmax"),
    nn.LogSoftmax: _softmax("log_softmax"),
    nn.Flatten: _activation("reshape"),
    nn.Unflatten: _activation("reshape"),
    nn.Identity: _activation("same"),
    nn.MultiheadAttention: _attention,
}


Function = tuple[str, Settings, list[fx.Node]]


def _values(node: fx.Node) -> list[fx.Node]:
    return [value for value in node.args if isinstance(value, fx.Node) and is_tensor(value)]


def _as(op: str, **settings: Setting) -> Callable[[fx.Node], Function]:
    return lambda node: (op, settings, _values(node)[:1])


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if len(node.args) > place else default


def _arithmetic(op: str) -> Callable[[fx.Node], Function]:
    """x ∘ y for two tensors, or for a tensor and a public number."""

    def read(node: fx.Node) -> Function:
        left, right = node.args[:2]
        if "alpha" in node.kwargs:
            raise Unsupported("alpha: multiply first")
        values = _values(node)
        if len(values) == 2:
            return op, {}, values
        number = right if isinstance(left, fx.Node) else left
        if len(values) != 1 or not isinstance(number, int | float):
            raise Unsupported("the arguments must be tensors of the network and plain numbers")
        if op == "mul":
            return "scale", {"factor": decimal_text(number)}, values
        if op == "add":
            return "shift", {"summand": decimal_text(number)}, values
        if isinstance(left, fx.Node):
            return "shift", {"summand": decimal_text(-number)}, values
        raise Unsupported("a number minus a tensor: write -x + number")

    return read


def _divide(node: fx.Node) -> Function:
    left, right = node.args[:2]
    if node.kwargs.get("rounding_mode"):
        raise Unsupported("rounding_mode is not supported")
    if isinstance(left, fx.Node) and isinstance(right, int | float) and right:
        return "scale", {"factor": str(1 / Fraction(decimal_text(right)))}, [left]
    raise Unsupported("division by a tensor: multiply by a constant, or use a norm layer")


def _cat(node: fx.Node) -> Function:
    parts = list(argument(node, 0, "tensors"))
    dim = int(argument(node, 1, "dim", 0)) % (len(node.meta["shape"]) + 1)
    if dim == 0:
        raise Unsupported("dim = 0 would mix rows")
    return "cat", {"axis": dim - 1}, parts


def permuted_axes(node: fx.Node) -> list[int]:
    """The order that `permute` gives the axes, rows included."""
    axes: Any = argument(node, 1, "dims") if "dims" in node.kwargs else node.args[1:]
    if len(axes) == 1 and isinstance(axes[0], tuple | list):
        axes = axes[0]
    rank = len(node.meta["shape"]) + 1
    return [int(axis) % rank for axis in axes]


def transposed_axes(node: fx.Node) -> list[int]:
    """The order that `transpose` gives the axes, rows included."""
    order = list(range(len(node.meta["shape"]) + 1))
    first, second = (int(argument(node, i + 1, f"dim{i}")) % len(order) for i in (0, 1))
    order[first], order[second] = order[second], order[first]
    return order


def _reordered(order_of: Callable[[fx.Node], list[int]]) -> Callable[[fx.Node], Function]:
    def read(node: fx.Node) -> Function:
        order = order_of(node)
        if order[0] != 0:
            raise Unsupported("rows stay first")
        return "permute", {"axes": tuple(axis - 1 for axis in order[1:])}, _values(node)[:1]

    return read


def _reduce(op: str) -> Callable[[fx.Node], Function]:
    def read(node: fx.Node) -> Function:
        (source,) = _values(node)
        rank = len(source.meta["shape"]) + 1
        dim = argument(node, 1, "dim")
        if dim is None:
            raise Unsupported("over all axes would mix rows: name dim")
        axes = [int(axis) % rank for axis in (dim if isinstance(dim, tuple | list) else (dim,))]
        if 0 in axes:
            raise Unsupported("dim = 0 would mix rows")
        keep = bool(argument(node, 2, "keepdim", False))
        dtype = node.kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
            raise Unsupported("dtype: values would be truncated; remove it")
        return op, {"axes": tuple(axis - 1 for axis in axes), "keep": keep}, [source]

    return read


def _matmul(node: fx.Node) -> Function:
    values = _values(node)
    if len(values) != 2:
        raise Unsupported("the arguments must be two tensors of the network")
    left, right = (value.meta["shape"] for value in values)
    if len(left) < 2 or len(left) != len(right) or left[:-2] != right[:-2]:
        raise Unsupported(
            "both sides must have the same leading axes, like [rows, m, k] @ [rows, k, n]"
        )
    return "matmul", {}, values


def _softmax_of(op: str) -> Callable[[fx.Node], Function]:
    def read(node: fx.Node) -> Function:
        _last_axis(argument(node, 1, "dim"), node)
        return op, {}, _values(node)[:1]

    return read


def _gelu_of(node: fx.Node) -> Function:
    if argument(node, 1, "approximate", "none") != "none":
        raise Unsupported('use approximate = "none"')
    return "smooth", {"table": "GELU"}, _values(node)[:1]


def _softplus_of(node: fx.Node) -> Function:
    _plain_softplus(argument(node, 1, "beta", 1), argument(node, 2, "threshold", 20))
    return "smooth", {"table": "SMOOTH_RELU"}, _values(node)[:1]


def _leaky_of(node: fx.Node) -> Function:
    slope = decimal_text(float(argument(node, 1, "negative_slope", 0.01)))
    return "leaky_relu", {"slope": slope}, _values(node)[:1]


def _max_pool_of(node: fx.Node) -> Function:
    keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    kernel, stride, padding, dilation, round_up = (
        argument(node, place, key, default)
        for place, (key, default) in enumerate(zip(keys, (None, None, 0, 1, False), strict=True), 1)
    )
    axes = len(node.meta["shape"]) - 1
    window = _pool_window(axes, kernel, stride or None, padding, dilation)
    return "max_pool", {**window, "round_up": bool(round_up)}, _values(node)[:1]


def _average_pool_of(node: fx.Node) -> Function:
    keys = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    kernel, stride, padding, round_up, with_padding = (
        argument(node, place, key, default)
        for place, (key, default) in enumerate(
            zip(keys, (None, None, 0, False, True), strict=True), 1
        )
    )
    axes = len(node.meta["shape"]) - 1
    window = _pool_window(axes, kernel, stride or None, padding, 1)
    override = argument(node, 6, "divisor_override", 0)
    return (
        "average_pool",
        _divided(window, bool(round_up), with_padding, override),
        _values(node)[:1],
    )


def _adaptive_of(node: fx.Node) -> Function:
    return "adaptive_average_pool", {"outputs": tuple(node.meta["shape"][1:])}, _values(node)[:1]


def _dropout_of(node: fx.Node) -> Function:
    p = decimal_text(float(argument(node, 1, "p", 0.5)))
    if argument(node, 2, "training", True) is False:
        return "same", {}, _values(node)[:1]
    return "dropout", {"p": p}, _values(node)[:1]


def _negate(node: fx.Node) -> Function:
    return "scale", {"factor": "-1"}, _values(node)[:1]


_SAME: Callable[[fx.Node], Function] = _as("same")
_SHARED: dict[str, Callable[[fx.Node], Function]] = {
    "relu": _as("relu"),
    "sigmoid": _as("sigmoid"),
    "tanh": _as("tanh"),
    "flatten": _as("reshape"),
    "reshape": _as("reshape"),
    "unsqueeze": _as("reshape"),
    "squeeze": _as("reshape"),
    "permute": _reordered(permuted_axes),
    "transpose": _reordered(transposed_axes),
    "mean": _reduce("mean"),
    "sum": _reduce("sum"),
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": _arithmetic("mul"),
    "div": _divide,
    "neg": _negate,
    "matmul": _matmul,
    "bmm": _matmul,
    "softmax": _softmax_of("softmax"),
    "log_softmax": _softmax_of("log_softmax"),
}
METHODS: dict[str, Callable[[fx.Node], Function]] = {
    **_SHARED,
    "view": _as("reshape"),
    "contiguous": _SAME,
    "float": _SAME,
    "double": _SAME,
    "clone": _SAME,
}
FUNCTIONS: dict[Any, Callable[[fx.Node], Function]] = {
    **{getattr(torch, name): read for name, read in _SHARED.items()},
    operator.add: _arithmetic("add"),
    operator.iadd: _arithmetic("add"),
    operator.sub: _arithmetic("sub"),
    operator.mul: _arithmetic("mul"),
    operator.truediv: _divide,
    operator.neg: _negate,
    operator.matmul: _matmul,
    torch.cat: _cat,
    torch.concat: _cat,
    functional.relu: _as("relu"),
    functional.relu6: _as("clamp", low="0", high="6"),
    functional.leaky_relu: _leaky_of,
    functional.gelu: _gelu_of,
    functional.silu: _as("smooth", table="SILU"),
    functional.softplus: _softplus_of,
    functional.sigmoid: _as("sigmoid"),
    functional.tanh: _as("tanh"),
    functional.softmax: _softmax_of("softmax"),
    functional.log_softmax: _softmax_of("log_softmax"),
    functional.max_pool1d: _max_pool_of,
    functional.max_pool2d: _max_pool_of,
    torch.max_pool1d: _max_pool_of,
    torch.max_pool2d: _max_pool_of,
    functional.avg_pool1d: _average_pool_of,
    functional.avg_pool2d: _average_pool_of,
    functional.adaptive_avg_pool1d: _adaptive_of,
    functional.adaptive_avg_pool2d: _adaptive_of,
    functional.dropout: _dropout_of,
}
SHAPE_ONLY = {"size", "dim", getattr, operator.mul, operator.floordiv, len}
"""The functions that may compute with sizes, the numbers that tracing leaves in shapes."""
