"""Gradient clipping over shares, between the backward pass and the optimizer.

By value: each element into [−limit, limit], by two thresholds on one digit table. By norm: all
gradients times min(1, limit / ‖g‖), ‖g‖ over all parameters together, as
torch.nn.utils.clip_grad_norm_ does. Neither the norm nor whether anything was clipped is revealed.

Both first convert the gradients into masked words. Their results are again summands, which the
optimizer truncates.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from mpc_train.base.bounds import gradient_bits, norm_bits, norm_range
from mpc_train.training.optimizers.folding import NORM_FACTOR_BITS
from mpc_train.training.optimizers.gradients import (
    Gradient,
    Gradients,
    Seen,
    exact_limit,
    joined,
    pieces,
    unseen,
)
from protocols.arrays import Shape
from protocols.comparison.compare import clamped, relu
from protocols.functions.inverse_root import times_inverse_root
from protocols.ring.rational import HEADROOM_BITS, ROOT_BITS
from protocols.shares.arithmetic import multiply, truncate
from protocols.shares.masked import Additive, Masked, public


class _Clip:
    """What both kinds of clipping are told.

    gradient_limit: the stated bound of a gradient's magnitude before clipping. seen: called with
    what is rounded.
    """

    def __init__(
        self, limit: Fraction, *, fraction_bits: int, gradient_limit: Fraction, seen: Seen = unseen
    ) -> None:
        self._limit = limit
        self._bits = gradient_bits(fraction_bits, gradient_limit)
        self._gradient_limit = gradient_limit
        self._seen = seen


class ClipValue(_Clip):
    """Each element into [−limit, limit]. 4 rounds in all; opened: about 18 bytes an element."""

    def __call__(self, gradients: Gradients) -> Gradients:
        scale = Fraction(1 << self._bits)
        total, shift = joined(gradients, scale, self._gradient_limit, self._seen)
        g = truncate(total, shift)
        self._seen(g, exact_limit(shift))
        most = round(self._limit * scale)
        clipped, _, _ = clamped(g, -most, most)
        return _split(clipped, gradients, self._bits)


class ClipNorm(_Clip):
    """All gradients times min(1, limit / ‖g‖). About 19 rounds, nearly all for one number.

    Opened: about 20 bytes per element. The factor has a relative error of 2^-10, plus 2^-14.
    """

    def __call__(self, gradients: Gradients) -> Gradients:
        scale = Fraction(1 << self._bits)
        half = HEADROOM_BITS // 2  # its square has to fit
        total, shift = joined(gradients, scale, self._gradient_limit, self._seen, half)
        g = truncate(total, shift)
        self._seen(g, min(exact_limit(shift), exact_limit(half)))
        square_bits = norm_bits(g.size, self._gradient_limit, self._limit, self._bits)
        square = _sum_of_squares(g, 2 * self._bits - square_bits)
        least = round(self._limit**2 * (1 << square_bits))
        # max(‖g‖², limit²), so that the factor is at most 1.
        above, _ = relu(square.shift(-least))
        top = above.shift(least)
        one = public(g.role, np.full((1,), 1 << NORM_FACTOR_BITS, np.int64))
        scaled = self._limit * _half_power(square_bits)
        where = norm_range(g.size, self._gradient_limit, self._limit, square_bits)
        factor = truncate(times_inverse_root(one, top, where, scaled), ROOT_BITS)
        return _split(multiply(g, factor), gradients, self._bits + NORM_FACTOR_BITS)


def _sum_of_squares(g: Masked, shift: int) -> Masked:
    """Σ g², int64[1]; each square is truncated, so that any number of them fits."""
    squares = multiply(g, g)
    return truncate(squares, shift).sum(keepdims=True)


def _half_power(bits: int) -> Fraction:
    """2^(bits / 2) for even bits."""
    return Fraction(1 << (bits // 2))


def _split(total: Additive, gradients: Gradients, bits: int) -> Gradients:
    shapes = {name: gradient.summands.shape for name, gradient in gradients.items()}
    return {
        name: Gradient(_shaped(total.select(where), shapes, name), Fraction(1), bits)
        for name, where in pieces(shapes).items()
    }


def _shaped(part: Additive, shapes: Mapping[str, Shape], name: str) -> Additive:
    return part.reshape(*shapes[name])
