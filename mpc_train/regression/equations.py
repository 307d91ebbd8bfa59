"""Sums over rows: the gradient g of the log-likelihood and its information matrix H.

    g = Xᵀ r / 2^L / 2^G,    H = Xᵀ diag(w) X / 2^L / 2^D

Rows are worked on in chunks, so that memory does not grow with their number, and within a chunk
summed in blocks of 1024 before a truncation, so that sums fit the ring whatever their number. What
is opened for a row and column: 8 bytes where weights vary, for w·x under a fresh mask; nothing else
depends on rows times columns, since products with X stay summands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpc_train.regression.family import Family
from mpc_train.regression.rows import rows_of
from mpc_train.regression.scales import (
    BLOCK_ROWS,
    COEFFICIENT_BITS,
    PREDICTOR_BITS,
    Scales,
    square_bits,
)
from protocols.arithmetic import matmul, multiply, remask, truncate
from protocols.masked import Additive, Masked, concatenate, public
from protocols.role import Role


@dataclass(frozen=True, slots=True)
class Data:
    """Inputs [rows, columns], the last column all ones, and labels [rows, 1]."""

    inputs: Masked
    labels: Masked


@dataclass(frozen=True, slots=True)
class Equations:
    """gradient: [columns, 1] at scale 2^gradient_bits. information: [columns, columns] at scale
    2^moment_bits, None unless asked for. squares: the sum of squared residuals, int64[1], at scale
    2^square_bits, None unless asked for."""

    gradient: Masked
    information: Masked | None
    squares: Masked | None


def prepared(inputs: Masked, labels: Masked, fraction_bits: int, sizes: Scales) -> Data:
    """Rows at scale 2^fraction_bits as the equations take them. 2 rounds, once."""
    x = at_scale(inputs, fraction_bits, sizes.input_bits)
    ones = np.full((inputs.shape[0], 1), 1 << sizes.input_bits, np.int64)
    y = at_scale(labels, fraction_bits, PREDICTOR_BITS)
    return Data(concatenate([x, public(inputs.role, ones)], 1), y)


def at_scale(x: Masked, bits: int, wanted: int) -> Masked:
    """x at scale 2^bits, at scale 2^wanted. 2 rounds if that is less, else none."""
    if bits > wanted:
        return truncate(x.shares(), bits - wanted)
    return x.scale(1 << (wanted - bits)).narrowed(64)


def equations(
    role: Role,
    family: Family,
    data: Data,
    coefficients: Masked,
    sizes: Scales,
    *,
    information: bool,
    squares: bool,
) -> Equations:
    """g and what is asked for at `coefficients`, [columns, 1] at scale 2^COEFFICIENT_BITS.

    Rounds for each chunk: 2 for the linear predictors, those of `rows_of`, 2 for g, and one
    more for H where weights vary.
    """
    gradient: Masked | None = None
    matrix: Masked | None = None
    total: Masked | None = None
    rows = data.inputs.shape[0]
    for start in range(0, rows, sizes.chunk):
        chunk = slice(start, min(start + sizes.chunk, rows))
        x, y = data.inputs.select(chunk), data.labels.select(chunk)
        shift = sizes.input_bits + COEFFICIENT_BITS - PREDICTOR_BITS
        predictor = truncate(matmul(x, coefficients), shift)
        found = rows_of(family, predictor, y, sizes.weight_bits)
        gradient = _plus(gradient, _gradient(x, found.residual, sizes))
        if information:
            matrix = _plus(matrix, _information(x, found.weight, sizes))
        if squares:
            square = multiply(found.residual, found.residual)
            lowered = truncate(square, 2 * PREDICTOR_BITS - square_bits(sizes))
            total = _plus(total, lowered.sum().reshape(1))
        if rows > sizes.chunk:
            role.finish()  # so that a chunk's words can go
    assert gradient is not None
    return Equations(gradient, matrix, total)


def _gradient(x: Masked, residual: Masked, sizes: Scales) -> Masked:
    parts = [
        matmul(x.select(block).transpose(), residual.select(block))
        for block in _blocks(x.shape[0], sizes.block)
    ]
    bits = sizes.input_bits + PREDICTOR_BITS + sizes.count + sizes.gradient
    return _summed(parts, bits - sizes.gradient_bits)


def _information(x: Masked, weight: Masked | None, sizes: Scales) -> Masked:
    weighted = x if weight is None else remask(multiply(x, weight))
    parts = [
        matmul(weighted.select(block).transpose(), x.select(block))
        for block in _blocks(x.shape[0], BLOCK_ROWS)
    ]
    bits = 2 * sizes.input_bits + sizes.weight_bits + sizes.count + sizes.diagonal
    return _summed(parts, bits - sizes.moment_bits)


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _summed(parts: list[Additive], shift: int) -> Masked:
    total: Masked | None = None
    for part in parts:
        total = _plus(total, truncate(part, shift))
    assert total is not None
    return total


def _plus(total: Masked | None, part: Masked) -> Masked:
    """A sum; its early form, which the sum may have outgrown, is dropped."""
    return (part if total is None else total + part).narrowed(64)
