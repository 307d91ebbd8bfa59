"""The public side of an adaptive rule: its numbers, their sequence, and whether they fit the
ring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

from mpc_train.base.bounds import WORD_BITS, bit_length
from protocols.errors import RangeError
from protocols.ring.rational import (
    FACTOR_BITS,
    MIN_FACTOR,
    ROOT_BITS,
    RootRange,
    root,
    root_range,
)

SQUARE_SHIFT = 12
"""A square is truncated by this many bits, and has as many above a squared gradient's bound."""
EXTRA_MEAN_BITS = 6
"""m has this many fractional bits more than a weight."""
MAX_EXTRA_BITS = 3
"""The update is computed with up to three bits more than a weight has."""
WEIGHT_BITS = 6
"""A decoupled decay is sized for weights up to 2^6."""
SCALAR_BITS = 64
"""Public running numbers are kept to this many significant bits."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The public part of an adaptive rule.

    first: β1, 0 without a mean of gradients. second: β2 or α. corrected: divide by the sums of the
    weights (Adam), otherwise by 1 / (1 − α) (RMSprop). momentum: of the update (RMSprop).
    """

    first: Fraction
    second: Fraction
    epsilon: Fraction
    corrected: bool = True
    momentum: Fraction = Fraction(0)
    weight_decay: Fraction = Fraction(0)
    decoupled: bool = False

    @property
    def largest_step(self) -> Fraction:
        """Bound of |update| / rate, from Cauchy and Schwarz; rounded up."""
        if not self.corrected:
            return ceiling(root(1 / (1 - self.second))) / (1 - self.momentum)
        ratio = 1 / (1 - self.first**2 / self.second)
        return ceiling((1 - self.first) * root(ratio / (1 - self.second)))


@dataclass(frozen=True, slots=True)
class Numbers:
    """Public running numbers, exact to 64 bits and the same at every node.

    square_scale: words of v for 1, if the last square has weight 1; square_sum, mean_sum: the sums
    of the weights in v and m; mean_scale: words of m for 1; rate: that of the last step.
    """

    square_scale: Fraction = Fraction(0)
    square_sum: Fraction = Fraction(0)
    mean_sum: Fraction = Fraction(0)
    mean_scale: Fraction = Fraction(1)
    rate: Fraction = Fraction(0)

    def advanced(self, moments: Moments) -> Numbers:
        """The numbers one step later: older squares count β2 times as much, older gradients β1
        times."""
        return replace(
            self,
            square_scale=trimmed(self.square_scale / moments.second),
            square_sum=trimmed(1 + moments.second * self.square_sum),
            mean_sum=trimmed(1 + moments.first * self.mean_sum),
        )

    def at(self, rate: Fraction, mean_scale: Fraction) -> Numbers:
        """The same numbers after a step with this rate."""
        return replace(self, rate=rate, mean_scale=mean_scale)


def square_scale_bits(gradient_limit: Fraction) -> int:
    """v's words for 1: at most 2^(this + 1) times the sum of its weights."""
    return WORD_BITS - SQUARE_SHIFT - 2 * bit_length(gradient_limit) - 1


def stepped(numbers: Numbers, moments: Moments, gradient_limit: Fraction) -> tuple[Numbers, int]:
    """The numbers one step later, and by how many bits the squares before it are rounded, so that
    v stays within its words. The first square has all the words."""
    most = square_scale_bits(gradient_limit)
    begins, halvings = not numbers.square_scale, 0
    numbers = numbers.advanced(moments)
    while numbers.square_scale * numbers.square_sum > 1 << (most + 1):
        numbers = replace(numbers, square_scale=numbers.square_scale / 2)
        halvings += 1
    if begins:
        numbers = replace(numbers, square_scale=Fraction(1 << most))
    return numbers, halvings


def extra_bits(moments: Moments, rate: Fraction, fraction_bits: int) -> int:
    """How many bits an update has beyond those of a weight; RangeError if it does not fit at
    all."""
    step = bit_length(moments.largest_step * rate)
    spare = FACTOR_BITS - 1 - fraction_bits - step
    if spare < 0:
        raise RangeError(
            f"a learning rate of about 2^{bit_length(rate)} with steps up to "
            f"{float(moments.largest_step):.1f} times as long: at fraction_bits = {fraction_bits} "
            f"updates up to 2^{FACTOR_BITS - 1 - fraction_bits} fit"
        )
    return min(spare, MAX_EXTRA_BITS)


def root_numbers(
    moments: Moments, numbers: Numbers, gradient_limit: Fraction
) -> tuple[Fraction, int, RootRange]:
    """A step's divisor: the scale of v̂, ε² as a word, and the range of v + ε²."""
    mean_square = numbers.square_sum if moments.corrected else 1 / (1 - moments.second)
    scale = numbers.square_scale * mean_square
    floor = round(moments.epsilon**2 * scale)
    if floor < 1:
        raise RangeError("epsilon is too small for the scale; see check_adaptive")
    most = numbers.square_scale * numbers.square_sum * gradient_limit**2
    return scale, floor, root_range(floor, int(most) + floor + 1)


@cache
def least_rate(moments: Moments, fraction_bits: int, gradient_limit: Fraction) -> Fraction:
    """The smallest rate of a step, a power of two: smaller rates, as at the end of a schedule, are
    raised to it.

    A quarter of a weight's unit, or more if the factor of a step would have too few bits.
    """
    bits, least = square_scale_bits(gradient_limit), Fraction(1, 1 << (fraction_bits + 2))
    for square_sum in (Fraction(1), 1 / (1 - moments.second)):
        for grown in (1, 2):
            square_scale = Fraction(grown << bits) / square_sum
            numbers = Numbers(square_scale, square_sum)
            scale, _, where = root_numbers(moments, numbers, gradient_limit)
            mean = root(square_scale * (1 << SQUARE_SHIFT))
            if moments.first:
                mean = Fraction(2 << (fraction_bits + EXTRA_MEAN_BITS)) / (1 - moments.first)
            factor = root(scale) * (1 << (fraction_bits + MAX_EXTRA_BITS)) / mean
            factor /= 8 ** (where.octaves - 1) * Fraction(2) ** (where.low // 2)
            least = max(least, MIN_FACTOR / factor)
    return Fraction(2) ** bit_length(least)


def check_adaptive(
    moments: Moments, rate: Fraction, fraction_bits: int, gradient_limit: Fraction
) -> None:
    """Raise RangeError, which says which number to change, unless all words of a run fit."""
    if moments.corrected and moments.first**2 >= moments.second:
        raise RangeError("betas: the square of the first must be below the second")
    least = Fraction(1, 1 << ((square_scale_bits(gradient_limit) - 1) // 2))
    if moments.epsilon < least:
        raise RangeError(
            f"epsilon: at least {float(least):.2g} with gradient_limit = {gradient_limit}; "
            "smaller gradients are rounding noise"
        )
    if gradient_limit / (1 - moments.first) > 1 << 10:
        raise RangeError("betas, gradient_limit: the running mean does not fit the ring")
    extra = extra_bits(moments, rate, fraction_bits)
    smallest = max(
        least_rate(moments, fraction_bits, gradient_limit), Fraction(1, 1 << fraction_bits)
    )
    if rate < smallest:
        raise RangeError(
            f"a learning rate of {float(rate):g} does not change weights at fraction_bits = "
            f"{fraction_bits}; use at least {float(smallest):.2g}"
        )
    decay = rate * moments.weight_decay if moments.decoupled else Fraction(0)
    if decay * (1 << (fraction_bits + WEIGHT_BITS + ROOT_BITS + extra)) > 1 << (WORD_BITS - 1):
        raise RangeError("weight_decay times learning_rate is too large for the ring")


def trimmed(value: Fraction) -> Fraction:
    """The value rounded to 64 significant bits, the same on every machine."""
    if not value:
        return value
    shift = SCALAR_BITS - (value.numerator.bit_length() - value.denominator.bit_length())
    return round(value * Fraction(2) ** shift) / Fraction(2) ** shift


def ceiling(value: Fraction) -> Fraction:
    """The value rounded up to a multiple of 1/16."""
    return Fraction(-((-value * 16) // 1), 16)
