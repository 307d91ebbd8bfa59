"""Linear and bilinear interpolation of feature maps: a public linear map, one truncation.

`resize_plan` says which neighbours and weights. Error: below 2^-18 of the largest neighbour, from
the rounding of weights, and a unit of 2^-f.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols.arrays import Words
from protocols.crypten_tensor.layers.register import Function, register
from protocols.crypten_tensor.layers.resize_plan import Resizing, taps_of
from protocols.crypten_tensor.tensor import MaskedTensor


class Resize(Function):
    """Maps [..., *plan.given] to [..., *plan.wanted]; backward the adjoint map."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, plan: Resizing) -> MaskedTensor:
        ctx.save_multiple_for_backward((tuple(x.shape), plan))
        bits, taps = taps_of(plan)
        lead = x.shape[: x.dim() - len(plan.given)]

        def resized(words: Words) -> Words:
            return sum(words[grid] * weights for grid, weights in taps)

        value = x.masked().linear((*lead, *plan.wanted), resized)
        return x.with_value(value, x.bits + bits)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, plan = ctx.saved_tensors
        bits, taps = taps_of(plan)

        def spread(words: Words) -> Words:
            out = np.zeros(shape, np.int64)
            for grid, weights in taps:
                np.add.at(out, grid, words * weights)
            return out

        return grad.with_value(grad.masked().linear(shape, spread), grad.bits + bits)


register("resize", Resize)
