"""nn.RNN, nn.GRU and nn.LSTM, unrolled over the steps of a row.

A sequence has as many steps as the shape of a row says, so that a recurrent layer is a chain of
operations that are there already: one product for all steps' inputs, then for each step a product
with the state, gates, and the next state. Gates stand in PyTorch's order (GRU: reset, update, new;
LSTM: input, forget, cell, output), tensors keep their names. States start at zero.

With batch_first = False rows are the second axis. Such a value is *turned*: in the graph its rows
come first as everywhere, and all that may be done with it is to take one element of its first axis,
to swap the two axes back, or to give it to a layer that wants it so.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mpc_train.networks.convert_rules import Unsupported, argument, decimal_text
from mpc_train.networks.emission import Emission, Rule
from mpc_train.networks.graph import MAX_NODES

RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_OPERATIONS = {"RNN": 6, "GRU": 18, "LSTM": 19}
"""Of a step, at most."""
Results = Any
"""What a layer gives: a rule that emits it, or a tuple of such."""


@dataclass(frozen=True)
class _Cell:
    """One direction of one layer. prefix, suffix: what its tensors' names begin and end with."""

    out: Emission
    layer: Any
    suffix: str

    @property
    def width(self) -> int:
        """Of the state that goes on: of the projection, where there is one."""
        return int(getattr(self.layer, "proj_size", 0) or self.layer.hidden_size)

    def linear(self, x: str, kind: str, shape: tuple[int, ...]) -> str:
        """x times weight_KIND, and bias_KIND where there is one."""
        place = str(self.out.node.target)
        tensors = {"weight": f"{place}.weight_{kind}{self.suffix}"}
        if self.layer.bias and kind != "hr":
            tensors["bias"] = f"{place}.bias_{kind}{self.suffix}"
        return self.out.add("linear", (x,), shape, tensors)

    def part(self, x: str, first: int, last: int) -> str:
        """Of gates side by side those from `first` to before `last`."""
        size = int(self.layer.hidden_size)
        shape = ((last - first) * size,)
        return self.out.add("slice", (x,), shape, axis=0, start=first * size, stop=last * size)

    def both(self, op: str, left: str, right: str) -> str:
        return self.out.add(op, (left, right), (int(self.layer.hidden_size),))

    def through(self, op: str, x: str, gates: int = 1) -> str:
        return self.out.add(op, (x,), (gates * int(self.layer.hidden_size),))

    def step(self, given: str, h: str, c: str) -> tuple[str, str]:
        """The next state, and LSTM's cell. given: of the inputs, all gates side by side."""
        kind, size = self.layer.mode.partition("_")[0], int(self.layer.hidden_size)
        kept = self.linear(h, "hh", (_GATES[kind] * size,))
        if kind == "GRU":
            gates = self.out.add(
                "add", (self.part(given, 0, 2), self.part(kept, 0, 2)), (2 * size,)
            )
            gates = self.through("sigmoid", gates, 2)
            reset, update = self.part(gates, 0, 1), self.part(gates, 1, 2)
            fresh = self.both("mul", reset, self.part(kept, 2, 3))
            fresh = self.through("tanh", self.both("add", self.part(given, 2, 3), fresh))
            # (1 - update) · fresh + update · h, with one product
            change = self.both("mul", update, self.both("sub", h, fresh))
            return self.both("add", fresh, change), c
        gates = self.out.add("add", (given, kept), (_GATES[kind] * size,))
        if kind == "RNN":
            return self.through("relu" if self.layer.mode == "RNN_RELU" else "tanh", gates), c
        first = self.through("sigmoid", self.part(gates, 0, 2), 2)
        fresh = self.through("tanh", self.part(gates, 2, 3))
        shown = self.through("sigmoid", self.part(gates, 3, 4))
        c = self.both(
            "add",
            self.both("mul", self.part(first, 1, 2), c),
            self.both("mul", self.part(first, 0, 1), fresh),
        )
        h = self.both("mul", shown, self.through("tanh", c))
        return (self.linear(h, "hr", (self.width,)) if self.layer.proj_size else h), c

    def run(self, x: str, steps: int, backwards: bool) -> tuple[list[str], str]:
        """The states after each step, in the order of the steps, and the last cell."""
        gates = _GATES[self.layer.mode.partition("_")[0]] * int(self.layer.hidden_size)
        given = self.linear(x, "ih", (steps, gates))
        h = self.out.add("fill", (x,), (self.width,), value="0")
        c = h
        if self.layer.mode == "LSTM" and self.width != self.layer.hidden_size:
            c = self.out.add("fill", (x,), (int(self.layer.hidden_size),), value="0")
        found: list[str] = []
        for step in reversed(range(steps)) if backwards else range(steps):
            here = given
            if steps > 1:
                here = self.out.add(
                    "slice", (given,), (1, gates), axis=0, start=step, stop=step + 1
                )
            here = self.out.add("reshape", (here,), (gates,))
            h, c = self.step(here, h, c)
            found.append(h)
        return (found[::-1] if backwards else found), c


def _stacked(out: Emission, names: list[str], width: int) -> str:
    """Values of one axis below each other."""
    rows = [out.add("reshape", (name,), (1, width)) for name in names]
    return rows[0] if len(rows) == 1 else out.add("cat", rows, (len(rows), width), axis=0)


def recurrent(out: Emission) -> str:
    """The chain of all steps; what of its results is used is put together where it is taken."""
    layer: Any = out.layer
    given, name = out.source(), type(layer).__name__
    _check_input(layer, given)
    _check_state(out.node)
    steps = given.meta["shape"][0]
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    count = steps * layer.num_layers * len(directions) * _OPERATIONS[name]
    if count > MAX_NODES:
        raise Unsupported(
            f"{steps} steps of {layer.num_layers} layers are some {count} operations, and a "
            f"network has {MAX_NODES} at most: shorten the sequence, or take means over parts of it"
        )
    x, hidden, cells, width = out.value(), [], [], 0
    runs: list[list[str]] = []
    for number in range(layer.num_layers):
        if number:
            x = _outputs(out, runs, width)
            if layer.dropout:
                shape = (steps, width * len(runs))
                x = out.add("dropout", (x,), shape, p=decimal_text(layer.dropout))
        runs = []
        for direction in directions:
            cell = _Cell(out, layer, f"_l{number}{direction}")
            found, memory = cell.run(x, steps, backwards=bool(direction))
            width = cell.width
            runs.append(found)
            hidden.append(found[0 if direction else -1])
            cells.append(memory)

    def states(other: Emission) -> str:
        return _stacked(other, hidden, width)

    def memories(other: Emission) -> str:
        return _stacked(other, cells, layer.hidden_size)

    last: Results = (states, memories) if isinstance(layer, nn.LSTM) else states
    out.node.meta["results"] = (lambda other: _outputs(other, runs, width), last)
    return ""


def _outputs(out: Emission, runs: list[list[str]], width: int) -> str:
    """The states of the last layer, directions side by side: [steps, width · directions]."""
    both = [_stacked(out, states, width) for states in runs]
    if len(both) == 1:
        return both[0]
    return out.add("cat", both, (len(runs[0]), width * len(both)), axis=1)


def taken(out: Emission, results: Results, index: Any) -> str:
    """One of a layer's results; those that nobody uses come to nothing."""
    if not isinstance(index, int):
        raise Unsupported("results are taken by their number")
    found = results[index]
    if isinstance(found, tuple):
        out.node.meta["results"] = found
        return ""
    rule: Rule = found
    return rule(out) if out.node.users else ""


def _check_input(layer: Any, given: fx.Node) -> None:
    if len(given.meta["shape"]) != 2:
        raise Unsupported("takes rows of [steps, features]; for a single step write x.unsqueeze(1)")
    if layer.batch_first and is_turned(given):
        raise Unsupported("batch_first = True takes [rows, steps, features]: swap the axes back")
    if not layer.batch_first and not is_turned(given):
        raise Unsupported(
            "batch_first = False takes the first axis, the rows, for steps: set batch_first = "
            "True, or give it x.transpose(0, 1)"
        )


def _check_state(node: fx.Node) -> None:
    state: Any = argument(node, 1, "hx")
    parts = state if isinstance(state, tuple | list) else (state,)
    if any(part is not None and not is_zeros(part) for part in parts):
        raise Unsupported("states start at zero: leave the first state out, or give torch.zeros")


_PASSED_ON = ("to", "detach", "requires_grad_", "float", "double", "contiguous")


def is_zeros(node: Any) -> bool:
    """Whether it is a tensor of zeros that forward makes, for a state to start from."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target in _PASSED_ON:
        return is_zeros(node.args[0])
    return node.target in (torch.zeros, "new_zeros")


def is_turned(node: fx.Node) -> bool:
    """Whether its rows are the second axis."""
    return bool(node.meta.get("turned"))


def may_turn(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether its rows may be the second axis: a layer's results, or two axes swapped."""
    if node.op == "call_module":
        return isinstance(layer, RECURRENT)
    source = node.args[0] if node.args else None
    several = isinstance(source, fx.Node) and bool(source.meta.get("several"))
    return _swaps(node) or (node.target is operator.getitem and several)


def _swaps(node: fx.Node) -> bool:
    """Whether a call swaps the first two axes of a tensor of three or more."""
    rank = len(node.meta.get("axes", ()))
    if rank < 3:
        return False
    if node.target in ("transpose", torch.transpose):
        return {int(argument(node, 1 + i, f"dim{i}")) % rank for i in (0, 1)} == {0, 1}
    if node.target in ("permute", torch.permute):
        order: Any = node.args[1:] or (node.kwargs["dims"],)
        if len(order) == 1 and isinstance(order[0], tuple | list):
            order = order[0]
        return [int(axis) % rank for axis in order] == [1, 0, *range(2, rank)]
    return False


def turned(out: Emission) -> str:
    """What may be done with a turned value, and what makes one."""
    source = out.source()
    x, (length, *rest) = out.value(), source.meta["shape"]
    if _swaps(out.node):
        return x
    index = _element(out.node)
    single = length == 1 and out.node.target in _OF_ONE and not is_turned(out.node)
    if index is None and not (single and out.shape == tuple(rest)):
        raise Unsupported(
            "rows are the second axis here: take one element of the first, as in h[-1], or swap "
            "them back with transpose(0, 1)"
        )
    if length > 1:
        start = (index or 0) % length
        x = out.add("slice", (x,), (1, *rest), axis=0, start=start, stop=start + 1)
    return out.add("reshape", (x,), tuple(rest))


_OF_ONE = ("squeeze", torch.squeeze, "view", "reshape", torch.reshape)


def _element(node: fx.Node) -> int | None:
    """k of x[k] and x[k, :, :]."""
    if node.target is not operator.getitem:
        return None
    index: Any = node.args[1]
    first, *others = index if isinstance(index, tuple) else (index,)
    whole = all(other in (slice(None), ...) for other in others)
    return first if isinstance(first, int) and whole else None


RULES: dict[Any, Rule] = dict.fromkeys(RECURRENT, recurrent)
