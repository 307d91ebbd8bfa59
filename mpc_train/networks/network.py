"""A graph over shares: every operation of `graph` on `MaskedTensor`.

Feature maps are [channels, rows, *sizes], in which convolutions and pools are contiguous;
everything else is [rows, ...]. Values change between the two as operations require, without
communication. The first weights are public; from the first update on they are masked.

Training and evaluation differ only in batch norm and dropout: `Network.training` says which
applies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, prod

import numpy as np

import protocols.crypten_tensor.layers.shape  # noqa: F401  registers its functions
from mpc_train.networks.graph import Graph, Node
from protocols.arrays import Words
from protocols.crypten_tensor.layers import (  # noqa: F401  register their functions
    activation,
    convolution,
    normalisation,
    pooling,
    recurrent,
    resize,
)
from protocols.crypten_tensor.layers.resize_plan import Resizing
from protocols.crypten_tensor.layers.window import Window
from protocols.crypten_tensor.tensor import MaskedTensor, runtime
from protocols.shares.masked import public


@dataclass(slots=True)
class Value:
    """A tensor between two nodes. maps: channels come before rows."""

    tensor: MaskedTensor
    maps: bool = False

    def as_rows(self) -> MaskedTensor:
        return _swapped(self.tensor) if self.maps else self.tensor

    def as_maps(self) -> MaskedTensor:
        return self.tensor if self.maps else _swapped(self.tensor)


def _swapped(x: MaskedTensor) -> MaskedTensor:
    return x.transpose(0, 1)


class Network:
    """A graph with its tensors. parameters: the trained tensors, by name.

    mask_seed: the seed of public dropout masks; None: masks that nobody knows.
    """

    def __init__(
        self, graph: Graph, initial: Mapping[str, Words], mask_seed: int | None = None
    ) -> None:
        self.graph = graph
        self.training = True
        self.step = 0
        self.keeps_outputs = False
        """Whether the next pass keeps in `outputs` all values that may have grown."""
        self.outputs: list[MaskedTensor] = []
        self._mask_seed = mask_seed
        self._uses = graph.uses()
        role = runtime().role
        self.tensors: dict[str, MaskedTensor] = {}
        for name, tensor in graph.tensors.items():
            if tensor.kind != "counter":
                value = public(role, initial[name])
                self.tensors[name] = MaskedTensor(value, requires_grad=tensor.kind == "parameter")

    @property
    def parameters(self) -> dict[str, MaskedTensor]:
        return {name: self.tensors[name] for name, _ in self.graph.named("parameter")}

    @property
    def secret(self) -> dict[str, MaskedTensor]:
        """The tensors that training changes: parameters and running statistics."""
        return {name: self.tensors[name] for name, _ in self.graph.named("parameter", "statistic")}

    def evaluated(self, x: MaskedTensor) -> MaskedTensor:
        """The outputs for x in evaluation mode: running statistics, nothing dropped.

        A node's exchanges end before the next node begins, and a value is freed when no node needs
        it any more: memory is that of the largest node, not of all together.
        """
        return self._applied(x, keeps_outputs=False)

    def looked_into(self, x: MaskedTensor) -> tuple[MaskedTensor, list[MaskedTensor]]:
        """`evaluated`, and all values that may have grown in it."""
        self.outputs = []
        found = self._applied(x, keeps_outputs=True)
        return found, self.outputs

    def _applied(self, x: MaskedTensor, keeps_outputs: bool) -> MaskedTensor:
        was = self.training, self.keeps_outputs
        self.training, self.keeps_outputs = False, keeps_outputs
        try:
            return self(x)
        finally:
            self.training, self.keeps_outputs = was

    def __call__(self, x: MaskedTensor) -> MaskedTensor:
        """x: [rows, features or *input_shape]; returns [rows, *output_shape], whose words alone are
        the numbers: losses, metrics and answers read nothing else."""
        found = self.passed(x)
        plain = found.factor == 1 and found.bits >= found.fraction_bits
        return found if plain else found.in_words()

    def passed(self, x: MaskedTensor) -> MaskedTensor:
        """What the last operation gives: a public factor may stand beside its words."""
        rows = x.shape[0]
        shaped = x if len(self.graph.input_shape) == 1 else x.reshape(rows, *self.graph.input_shape)
        values, left = {self.graph.input_name: Value(shaped)}, dict(self._uses)
        self.step += self.training
        if self.training:
            self.outputs = []
        for node in self.graph.nodes:
            inputs = [values[name] for name in node.inputs]
            value = OPERATIONS[node.op](self, node, inputs)
            if self._uses.get(node.name, 0) > 1:
                value.tensor.masked()  # once, for all its users
            values[node.name] = value
            if self.keeps_outputs and node.op in GROWING:
                self.outputs.append(value.tensor)
            if self.training:
                continue
            runtime().role.finish()
            for name in node.inputs:
                left[name] -= 1
                if not left[name]:
                    values.pop(name)
        return values[self.graph.output].as_rows()

    def tensor(self, node: Node, name: str) -> MaskedTensor | None:
        return self.tensors[node.tensors[name]] if name in node.tensors else None

    def needed(self, node: Node, name: str) -> MaskedTensor:
        return self.tensors[node.tensors[name]]

    def public_mask(self, node: Node, rows: int) -> Words | None:
        """The public mask of a dropout in this step, int64[rows, *shape] of 0 and 1; None: a secret
        mask."""
        if self._mask_seed is None:
            return None
        return dropout_mask(self._mask_seed, self.step, node, rows)


def dropout_mask(seed: int, step: int, node: Node, rows: int) -> Words:
    """Which elements a dropout keeps, from a public seed; the same at every node."""
    shape = (rows, *node.shape)
    label = f"mpc-train/v1/dropout/{seed}/{step}/{node.name}".encode()
    raw = np.frombuffer(hashlib.shake_256(label).digest(4 * prod(shape)), "<u4")
    kept = (raw >= round(node.real("p") * (1 << 32))).astype(np.int64)
    return kept.reshape(shape)


def window(node: Node) -> Window:
    round_up = node.flag("round_up") if "round_up" in node.settings else False
    kernel, stride, padding, dilation = (
        node.sizes(key) for key in ("kernel", "stride", "padding", "dilation")
    )
    return Window(kernel, stride, padding, dilation, round_up)


GROWING = {
    *("linear", "conv", "batch_norm", "layer_norm", "group_norm", "attention", "dropout"),
    *("leaky_relu", "add", "sub", "mul", "matmul", "scale", "shift", "sum"),
    *("add_weight", "mul_weight", "recurrent"),
}
"""Operations whose results may be larger than their inputs."""


Operation = Callable[[Network, Node, list[Value]], Value]


def _elementwise(function: Callable[[Node, MaskedTensor], MaskedTensor]) -> Operation:
    """An operation on each element, independent of the order of the axes."""
    return lambda _, node, values: Value(function(node, values[0].tensor), values[0].maps)


def _pairwise(name: str) -> Operation:
    def run(_: Network, node: Node, values: list[Value]) -> Value:
        left, right = values
        maps = left.maps and right.maps and len(left.tensor.shape) == len(right.tensor.shape)
        if maps:
            return Value(getattr(left.tensor, name)(right.tensor), True)
        return Value(getattr(left.as_rows(), name)(right.as_rows()))

    return run


def _on_rows(function: Callable[[Node, MaskedTensor], MaskedTensor]) -> Operation:
    return lambda _, node, values: Value(function(node, values[0].as_rows()))


def _linear(net: Network, node: Node, values: list[Value]) -> Value:
    x = values[0].as_rows()
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y = flat.linear(net.needed(node, "weight"), *_present(net.tensor(node, "bias")))
    return Value(y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[-1]))


def _present(tensor: MaskedTensor | None) -> tuple[MaskedTensor, ...]:
    return () if tensor is None else (tensor,)


def _conv(net: Network, node: Node, values: list[Value]) -> Value:
    weight, bias = net.needed(node, "weight"), net.tensor(node, "bias")
    groups = node.count("groups")
    return Value(values[0].as_maps().convolve(weight, bias, window(node), groups), True)


def _average_pool(net: Network, node: Node, values: list[Value]) -> Value:
    divisor = node.count("divisor") or None
    return Value(values[0].as_maps().average_pool(window(node), divisor), True)


def _batch_norm(net: Network, node: Node, values: list[Value]) -> Value:
    x = values[0].as_maps()
    channels = x.shape[0]
    flat = x.reshape(channels, -1)
    eps = node.real("eps")
    mean, spread = (net.tensor(node, name) for name in ("running_mean", "running_var"))
    if mean is None or spread is None:
        y = flat.standardize(eps)
    elif net.training:
        y, batch_mean, batch_spread = flat.standardize(eps, True)
        count, momentum = flat.shape[1], node.real("momentum")
        _move(mean, batch_mean, momentum, Fraction(1))
        _move(spread, batch_spread, momentum, Fraction(count, count - 1))
    else:
        y = flat.standardize_by(mean.reshape(channels, 1), spread.reshape(channels, 1), eps)
    y = _affine(net, node, y, (channels, 1))
    return Value(y.reshape(*x.shape), True)


def _move(kept: MaskedTensor, found: MaskedTensor, momentum: Fraction, factor: Fraction) -> None:
    """kept ← (1 − momentum) · kept + momentum · factor · found."""
    moved = kept.mul(1 - momentum).add(found.detach().mul(momentum * factor))
    value = moved.plain_factor().masked()
    kept.copy_(kept.with_value(value))


def _affine(net: Network, node: Node, y: MaskedTensor, shape: tuple[int, ...]) -> MaskedTensor:
    weight, bias = net.tensor(node, "weight"), net.tensor(node, "bias")
    if weight is not None:
        y = y.mul(weight.reshape(*shape))
    return y if bias is None else y.add(bias.reshape(*shape))


def _layer_norm(net: Network, node: Node, values: list[Value]) -> Value:
    x = values[0].as_rows()
    axes = tuple(x.shape[-node.count("axes") :])
    flat = x.reshape(-1, prod(axes))
    y = flat.standardize(node.real("eps"))
    return Value(_affine(net, node, y, (1, prod(axes))).reshape(*x.shape))


def _group_norm(net: Network, node: Node, values: list[Value]) -> Value:
    x = values[0].as_rows()
    flat = x.reshape(x.shape[0] * node.count("groups"), -1)
    y = flat.standardize(node.real("eps")).reshape(*x.shape)
    return Value(_affine(net, node, y, (x.shape[1], *[1] * (x.dim() - 2))))


def _dropout(net: Network, node: Node, values: list[Value]) -> Value:
    kept = 1 - node.real("p")
    if not net.training or kept == 1:
        return values[0]
    x, maps = values[0].tensor, values[0].maps
    mask = net.public_mask(node, x.shape[1] if maps else x.shape[0])
    if mask is None:
        return Value(x.drop_secretly(kept), maps)
    return Value(x.drop(mask.swapaxes(0, 1) if maps else mask, kept), maps)


def _embedding(net: Network, node: Node, values: list[Value]) -> Value:
    return Value(values[0].as_rows().embed(net.needed(node, "weight")))


def _reshape(node: Node, x: MaskedTensor) -> MaskedTensor:
    return x.reshape(x.shape[0], *node.shape)


def _permute(node: Node, x: MaskedTensor) -> MaskedTensor:
    return x.permute((0, *(axis + 1 for axis in node.sizes("axes"))))


def _cat(net: Network, node: Node, values: list[Value]) -> Value:
    axis = node.count("axis") + 1
    if all(value.maps for value in values):
        first, *others = (value.tensor for value in values)
        return Value(first.join(others, 0 if axis == 1 else axis), True)
    first, *others = (value.as_rows() for value in values)
    return Value(first.join(others, axis))


def _slice(node: Node, x: MaskedTensor) -> MaskedTensor:
    where = slice(node.count("start"), node.count("stop"))
    return x.part((slice(None),) * (node.count("axis") + 1) + (where,))


def _reduced(name: str) -> Callable[[Node, MaskedTensor], MaskedTensor]:
    def run(node: Node, x: MaskedTensor) -> MaskedTensor:
        axes = [axis + 1 for axis in node.sizes("axes")]
        return getattr(x, name)(axes, node.flag("keep"))

    return run


def _matmul(net: Network, node: Node, values: list[Value]) -> Value:
    x, y = (value.as_rows() for value in values)
    return Value(_batched(x, y))


def _batched(x: MaskedTensor, y: MaskedTensor) -> MaskedTensor:
    """x[..., m, k] @ y[..., k, n] for equal leading axes."""
    lead = tuple(x.shape[:-2])
    flat = x.reshape(prod(lead), *x.shape[-2:]).batched_matmul(y.reshape(prod(lead), *y.shape[-2:]))
    return flat.reshape(*lead, *flat.shape[-2:])


def _attention(net: Network, node: Node, values: list[Value]) -> Value:
    """Multi-head attention: [rows, length, width] of queries, keys and values.

    softmax(q kᵀ / sqrt(width of a head)) v, heads side by side, then the output's projection.
    """
    heads = node.count("heads")
    weight = net.needed(node, "in_proj_weight")
    bias = net.tensor(node, "in_proj_bias")
    width = weight.shape[1]
    split = []
    for index, value in enumerate(values):
        where = (slice(index * width, (index + 1) * width),)
        x = value.as_rows()
        rows, length, _ = x.shape
        projected = x.reshape(-1, width).linear(
            weight.part(where), *_present(None if bias is None else bias.part(where))
        )
        by_head = projected.reshape(rows, length, heads, width // heads).permute((0, 2, 1, 3))
        split.append(by_head.reshape(rows * heads, length, width // heads))
    q, k, v = split
    scores = q.scaled(root_of(Fraction(heads, width))).batched_matmul(k.transpose(1, 2))
    mixed = scores.soft_max().batched_matmul(v)
    length = q.shape[1]
    joined = mixed.reshape(-1, heads, length, width // heads).permute((0, 2, 1, 3))
    y = joined.reshape(-1, width).linear(
        net.needed(node, "out_proj.weight"), *_present(net.tensor(node, "out_proj.bias"))
    )
    return Value(y.reshape(-1, length, width))


def _recurrent(net: Network, node: Node, values: list[Value]) -> Value:
    """[rows, steps, what the inputs add to the gates] to the states [rows, steps, hidden]."""
    weight, bias = net.needed(node, "weight"), net.tensor(node, "bias")
    x, cell = values[0].as_rows(), node.settings["cell"]
    return Value(x.recurrent(weight, bias, cell, node.flag("reverse")))


def _resize(node: Node, x: MaskedTensor) -> MaskedTensor:
    return x.resize(resizing(node, tuple(x.shape[-len(node.sizes("numerators")) :])))


def resizing(node: Node, sizes: tuple[int, ...]) -> Resizing:
    """sizes: of the axes that change, before."""
    factors = map(Fraction, node.sizes("numerators"), node.sizes("denominators"))
    return Resizing(sizes, node.shape[-len(sizes) :], tuple(factors), node.flag("aligned"))


def root_of(value: Fraction) -> Fraction:
    """sqrt of a public fraction, rounded to 2^-24 by integers alone."""
    return Fraction(isqrt((value.numerator << 48) // value.denominator), 1 << 24)


def _weighted(function: Callable[[MaskedTensor, MaskedTensor], MaskedTensor]) -> Operation:
    """x ∘ weight, spread over x; `behind`: axes of one after the weight's own."""

    def run(net: Network, node: Node, values: list[Value]) -> Value:
        weight = net.needed(node, "weight")
        spread = weight.reshape(*weight.shape, *[1] * node.count("behind"))
        return Value(function(values[0].as_rows(), spread))

    return run


def _plain(name: str, *keys: str) -> Operation:
    def run(node: Node, x: MaskedTensor) -> MaskedTensor:
        return getattr(x, name)(*(node.real(key) for key in keys))

    return _elementwise(run)


OPERATIONS: dict[str, Operation] = {
    "linear": _linear,
    "conv": _conv,
    "max_pool": lambda net, node, values: Value(values[0].as_maps().max_pool(window(node)), True),
    "average_pool": _average_pool,
    "adaptive_average_pool": lambda net, node, values: Value(
        values[0].as_maps().adaptive_average_pool(node.sizes("outputs")), True
    ),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "dropout": _dropout,
    "embedding": _embedding,
    "relu": _plain("relu"),
    "leaky_relu": _plain("leaky", "slope"),
    "clamp": _plain("clamp_between", "low", "high"),
    "sigmoid": _plain("sigmoid"),
    "tanh": _plain("tanh"),
    "smooth": _elementwise(lambda node, x: x.smooth(node.settings["table"])),
    "softmax": _on_rows(lambda node, x: x.soft_max()),
    "reshape": _on_rows(_reshape),
    "permute": _on_rows(_permute),
    "add": _pairwise("add"),
    "sub": _pairwise("sub"),
    "mul": _pairwise("mul"),
    "add_weight": _weighted(lambda x, weight: x.add(weight)),
    "mul_weight": _weighted(lambda x, weight: x.mul(weight)),
    "scale": _elementwise(lambda node, x: x.scaled(node.real("factor"))),
    "shift": _elementwise(lambda node, x: x.shifted(node.real("summand"))),
    "cat": _cat,
    "slice": _on_rows(_slice),
    "mean": _on_rows(_reduced("mean")),
    "sum": _on_rows(_reduced("sum")),
    "matmul": _matmul,
    "attention": _attention,
    "recurrent": _recurrent,
    "resize": _elementwise(_resize),
}
