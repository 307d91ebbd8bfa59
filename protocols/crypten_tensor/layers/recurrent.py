"""Recurrent layers over masked tensors: GRU, LSTM and Elman's RNN, unrolled over time.

x: [rows, steps, gates · hidden], what the inputs add to the gates (`x W_ihᵀ + b_ih`, a matrix
product of its own before this); weight: [gates · hidden, hidden], bias: [gates · hidden], as
torch.nn.GRU, LSTM and RNN hold `weight_hh` and `bias_hh`; the first state is 0. Gives the states
[rows, steps, hidden]. reverse: from the last step to the first.

    gru       r, z = sigmoid(x + h Wᵀ + b);  n = tanh(x_n + r·(h W_nᵀ + b_n));  h ← n + z·(h − n)
    lstm      i, f, o = sigmoid, g = tanh of x + h Wᵀ + b;  c ← f·c + i·g;  h ← o·tanh(c)
    rnn_tanh, rnn_relu                                      h ← tanh or ReLU of x + h Wᵀ + b

Order of the gates: r, z, n; i, f, g, o. All steps are one CrypTen function: CrypTen's backward pass
recurses for each function, and Python would run out of stack. The factors of gradients in the
backward pass do not depend on the gradients, and are computed for all steps at once.

Rounds a step, forward: gru 16, lstm 16, rnn 7, with ReLU 5; backward: 4, 6, 4, 3. Errors: splines
are within 2^-14, and a step inherits the previous step's error, scaled by the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares.masked import concatenate, public

GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}
Kept = list[Any]
"""What a step's backward pass needs: a tensor [rows, hidden] each, or the bit of a ReLU."""


def _join(parts: Sequence[MaskedTensor], axis: int) -> MaskedTensor:
    """Tensors of one factor, one after the other."""
    first = parts[0]
    values = [part.in_full().masked() for part in parts]
    return first.with_value(concatenate(values, axis), first.fraction_bits)


def _stack(parts: Sequence[MaskedTensor], axis: int = 0) -> MaskedTensor:
    """Tensors [rows, width] along a new axis of steps."""
    shape = list(parts[0].shape)
    shape.insert(axis, 1)
    return _join([part.reshape(*shape) for part in parts], axis)


def _columns(x: MaskedTensor, *gates: int) -> MaskedTensor:
    """[rows, len(gates) · hidden] of `gates`, for x[rows, count, hidden]."""
    picked = x.linear_map(lambda value: value.select((slice(None), list(gates))))
    return picked.reshape(x.shape[0], -1)


def _of_gates(x: MaskedTensor, count: int) -> MaskedTensor:
    return x.reshape(x.shape[0], count, -1)


def _rest(x: MaskedTensor) -> MaskedTensor:
    """1 − x."""
    return x.neg().add(1)


def _slope(y: MaskedTensor) -> MaskedTensor:
    """y·(1 − y): of a sigmoid, by its value."""
    return y.mul(_rest(y))


class _State:
    """weight, bias: as in the module's docstring; `kept`: by step, in the order of the steps."""

    def __init__(self, weight: MaskedTensor, bias: MaskedTensor | None, rows: int) -> None:
        self.transposed, self.bias = weight.t(), bias
        value = weight.masked()
        zeros = np.zeros((rows, weight.shape[1]), np.int64)
        self.h = MaskedTensor(public(value.role, zeros))
        self.c = self.h
        self.kept: list[Kept] = []

    def recurred(self) -> MaskedTensor:
        """h Wᵀ + b."""
        y = self.h.matmul(self.transposed)
        return y if self.bias is None else y.add(self.bias)


def _gru(x: MaskedTensor, state: _State) -> None:
    inputs, own = _of_gates(x, 3), _of_gates(state.recurred(), 3)
    opened = _of_gates(_columns(inputs, 0, 1).add(_columns(own, 0, 1)).sigmoid(), 2)
    r, z = _columns(opened, 0), _columns(opened, 1)
    recurred = _columns(own, 2)
    recurred.masked()
    n = _columns(inputs, 2).add(r.mul(recurred)).tanh()
    before = state.h
    state.h = n.add(z.mul(before.sub(n)))
    state.h.masked()
    state.kept.append([before, r, z, n, recurred])


def _gru_slopes(h: MaskedTensor, r: Any, z: Any, n: Any, recurred: Any) -> list[MaskedTensor]:
    """Of r, z, n before their functions and of `recurred`, by the state's gradient; and z."""
    new = _rest(z).mul(_rest(n.mul(n)))
    reset = new.mul(recurred.mul(_slope(r)))
    return [reset, h.sub(n).mul(_slope(z)), new, new.mul(r), z]


def _gru_back(
    grad: MaskedTensor, slopes: Sequence[MaskedTensor], carried: Kept
) -> tuple[MaskedTensor, MaskedTensor, MaskedTensor, Kept]:
    reset, update, new, hidden, z = slopes
    parts = [grad.mul(slope) for slope in (reset, update, new, hidden)]
    to_x = _join(parts[:3], 1)
    return to_x, _join([*parts[:2], parts[3]], 1), grad.mul(z), []


def _lstm(x: MaskedTensor, state: _State) -> None:
    gates = x.add(state.recurred())
    gates.masked()
    split = _of_gates(gates, 4)
    opened = _of_gates(_columns(split, 0, 1, 3).sigmoid(), 3)
    i, f, o = (_columns(opened, gate) for gate in range(3))
    g = _columns(split, 2).tanh()
    before, cell = state.h, state.c
    state.c = f.mul(cell).add(i.mul(g))
    state.c.masked()
    shown = state.c.tanh()
    state.h = o.mul(shown)
    state.h.masked()
    state.kept.append([before, i, f, g, o, cell, shown])


def _lstm_slopes(
    h: MaskedTensor, i: Any, f: Any, g: Any, o: Any, cell: Any, shown: Any
) -> list[MaskedTensor]:
    """Of i, f, g by the cell's gradient, of o and of the cell by the state's; and f."""
    return [
        g.mul(_slope(i)),
        cell.mul(_slope(f)),
        i.mul(_rest(g.mul(g))),
        shown.mul(_slope(o)),
        o.mul(_rest(shown.mul(shown))),
        f,
    ]


def _lstm_back(
    grad: MaskedTensor, slopes: Sequence[MaskedTensor], carried: Kept
) -> tuple[MaskedTensor, MaskedTensor, None, Kept]:
    *of_cell, shown, through, f = slopes
    to_cell = grad.mul(through)
    if carried:
        to_cell = to_cell.add(carried[0])
    to_cell.masked()
    gates = _join([*(to_cell.mul(slope) for slope in of_cell), grad.mul(shown)], 1)
    return gates, gates, None, [to_cell.mul(f)]


def _rnn_tanh(x: MaskedTensor, state: _State) -> None:
    before, state.h = state.h, x.add(state.recurred()).tanh()
    state.kept.append([before, state.h])


def _rnn_slopes(h: MaskedTensor, new: Any) -> list[MaskedTensor]:
    return [_rest(new.mul(new))]


def _rnn_back(
    grad: MaskedTensor, slopes: Sequence[MaskedTensor], carried: Kept
) -> tuple[MaskedTensor, MaskedTensor, None, Kept]:
    gates = grad.mul(slopes[0])
    return gates, gates, None, []


def _rnn_relu(x: MaskedTensor, state: _State) -> None:
    before, state.h = state.h, x.add(state.recurred()).relu()
    state.kept.append([before, state.h.bit])


def _relu_back(
    grad: MaskedTensor, slopes: Kept, carried: Kept
) -> tuple[MaskedTensor, MaskedTensor, None, Kept]:
    gates = grad.select(slopes[0])
    return gates, gates, None, []


Cell = tuple[Callable[..., None], Callable[..., list[MaskedTensor]] | None, Callable[..., Any]]
CELLS: dict[str, Cell] = {
    "gru": (_gru, _gru_slopes, _gru_back),
    "lstm": (_lstm, _lstm_slopes, _lstm_back),
    "rnn_tanh": (_rnn_tanh, _rnn_slopes, _rnn_back),
    "rnn_relu": (_rnn_relu, None, _relu_back),
}
"""A step; what its gradients are multiplied with, for all steps at once; a step backward, which
gives the gradients of what x and h Wᵀ + b add to the gates, of the state beside that, and what is
carried to the step before."""


class Recurrent(Function):
    """All steps of one layer in one direction; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: MaskedTensor,
        weight: MaskedTensor,
        bias: MaskedTensor | None,
        cell: str,
        reverse: bool,
    ) -> MaskedTensor:
        rows, steps, _ = x.shape
        source, weight = x.plain_factor(), weight.plain_factor()
        state = _State(weight, bias if bias is None else bias.plain_factor(), rows)
        order = list(range(steps))[:: -1 if reverse else 1]
        states: list[MaskedTensor] = [state.h] * steps
        for step in order:
            CELLS[cell][0](_at(source, step), state)
            states[step] = state.h
        ctx.save_multiple_for_backward((weight, bias is not None, cell, order, state.kept))
        return _stack(states, 1)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor, ...]:
        weight, has_bias, cell, order, kept = ctx.saved_tensors
        _, slopes_of, back = CELLS[cell]
        slopes = [one[1:] for one in kept]
        if slopes_of is not None:
            together = slopes_of(*map(_stack, zip(*kept, strict=True)))
            for one in together:
                one.masked()
            slopes = [[one.linear_map(_picked(k)) for one in together] for k in range(len(kept))]
        grad.masked()
        to_x: list[MaskedTensor] = [grad] * len(order)
        to_gates: list[MaskedTensor] = []
        onward: MaskedTensor | None = None
        carried: Kept = []
        for k in reversed(range(len(order))):
            step = _at(grad, order[k])
            step = step if onward is None else step.add(onward)
            step.masked()
            to_x[order[k]], gates, beside, carried = back(step, slopes[k], carried)
            to_gates.append(gates)
            gates.masked()
            onward = gates.matmul(weight)
            onward = onward if beside is None else onward.add(beside)
        states = _join([one[0] for one in reversed(kept)], 0)
        gates = _join(to_gates, 0)
        found = [_stack(to_x, 1), gates.t().matmul(states)]
        return (*found, gates.sum(0)) if has_bias else tuple(found)


def _at(x: MaskedTensor, step: int) -> MaskedTensor:
    return x.linear_map(lambda value: value.select((slice(None), step)))


def _picked(step: int) -> Callable[[Any], Any]:
    return lambda value: value.select(step)


register("recurrent", Recurrent)
