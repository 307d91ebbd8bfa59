"""Activations over masked tensors that are more than ReLU, sigmoid and tanh.

* smooth: GELU, SiLU, ELU and softplus as splines, within 2^-14 and three units of 2^-f everywhere.
  Their gradient is that of the spline, within 2^-7 of the function's own: coefficients are kept, so
  that the backward pass costs one truncation and no comparison.
* leaky: x and a public multiple of its negative part; 4 rounds as ReLU, exact to the rounding of
  the slope to 20 bits.
* clamp: ReLU6 and Hardtanh; both thresholds share one table of digits.
* soft_max: along the last axis, within 2^-12; above 16 classes the maximum is a tournament.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from protocols.comparison.compare import below, clamped, negative, weighted
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions import splines as functions
from protocols.functions.splines import spline_at
from protocols.ring.rational import mantissa
from protocols.shares.arithmetic import multiply, remask, select, truncate

SLOPE_BITS = 20


class Smooth(Function):
    """A spline of `spline_tables` and the gradient of that spline. 6 rounds."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, table: str) -> MaskedTensor:
        source = x.plain_factor().in_full()
        value, f = source.masked(), source.fraction_bits
        spline = spline_at(table, f)
        bits = below(value if value.early else value.narrowed(64 - f), spline.knots)
        square = truncate(multiply(value, value), f)
        base = np.array(spline.base, np.int64).reshape(3, *([1] * len(value.shape)))
        sums = weighted(bits, spline.steps).shift(base)
        slopes = remask(sums.select(slice(1, 3)))
        linear, quadratic = slopes.select(0), slopes.select(1)
        ctx.save_multiple_for_backward((value, linear, quadratic))
        total = multiply(linear, value) + multiply(quadratic, square) + sums.select(0)
        return source.with_value(truncate(total, f))

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        value, linear, quadratic = ctx.saved_tensors
        f = grad.fraction_bits
        rise = multiply(quadratic, value).scale(2) + linear.scale(1 << f).shares()
        return grad.mul(MaskedTensor(rise, bits=2 * f))


class Leaky(Function):
    """x where x >= 0, slope · x elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, slope: Fraction) -> MaskedTensor:
        source = x.positive_factor()
        positive = negative(source.masked()).negate()
        ctx.save_multiple_for_backward((positive, slope))
        return _leaked(source, positive, slope)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        positive, slope = ctx.saved_tensors
        return _leaked(grad, positive, slope)


def _leaked(x: MaskedTensor, positive: Any, slope: Fraction) -> MaskedTensor:
    value = x.masked()
    whole, shift = mantissa(slope, SLOPE_BITS)
    kept = select(positive, value).scale((1 << shift) - whole) + value.shares().scale(whole)
    return x.with_value(kept, x.bits + shift)


class Clamp(Function):
    """min(max(x, low), high) for public low < high; the gradient passes between them."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, low: Fraction, high: Fraction) -> MaskedTensor:
        source = x.plain_factor().in_full()
        value = source.masked()
        least, most = (round(end * (1 << source.bits)) for end in (low, high))
        kept, under, inside = clamped(value, least, most)
        ctx.save_multiple_for_backward((under, inside))
        return source.with_value(kept)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        under, inside = ctx.saved_tensors
        value = grad.masked()
        return grad.with_value(select(inside, value) - select(under, value))


class SoftMax(Function):
    """Softmax along the last axis; gradient y · (g − Σ g·y)."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor) -> MaskedTensor:
        source = x.plain_factor().in_full()
        y = source.with_value(functions.softmax(source.masked(), source.fraction_bits))
        ctx.save_multiple_for_backward((y,))
        return y

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (y,) = ctx.saved_tensors
        common = grad.mul(y).sum(-1, keepdim=True)
        return grad.sub(common).mul(y)


register("smooth", Smooth)
register("leaky", Leaky)
register("clamp_between", Clamp)
register("soft_max", SoftMax)
