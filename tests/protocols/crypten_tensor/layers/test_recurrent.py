"""Recurrent layers and interpolation over shares against PyTorch: forward and gradients."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from protocols.crypten_tensor.layers import recurrent, resize  # noqa: F401
from protocols.crypten_tensor.layers.recurrent import GATES
from protocols.crypten_tensor.layers.resize_plan import WEIGHT_BITS, Resizing, taps_of
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.roles.role import Role
from tests.support.layers import UNIT, F, forward_and_gradients, torch_forward_and_gradients
from tests.support.lockstep import run_lockstep

ROWS, HIDDEN = 3, 2
LAYERS: dict[str, Callable[..., Any]] = {
    "gru": torch.gru,
    "lstm": torch.lstm,
    "rnn_relu": torch.rnn_relu,
    "rnn_tanh": torch.rnn_tanh,
}


def torch_layer(cell: str, reverse: bool) -> Callable[..., torch.Tensor]:
    """PyTorch's layer with the identity for the inputs' weight."""

    def run(x: Any, weight: Any, bias: Any = None) -> torch.Tensor:
        one = torch.eye(x.shape[2], dtype=torch.float64)
        pair = [] if bias is None else [torch.zeros_like(bias), bias]
        first: Any = torch.zeros(1, len(x), HIDDEN, dtype=torch.float64)
        first = (first, first) if cell == "lstm" else first
        given = x.flip(1) if reverse else x
        weights = [one, weight, *pair]
        y = LAYERS[cell](given, first, weights, bias is not None, 1, 0.0, False, False, True)[0]
        return y.flip(1) if reverse else y

    return run


@pytest.mark.parametrize(
    ("steps", "reverse", "biased", "evaluators"),
    [(1, True, True, 2), (4, True, False, 2), (5, False, True, 3)],
)
@pytest.mark.parametrize("cell", GATES)
def test_layers(cell: str, steps: int, reverse: bool, biased: bool, evaluators: int) -> None:
    rng, wide = np.random.default_rng(steps), GATES[cell] * HIDDEN
    inputs = {
        "x": rng.uniform(-2, 2, (ROWS, steps, wide)),
        "weight": rng.uniform(-1, 1, (wide, HIDDEN)),
    }
    if biased:
        inputs["bias"] = rng.uniform(-1, 1, wide)
    upstream = rng.uniform(-1, 1, (ROWS, steps, HIDDEN))
    expected, gradients = torch_forward_and_gradients(torch_layer(cell, reverse), inputs, upstream)
    found, ours = forward_and_gradients(
        lambda x, weight, bias=None: x.recurrent(weight, bias, cell, reverse),
        inputs,
        upstream,
        evaluators,
    )
    # A step adds some splines' 2^-14 to what the last one left of its own, at most all of it.
    bound = 64 * UNIT if cell == "rnn_relu" else steps * 2.0**-13
    assert np.abs(found - expected).max() <= bound
    assert set(ours) == set(gradients)
    for name, value in gradients.items():
        assert np.abs(ours[name] - value).max() <= 4 * bound, name


def test_a_hundred_steps_neither_run_out_of_stack_nor_drift() -> None:
    """A function each would be deeper than Python's stack, backward."""
    rng, steps = np.random.default_rng(1), 100
    inputs = {"x": rng.uniform(-2, 2, (2, steps, 4)), "weight": rng.uniform(-1, 1, (4, 1))}
    upstream = np.zeros((2, steps, 1))
    upstream[:, -1] = 1

    def plain(x: Any, weight: Any) -> torch.Tensor:
        first = torch.zeros(1, 2, 1, dtype=torch.float64)
        weights = [torch.eye(4, dtype=torch.float64), weight]
        found: torch.Tensor = torch.lstm(
            x, (first, first), weights, False, 1, 0.0, False, False, True
        )[0]
        return found

    expected, gradients = torch_forward_and_gradients(plain, inputs, upstream)
    found, ours = forward_and_gradients(
        lambda x, weight: x.recurrent(weight, None, "lstm", False), inputs, upstream
    )
    assert np.abs(found - expected).max() <= 2.0**-10
    for name, value in gradients.items():
        assert np.abs(ours[name] - value).max() <= 2.0**-10, name


@pytest.mark.parametrize(
    ("cell", "forward", "backward"),
    [("gru", 16, 4), ("lstm", 16, 6), ("rnn_tanh", 7, 4), ("rnn_relu", 5, 3)],
)
def test_rounds_of_a_step(cell: str, forward: int, backward: int) -> None:
    def rounds(steps: int) -> tuple[int, int]:
        def program(role: Role) -> tuple[int, int]:
            attach(role, F)
            shape, wide = (2, steps, GATES[cell] * HIDDEN), GATES[cell] * HIDDEN
            x = MaskedTensor(np.ones(shape), src=0, requires_grad=True)
            weight = MaskedTensor(np.ones((wide, HIDDEN)), src=0, requires_grad=True)
            y = x.recurrent(weight, None, cell, False)
            y.masked()
            role.finish()
            there: int = role.rounds
            y.backward(MaskedTensor(np.ones((2, steps, HIDDEN)), src=1))
            x.grad.masked()
            weight.grad.masked()
            role.finish()
            return there, role.rounds - there

        found: tuple[int, int] = run_lockstep(program, 2)[0]
        return found

    longer, shorter = rounds(4), rounds(3)
    assert (longer[0] - shorter[0], longer[1] - shorter[1]) == (forward, backward)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("given", "wanted", "factors"),
    [
        ((3,), (7,), None),
        ((4, 3), (8, 6), None),
        ((5, 4), (7, 10), ("1.5", "2.5")),
        ((4, 6), (3, 1), None),
        ((1, 1), (2, 3), None),
    ],
)
def test_interpolation(given: Any, wanted: Any, factors: Any, aligned: bool) -> None:
    rng = np.random.default_rng(len(given))
    x, upstream = rng.uniform(-9, 9, (2, 2, *given)), rng.uniform(-1, 1, (2, 2, *wanted))
    asked = factors or [Fraction(b, a) for a, b in zip(given, wanted, strict=True)]
    plan = Resizing(given, wanted, tuple(map(Fraction, asked)), aligned)
    settings: Any = {"mode": ("linear", "bilinear")[len(given) - 1], "align_corners": aligned}
    settings |= {"scale_factor": tuple(map(float, factors))} if factors else {"size": wanted}
    expected, gradients = torch_forward_and_gradients(
        lambda x: torch.nn.functional.interpolate(x, **settings), {"x": x}, upstream
    )
    found, ours = forward_and_gradients(lambda x: x.resize(plan), {"x": x}, upstream)
    assert np.abs(found - expected).max() <= 9 * 2.0**-18 + 2 * UNIT
    assert np.abs(ours["x"] - gradients["x"]).max() <= 2.0**-16 + 2 * UNIT


def test_weights_of_an_interpolated_element_add_up_to_one() -> None:
    plan = Resizing((3, 4), (8, 7), (Fraction(8, 3), Fraction(7, 4)), False)
    bits, taps = taps_of(plan)
    assert bits == WEIGHT_BITS
    assert (np.sum([weights for _, weights in taps], axis=0) == 1 << bits).all()
    # Twice as many are exact in quarters, for each of two axes.
    assert taps_of(Resizing((3, 4), (6, 8), (Fraction(2),) * 2, False))[0] == 4
