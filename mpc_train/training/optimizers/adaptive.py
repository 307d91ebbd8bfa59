"""Adam, AdamW and RMSprop over shares: steps divided by the root of a mean square.

    Adam     m ← β1·m + g,  v ← β2·v + g²,  w ← w − rate · m̂ / √(v̂ + ε²)
    AdamW    the same, and w ← w · (1 − rate · decay)
    RMSprop  v ← α·v + (1 − α)·g²,  b ← μ·b + rate · g / √(v + ε²),  w ← w − b

m̂ and v̂ are the weighted means (Adam's bias correction), public factors that cost nothing. ε enters
under the root, as its square: torch.optim has √v̂ + ε, which is the same for v̂ well above ε² and
up to 1.42 times larger near it.

The state always remains shared: m as words with a constant scale, v as words whose public scale
changes. v is never multiplied by β2: instead the weight of each new square is 1/β2 times the last
one's, and whenever the scale has doubled, v is truncated by one bit. So squares are added with one
rounding each, by the truncation that they need anyway.

All parameters are one vector (`gradients`). Rounds of a step after the gradients' summands: 2 for
g, 1 to the first opening of g², 9 to the product with the root
(`protocols.functions.inverse_root`), 2 for the update: about 14, whatever the number of tensors.
Opened by an evaluator, for one parameter: about 140 bytes; SGD opens 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from mpc_train.base.bounds import bit_length
from mpc_train.training.optimizers.gradients import (
    Gradients,
    Seen,
    Take,
    exact_limit,
    join,
    joined,
    shown,
    subtract,
    take_gradients,
    unseen,
    weights,
)
from mpc_train.training.optimizers.moments import (
    EXTRA_MEAN_BITS,
    SQUARE_SHIFT,
    Moments,
    Numbers,
    extra_bits,
    root_numbers,
    stepped,
)
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.inverse_root import times_inverse_root
from protocols.ring.rational import HEADROOM_BITS, ROOT_BITS, root
from protocols.roles.deferred import combine
from protocols.shares.arithmetic import multiply, truncate
from protocols.shares.masked import Additive, Early, Masked

MIN_MEAN_SHIFT = 16
"""The bits to which β1 is rounded: a word of m stays below 2^10 times 2^(20 + 6 + 16)."""


class Adaptive:
    """An optimizer of the kind above over a set of parameters.

    gradient_limit: the stated bound of a gradient's magnitude, including its decay. seen: called
    with what a step rounds. RangeError if numbers do not fit the ring; `check_adaptive` detects
    this before a run.
    """

    def __init__(
        self,
        parameters: Mapping[str, MaskedTensor],
        moments: Moments,
        *,
        fraction_bits: int,
        gradient_limit: Fraction,
        seen: Seen = unseen,
    ) -> None:
        self._parameters = dict(parameters)
        self._moments = moments
        self._fraction_bits = fraction_bits
        self._limit = gradient_limit
        self._seen = seen
        self._square: Masked | None = None
        self._mean: Masked | None = None
        self._change: Masked | None = None
        self._numbers = Numbers()

    def step(self, rate: Fraction, clip: Any = None, take: Take = take_gradients) -> None:
        """Update every parameter from its gradient, as `take` gives it, and delete the gradient.

        clip: a function from gradients to gradients (`mpc_train.training.optimizers.clipping`).
        """
        gradients = take(self._parameters)
        if clip is not None:
            gradients = clip(gradients)
        change = self._step(gradients, rate)
        subtract(self._parameters, change)

    def _step(self, gradients: Gradients, rate: Fraction) -> Masked:
        moments, square = self._moments, self._square
        numbers, halvings = stepped(self._numbers, moments, self._limit)
        if square is not None and halvings:
            square = truncate(square.shares(), halvings)
        gradient, gradient_scale = self._gradient(gradients, numbers)
        mean, mean_scale = gradient, gradient_scale
        if moments.first:
            mean, mean_scale = self._new_mean(gradients)
        square = _sum(square, truncate(multiply(gradient, gradient), SQUARE_SHIFT))
        change = self._quotient(mean, mean_scale, square, numbers, rate)
        self._square, self._numbers = square, numbers.at(rate, mean_scale)
        if moments.first:
            self._mean = mean
        if moments.momentum:
            self._change = change
        return change

    def _gradient(self, gradients: Gradients, numbers: Numbers) -> tuple[Masked, Fraction]:
        """The gradients in masked form, such that the square of 1 has the words of
        `square_scale`."""
        scale = root(numbers.square_scale * (1 << SQUARE_SHIFT))
        half = HEADROOM_BITS // 2  # its square has to fit
        total, shift = joined(gradients, scale, self._limit, self._seen, half)
        gradient = truncate(self._decayed(total, scale * (1 << shift)), shift)
        self._seen(gradient, min(exact_limit(shift), exact_limit(half)))
        return gradient, scale

    def _new_mean(self, gradients: Gradients) -> tuple[Masked, Fraction]:
        """m at a constant scale: if tensors have the same factor up to powers of two, as in a
        network without means inside, their mantissas are exact."""
        moments = self._moments
        finest = max(gradient.words_per_unit for gradient in gradients.values())
        ratios = [finest / gradient.words_per_unit for gradient in gradients.values()]
        if any(ratio.denominator > 1 for ratio in ratios):
            finest, ratios = finest * 1024, [ratio * 1024 for ratio in ratios]
        shift = bit_length(finest) - self._fraction_bits - EXTRA_MEAN_BITS
        if shift < MIN_MEAN_SHIFT:  # clipped gradients have few bits, but β1 and a decay need more
            more = 1 << (MIN_MEAN_SHIFT - shift)
            finest, ratios = finest * more, [ratio * more for ratio in ratios]
            shift = MIN_MEAN_SHIFT
        scale = finest / (1 << shift)
        wholes = [round(ratio) for ratio in ratios]
        shown(self._seen, gradients, wholes, 1 << HEADROOM_BITS)
        parts = [
            gradient.summands.scale(whole)
            for whole, gradient in zip(wholes, gradients.values(), strict=True)
        ]
        total = self._decayed(join(parts), finest)
        if self._mean is not None:
            kept = moments.first * scale / self._numbers.mean_scale
            total = total + self._mean.shares().scale(round(kept * (1 << shift)))
        mean = truncate(total, shift)
        self._seen(mean, exact_limit(shift))
        return mean, scale

    def _decayed(self, total: Additive, words_per_unit: Fraction) -> Additive:
        """The gradient with decay · w, if the decay belongs to the gradient."""
        moments = self._moments
        if not moments.weight_decay or moments.decoupled:
            return total
        factor = moments.weight_decay * words_per_unit / (1 << self._fraction_bits)
        return total + weights(self._parameters).scale(round(factor))

    def _quotient(
        self,
        mean: Masked,
        mean_scale: Fraction,
        square: Masked,
        numbers: Numbers,
        rate: Fraction,
    ) -> Masked:
        """rate · m̂ / √(v̂ + ε²) at the scale of the weights, plus decay and momentum."""
        moments = self._moments
        mean_sum = numbers.mean_sum if moments.corrected else Fraction(1)
        scale, floor, where = root_numbers(moments, numbers, self._limit)
        extra = extra_bits(moments, rate, self._fraction_bits)
        wanted = rate * root(scale) * (1 << (self._fraction_bits + extra))
        shift = ROOT_BITS + extra
        total = times_inverse_root(
            mean, square.shift(floor), where, wanted / (mean_scale * mean_sum)
        )
        if moments.decoupled and moments.weight_decay:
            decay = round(rate * moments.weight_decay * (1 << shift))
            total = total + weights(self._parameters).scale(decay)
        if moments.momentum and self._change is not None:
            kept = moments.momentum * rate / numbers.rate
            total = total + self._change.shares().scale(round(kept * (1 << shift)))
        change = truncate(total, shift)
        self._seen(change, exact_limit(shift))
        return change

    def state(self) -> dict[str, Masked]:
        """The shared state, vectors over all parameters, for checkpoints."""
        named = {"square": self._square, "mean": self._mean, "change": self._change}
        return {name: value for name, value in named.items() if value is not None}

    def numbers(self) -> dict[str, Fraction]:
        """The fields of `Numbers`."""
        numbers = self._numbers
        return {
            "square_scale": numbers.square_scale,
            "square_sum": numbers.square_sum,
            "mean_sum": numbers.mean_sum,
            "mean_scale": numbers.mean_scale,
            "rate": numbers.rate,
        }

    def restore(self, state: Mapping[str, Masked], numbers: Mapping[str, Fraction]) -> None:
        self._square = state.get("square")
        self._mean = state.get("mean")
        self._change = state.get("change")
        self._numbers = Numbers(**numbers)


def _sum(square: Masked | None, new: Masked) -> Masked:
    """v with a new square; the early form of the square's truncation is used for the comparison."""
    if square is None:
        return new
    total, early = square + new, new.early
    if early is None:
        return total
    lam = None
    if total.role.is_dealer and early.lam is not None:
        lam = early.lam if square.lam is None else early.lam + square.lam
    delta = combine(lambda a, b: a + b, square.delta, early.delta)
    return replace(total, early=Early(early.bits, delta, lam))
