"""Optimizers over shares: every public factor is folded into one truncation for a parameter.

A gradient arrives as summands with more bits than a weight and with a public factor (the mean
over the batch). Learning rate and factor become one integer mantissa and one shift; momentum and
weight decay enter the same sum. The updates of all parameters travel together: two rounds a step,
in common with the last backward products.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from protocols import arithmetic
from protocols.crypten_backend import MaskedTensor
from protocols.errors import RangeError
from protocols.fixed_point import mantissa
from protocols.masked import Additive, Masked

RATE_BITS = 12
"""Learning rate over batch size is rounded to this many significant bits: 1 part in 8192."""


class SGD:
    """w ← w − rate · v with v ← momentum · v + gradient + decay · w, as in torch.optim.SGD.

    The state kept for a parameter is rate · v at the scale of the weights; when the rate changes,
    it is rescaled along with the momentum.
    """

    def __init__(
        self,
        parameters: Mapping[str, MaskedTensor],
        *,
        momentum: Fraction = Fraction(0),
        weight_decay: Fraction = Fraction(0),
    ) -> None:
        self._parameters = dict(parameters)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._velocity: dict[str, Masked] = {}
        self._rate = Fraction(0)

    def step(self, rate: Fraction) -> None:
        """Update every parameter from its gradient and drop the gradient."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                raise ValueError(f"parameter {name} has no gradient")
            change = self._change(name, parameter, gradient, rate)
            self._velocity[name] = change
            parameter.copy_(parameter.with_value(parameter.masked() - change))
            parameter._reset_gradients()
        self._rate = rate

    def _change(
        self, name: str, parameter: MaskedTensor, gradient: MaskedTensor, rate: Fraction
    ) -> Masked:
        """rate · v as a masked value at scale 2^f."""
        whole, shift = fold(rate * gradient.factor, gradient.bits - parameter.bits)
        total: Additive = gradient.summands().scale(whole)
        previous = self._velocity.get(name)
        if self._momentum and previous is not None:
            kept = self._momentum * rate / self._rate
            total = total + previous.shares().scale(round(kept * (1 << shift)))
        if self._weight_decay:
            decay = round(rate * self._weight_decay * (1 << shift))
            total = total + parameter.masked().shares().scale(decay)
        return arithmetic.truncate(total, shift)


def fold(factor: Fraction, excess_bits: int) -> tuple[int, int]:
    """(m, s): multiplying by m and truncating by s bits applies `factor` and drops `excess_bits`.

    Where one or two bits fewer of the mantissa save a byte of every opened element, they go.
    Raises RangeError for a rate that this cannot express.
    """
    whole, shift = mantissa(factor, RATE_BITS)
    total = shift + excess_bits
    spare = total % 8
    if whole.bit_length() == RATE_BITS and spare in (1, 2):
        whole, total = round(Fraction(whole, 1 << spare)), total - spare
    if whole == 0 or not 1 <= total <= arithmetic.HEADROOM_BITS - 2:
        raise RangeError(f"a learning rate of about 2^{-shift} is too small for this scale")
    return whole, total
