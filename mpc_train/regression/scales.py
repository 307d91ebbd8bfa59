"""The number of bits of every word of a regression: public, from the bounds that a job states.

Sums over rows are divided by 2^L, the power of two at or above their number, by a change of scale;
H and g below are sums over rows divided by it. Power-of-two bounds 2^D of H's diagonal and 2^G of
g's entries are divided out in the same way, so that words of H and g lie in [−1, 1]. Everything
else follows:

    S   about 1 / √(diag H), in [1, 2^12]: scales columns to one length, whatever their unit
    T   S H S / 2^C, 2^C at least the number of columns, so that all eigenvalues lie in [0, 1]
    Y   T^-1, by `protocols.functions.matrix_inverse`
    step = S Y S g · 2^(G − D − C)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mpc_train.base.bounds import WORD_BITS, bit_length
from protocols.errors import RangeError
from protocols.functions.matrix_inverse_plan import InversePlan, inverse_plan

PREDICTOR_BITS = 20
"""Fractional bits of linear predictors, means and residuals."""
PENALTY_BITS = 16
"""Significant bits of an L2 penalty."""
COEFFICIENT_BITS = 28
MOMENT_BITS = 34
"""The most fractional bits of H."""
GRADIENT_BITS, LASSO_GRADIENT_BITS = 40, 34
"""The most fractional bits of g; with an L1 penalty it is multiplied with all bits of S."""
SCALE_BITS = 20
"""Fractional bits of S."""
COARSE_SCALE_BITS = 8
"""Fractional bits of S when it scales a step, which need not be exact."""
SCALE_RANGE_BITS = 12
INPUT_BITS, MIN_INPUT_BITS = 16, 10
MIN_WEIGHT_BITS = 8
MIN_EIGENVALUE = Fraction(1, 1 << 13)
"""The smallest eigenvalue of the columns' correlation matrix: directions below it are cut off, see
`matrix_inverse`."""
RHO_BITS = 3
"""ρ = 1/8 in `lasso`, on a matrix with ones on its diagonal: fast for penalties of 0.001 to 0.3."""
LASSO_EIGENVALUE = Fraction(1, 1 << RHO_BITS)
"""The matrix that is inverted for an L1 penalty has no smaller eigenvalues."""
BLOCK_ROWS, MIN_BLOCK_ROWS = 1024, 64
"""Products are summed over this many rows before they are truncated, or over fewer if residuals are
large."""
CHUNK_ELEMENTS = 1 << 21
"""How many rows times columns are processed at a time: limits memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a job states about its numbers: largest magnitudes.

    inputs: of a feature. residual, weight: of a row, in the units of the family. coefficient: of a
    coefficient and of its change in one step. ridge: the L2 penalty. If rows have weights, residual
    and weight are multiplied by the largest.
    """

    columns: int
    rows: int
    inputs: Fraction
    residual: Fraction
    weight: Fraction
    coefficient: Fraction
    ridge: Fraction = Fraction(0)
    varying: bool = True
    """Whether weights differ from row to row, by the family or by row weights; otherwise they are
    1."""
    sparse: bool = False
    """Whether there is an L1 penalty, for which S is that of the first step throughout."""
    growth: int = 0
    """With a constant S, weights of later steps sum to at most 2^growth times those of the
    first."""
    gradient_noise: Fraction = Fraction(0)
    information_noise: Fraction = Fraction(0)
    """The largest noise that can be on an element of g and of H, as sums over rows."""
    followed: bool = False
    """Whether later gradients follow from those at 0 and H (`iteration.Released`)."""


@dataclass(frozen=True, slots=True)
class Scales:
    """The resulting numbers of bits; letters as in the module's docstring."""

    bounds: Bounds
    plan: InversePlan
    count: int
    """L"""
    diagonal: int
    """D"""
    gradient: int
    """G"""
    columns: int
    """C"""
    input_bits: int
    weight_bits: int
    moment_bits: int
    gradient_bits: int
    scaled_bits: int
    """Fractional bits of S g."""
    direction_bits: int
    """Fractional bits of Y S g."""
    block: int
    """How many rows are summed before a truncation of g."""
    chunk: int
    """How many rows are processed at a time."""

    @property
    def unit(self) -> int:
        """Y S g is 2^unit times S^-1 times the step."""
        return self.diagonal + self.columns - self.gradient


def scales(bounds: Bounds) -> Scales:
    """The bits for `bounds`; RangeError, which names the number that is too large, if they do not
    fit the ring."""
    inputs = max(bounds.inputs, Fraction(1))
    count = max(bounds.rows - 1, 1).bit_length()
    moved = bounds.information_noise / bounds.rows
    diagonal = bit_length(inputs**2 * bounds.weight + bounds.ridge + moved)
    gradient = bit_length(
        inputs * bounds.residual
        + bounds.ridge * bounds.coefficient
        + bounds.gradient_noise / bounds.rows
        + (bounds.columns * bounds.coefficient * moved if bounds.followed else 0)
    )
    # S has an error of a few per cent, and so has T's diagonal.
    columns = bit_length(Fraction(11, 10) * bounds.columns) + bounds.growth
    input_bits, weight_bits = _row_bits(bounds, inputs)
    least = LASSO_EIGENVALUE if bounds.sparse else MIN_EIGENVALUE
    plan = inverse_plan(bounds.columns, least / (1 << columns))
    room = WORD_BITS - bit_length(inputs * bounds.residual) - input_bits - PREDICTOR_BITS
    block = min(BLOCK_ROWS, 1 << max(room, 0))
    while block >= MIN_BLOCK_ROWS and not _has_room(bounds, inputs, input_bits, block):
        block //= 2
    if block < MIN_BLOCK_ROWS:
        raise RangeError(
            f"residuals up to {float(bounds.residual):g} times inputs up to {float(inputs):g}"
        )
    most = LASSO_GRADIENT_BITS if bounds.sparse else GRADIENT_BITS
    gradient_bits = min(most, input_bits + PREDICTOR_BITS + count + gradient - 1)
    moment_bits = min(MOMENT_BITS, 2 * input_bits + weight_bits + count + diagonal - 1)
    unit = diagonal + columns - gradient
    size = max(bit_length(bounds.coefficient) + unit, 0)
    scaled_bits = min(
        WORD_BITS - plan.inverse_bits - size, COARSE_SCALE_BITS + gradient_bits - 1, 36
    )
    direction_bits = min(
        WORD_BITS - COARSE_SCALE_BITS - size, plan.inverse_bits + scaled_bits - 1, 36
    )
    if scaled_bits < 16 or direction_bits + COARSE_SCALE_BITS + unit <= COEFFICIENT_BITS:
        raise RangeError(f"coefficients up to {float(bounds.coefficient):g} with these inputs")
    return Scales(
        bounds,
        plan,
        count,
        diagonal,
        gradient,
        columns,
        input_bits,
        weight_bits,
        moment_bits,
        gradient_bits,
        scaled_bits,
        direction_bits,
        block,
        max(BLOCK_ROWS, CHUNK_ELEMENTS // bounds.columns // BLOCK_ROWS * BLOCK_ROWS),
    )


def _has_room(bounds: Bounds, inputs: Fraction, input_bits: int, block: int) -> bool:
    """Whether g of so many rows fits before its truncation, with its noise."""
    most = block * inputs * bounds.residual + bounds.gradient_noise
    return bit_length(most) + input_bits + PREDICTOR_BITS <= WORD_BITS


def _row_bits(bounds: Bounds, inputs: Fraction) -> tuple[int, int]:
    """Fractional bits of inputs and weights, so that a block's sum of w x x' stays below 2^61."""
    most = BLOCK_ROWS * inputs**2 * bounds.weight + bounds.information_noise
    room = WORD_BITS - bit_length(most)
    if not bounds.varying:
        input_bits, weight_bits = min(INPUT_BITS, room // 2), 0
    else:
        input_bits = min(INPUT_BITS, (room - MIN_WEIGHT_BITS - 2) // 2)
        weight_bits = min(room - 2 * input_bits, PREDICTOR_BITS - 1)
    if input_bits < MIN_INPUT_BITS or (bounds.varying and weight_bits < MIN_WEIGHT_BITS):
        raise RangeError(
            f"inputs up to {float(inputs):g} with weights up to {float(bounds.weight):.3g}"
        )
    return input_bits, weight_bits


def check_weighted(bounds: Bounds) -> None:
    """RangeError if a residual times a row's weight does not fit before its truncation."""
    if bit_length(bounds.residual) + 2 * PREDICTOR_BITS > WORD_BITS:
        raise RangeError(f"residuals up to {float(bounds.residual):g}")


def square_bits(sizes: Scales) -> int:
    """Fractional bits of the sum of squared residuals."""
    bounds = sizes.bounds
    most = int(bounds.rows * bounds.residual**2) + 1
    return min(PREDICTOR_BITS, 60 - most.bit_length())


FOLLOWED_BITS, LEAST_FOLLOWED_BITS = 24, 14
"""The most fractional bits of H in a product with coefficients, and the least: noise on H is far
larger."""


def followed_bits(sizes: Scales) -> int:
    """Fractional bits of H in its product with coefficients. RangeError if these are too few."""
    bounds = sizes.bounds
    room = WORD_BITS - COEFFICIENT_BITS - bit_length(bounds.columns * bounds.coefficient)
    found = min(FOLLOWED_BITS, sizes.moment_bits - 1, room)
    if found < LEAST_FOLLOWED_BITS:
        raise RangeError(f"coefficients up to {float(bounds.coefficient):g} of so many inputs")
    return found
