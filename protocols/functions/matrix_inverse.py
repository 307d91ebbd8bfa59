"""The inverse of a secret symmetric matrix by a public number of matrix products.

For T with eigenvalues in [0, 1], the scaled Newton-Schulz iteration

    Y ← Y · (2ζ − ζ² · T · Y),   Y = 1 at first,

squares the distance of T·Y from 1. The public factors ζ are those of the interval [l, 1]: as long
as the smallest eigenvalue's part is far from 1, each step brings it four times nearer instead of
twice (Pan and Schreiber 1991). Each step is two products and 4 rounds whatever the size, where an
elimination has a quotient of secrets, some twenty rounds, for every column.

* Rounding errors of a step are squared away by the next one: they do not add up.
* Directions with eigenvalues from `least` up are inverted to 2^-10 of themselves and better.
* Below it, the inverse is cut off smoothly: it stays under the public bound `growth`. A singular T
  therefore neither overflows nor shows; `unresolved` says, over shares, which rows it concerns.

Numerical stability of the iteration for symmetric positive matrices: Söderström and Stewart 1974.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from protocols.functions.matrix_inverse_plan import FACTOR_BITS, UNRESOLVED_BITS, InversePlan
from protocols.shares.arithmetic import matmul, multiply, truncate
from protocols.shares.masked import Masked


def inverse(matrix: Masked, plan: InversePlan) -> Masked:
    """Y near T^-1 at scale 2^inverse_bits for T [size, size] at scale 2^matrix_bits.

    `plan.rounds` rounds; opened by an evaluator: about 22 bytes an element and step.
    """
    if matrix.shape != (plan.size, plan.size):
        raise ValueError(f"inverse: a matrix of shape {matrix.shape}, planned for {plan.size}")
    one = np.eye(plan.size, dtype=np.int64)
    first, *others = plan.factors
    scaled = matrix.shares().scale(-_square(first))
    scaled = scaled.shift(one * (first << (plan.matrix_bits + 1)))
    y = truncate(scaled, plan.matrix_bits + FACTOR_BITS - plan.inverse_bits)
    shift = plan.matrix_bits + plan.inverse_bits + FACTOR_BITS - plan.residual_bits
    for factor in others:
        product = matmul(matrix, y).scale(_square(factor))
        twice = factor << (plan.residual_bits + 1 - FACTOR_BITS)
        residual = (-truncate(product, shift)).shift(one * twice)
        y = truncate(matmul(y, residual), plan.residual_bits)
    return y


_REST_BITS = 24


def unresolved(matrix: Masked, inverted: Masked, plan: InversePlan) -> Masked:
    """For each row of T the part of it that Y does not invert: [size] at scale 2^UNRESOLVED_BITS.

    The squared length of each row of 1 - T·Y. A direction v of length 1 with eigenvalue 0 adds
    v_j² to row j, one from `least` up at most 2^-20 in all: a row that takes part in a dependence
    is told from one that does not, however little it takes part, down to about 2^-18. 4 rounds.
    """
    product = truncate(matmul(matrix, inverted), plan.matrix_bits + plan.inverse_bits - _REST_BITS)
    rest = (-product).shift(np.eye(plan.size, dtype=np.int64) << _REST_BITS)
    return truncate(multiply(rest, rest), 2 * _REST_BITS - UNRESOLVED_BITS).sum(axis=1)


def _square(factor: int) -> int:
    """ζ² at scale 2^FACTOR_BITS."""
    return round(Fraction(factor * factor, 1 << FACTOR_BITS))
