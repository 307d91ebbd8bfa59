"""Activations that are composed of existing operations of a graph.

All are exact except for the rounding of public factors, and ELU with its relatives, whose part
below 0 is a spline (`protocols.functions.splines`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as functional
from torch import fx, nn

from mpc_train.networks.compositions import Emission, Rule
from mpc_train.networks.convert_rules import Unsupported, decimal_text

SELU_ALPHA, SELU_SCALE = "1.6732632423543772", "1.0507009873554805"
"""The constants of torch.nn.SELU."""


def _clamp(out: Emission) -> str:
    low, high = out.setting(1, "min"), out.setting(2, "max")
    x, shape = out.value(), out.shape
    if any(isinstance(end, fx.Node) for end in (low, high)) or (low is None and high is None):
        raise Unsupported("limits must be plain numbers, one or both")
    if low is not None and high is not None:
        return out.add("clamp", (x,), shape, low=decimal_text(low), high=decimal_text(high))
    sign = 1 if high is None else -1  # min(x, h) = h - relu(h - x)
    end = low if high is None else high
    if sign < 0:
        x = out.add("scale", (x,), shape, factor="-1")
    if end:
        x = out.add("shift", (x,), shape, summand=decimal_text(-sign * end))
    x = out.add("relu", (x,), shape)
    if end:
        x = out.add("shift", (x,), shape, summand=decimal_text(sign * end))
    return out.add("scale", (x,), shape, factor="-1") if sign < 0 else x


def _hardtanh(out: Emission) -> str:
    low, high = out.setting(1, "min_val", -1.0), out.setting(2, "max_val", 1.0)
    return out.add(
        "clamp", (out.value(),), out.shape, low=decimal_text(low), high=decimal_text(high)
    )


def _hard_sigmoid(out: Emission) -> str:
    x = out.add("scale", (out.value(),), out.shape, factor="1/6")
    x = out.add("shift", (x,), out.shape, summand="1/2")
    return out.add("clamp", (x,), out.shape, low="0", high="1")


def _hard_swish(out: Emission) -> str:
    return out.add("mul", (out.value(), _hard_sigmoid(out)), out.shape)


def _prelu(out: Emission) -> str:
    """relu(x) + weight · min(x, 0), and min(x, 0) = x - relu(x)."""
    x, shape = out.value(), out.shape
    above = out.add("relu", (x,), shape)
    below = out.add("sub", (x, above), shape)
    tensors = {"weight": f"{out.node.target}.weight"}
    below = out.add("mul_weight", (below,), shape, tensors, behind=max(len(shape) - 1, 0))
    return out.add("add", (above, below), shape)


def _elu(out: Emission) -> str:
    return _exponential(out, Fraction(decimal_text(float(out.setting(1, "alpha", 1.0)))))


def _selu(out: Emission) -> str:
    return _exponential(out, Fraction(SELU_ALPHA), Fraction(SELU_SCALE))


def _exponential(out: Emission, alpha: Fraction, scale: Fraction = Fraction(1)) -> str:
    """scale · (x above 0, alpha · (exp(x) - 1) below) = scale · (alpha · elu(x) + (1 - alpha) ·
    relu(x)), within scale · |alpha| · 2^-14."""
    x, shape = out.value(), out.shape
    curve = _scaled(out, out.add("smooth", (x,), shape, table="ELU"), alpha * scale)
    if alpha == 1:
        return curve
    above = _scaled(out, out.add("relu", (x,), shape), (1 - alpha) * scale)
    return out.add("add", (curve, above), shape)


def _celu(out: Emission) -> str:
    """x above 0, alpha · (exp(x / alpha) - 1) below: alpha · elu(x / alpha) for alpha > 0."""
    alpha = Fraction(decimal_text(float(out.setting(1, "alpha", 1.0))))
    if alpha <= 0:
        raise Unsupported("alpha must be above 0")
    inner = _scaled(out, out.value(), 1 / alpha)
    return _scaled(out, out.add("smooth", (inner,), out.shape, table="ELU"), alpha)


def _scaled(out: Emission, x: str, factor: Fraction) -> str:
    return x if factor == 1 else out.add("scale", (x,), out.shape, factor=str(factor))


ACTIVATIONS: dict[Any, Rule] = {
    nn.CELU: _celu,
    nn.ELU: _elu,
    nn.Hardsigmoid: _hard_sigmoid,
    nn.Hardswish: _hard_swish,
    nn.PReLU: _prelu,
    nn.SELU: _selu,
    functional.elu: _elu,
    functional.hardsigmoid: _hard_sigmoid,
    functional.hardswish: _hard_swish,
    functional.hardtanh: _hardtanh,
    **dict.fromkeys((functional.celu, torch.celu), _celu),
    **dict.fromkeys((functional.selu, torch.selu), _selu),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), _clamp),
}
"""Rules by the layer's type, the function, or the method's name."""
