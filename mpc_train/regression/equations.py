"""Sums over rows: the gradient g of the log-likelihood and its information matrix H.

    g = Xᵀ r / 2^L / 2^G,    H = Xᵀ diag(w) X / 2^L / 2^D

Rows are processed in chunks, so that memory does not grow with their number, and within a chunk
summed in blocks of 1024 before a truncation, so that sums of any number of rows fit the ring. Per
row and column 8 bytes are opened if weights vary, for w·x under a fresh mask; nothing else depends
on rows times columns, because products with X stay summands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpc_train.regression.family import Family
from mpc_train.regression.noise import Noise
from mpc_train.regression.rows import Rows, rows_of
from mpc_train.regression.scales import (
    BLOCK_ROWS,
    COEFFICIENT_BITS,
    PREDICTOR_BITS,
    Scales,
    square_bits,
)
from protocols.arrays import Words
from protocols.ring import products as ring
from protocols.shares.arithmetic import bilinear, matmul, multiply, remask, truncate
from protocols.shares.computed import computed
from protocols.shares.masked import Additive, Masked, concatenate, public


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows: inputs [rows, columns], where the last column is all ones, and labels [rows, 1].
    weights: how many times each row counts, [rows, 1] at scale 2^PREDICTOR_BITS; None: once."""

    inputs: Masked
    labels: Masked
    weights: Masked | None = None


Data = tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Equations:
    """gradient: [columns, 1] at scale 2^gradient_bits. information: [columns, columns] at scale
    2^moment_bits, None unless asked for. squares: the sum of squared residuals, int64[1], at scale
    2^square_bits, None unless asked for."""

    gradient: Masked
    information: Masked | None
    squares: Masked | None


def prepared(
    inputs: Masked,
    labels: Masked,
    rows: NDArray[np.int64],
    fraction_bits: int,
    sizes: Scales,
    weights: Masked | None = None,
) -> Data:
    """All rows, at scale 2^fraction_bits, in the form that the equations need. 2 rounds per chunk,
    once."""
    role, found = inputs.role, []
    for start in range(0, len(rows), sizes.chunk):
        some = rows[start : start + sizes.chunk]
        x = at_scale(inputs.select(some), fraction_bits, sizes.input_bits)
        y = at_scale(labels.select(some), fraction_bits, PREDICTOR_BITS)
        ones = public(role, np.full((len(some), 1), 1 << sizes.input_bits, np.int64))
        w = None
        if weights is not None:
            w = at_scale(weights.select(some), fraction_bits, PREDICTOR_BITS)
        chunk = Chunk(concatenate([x, ones], 1), y, w)
        if len(rows) > sizes.chunk:
            computed(chunk.inputs, chunk.labels, *(() if w is None else (w,)))
        found.append(chunk)
    return tuple(found)


def at_scale(x: Masked, bits: int, wanted: int) -> Masked:
    """x, given at scale 2^bits, at scale 2^wanted. 2 rounds if that is less, otherwise none."""
    if bits > wanted:
        return truncate(x.shares(), bits - wanted).narrowed(64)
    return x.scale(1 << (wanted - bits)).narrowed(64)


def equations(
    family: Family,
    data: Data,
    coefficients: Masked,
    sizes: Scales,
    *,
    information: bool,
    squares: bool,
    noise: Noise | None = None,
) -> Equations:
    """g and the other requested sums at `coefficients`, [columns, 1] at scale 2^COEFFICIENT_BITS.

    noise: on g and H, without a round or a byte more. It is in the first block of the first chunk.
    H is then symmetric to its last bit.
    Rounds for each chunk: 2 for the linear predictors, those of `rows_of`, 2 for g, and one more
    for H if weights vary; if rows have weights, 2 more.
    """
    totals: dict[str, Masked] = {}
    for number, chunk in enumerate(data):
        mine = None if number else noise
        x = chunk.inputs
        shift = sizes.input_bits + COEFFICIENT_BITS - PREDICTOR_BITS
        predictor = truncate(matmul(x, coefficients), shift)
        found = rows_of(family, predictor, chunk.labels, sizes.weight_bits)
        counted = found if chunk.weights is None else _counted(found, chunk.weights, sizes)
        sums = {"gradient": _gradient(x, counted.residual, sizes, mine)}
        if information:
            sums["information"] = _information(x, counted.weight, sizes, mine)
        if squares:
            square = multiply(found.residual, found.residual)
            lowered = truncate(square, 2 * PREDICTOR_BITS - square_bits(sizes))
            sums["squares"] = lowered.sum().reshape(1)
        for name, part in sums.items():
            totals[name] = (part if name not in totals else totals[name] + part).narrowed(64)
        if len(data) > 1:
            computed(*totals.values())
    if information and noise is not None:
        totals["information"] = _mirrored(totals["information"])
    return Equations(totals["gradient"], totals.get("information"), totals.get("squares"))


def _mirrored(information: Masked) -> Masked:
    """H with its part above the diagonal also below it.

    Every element of every block is rounded by itself, so that an element and its mirror image may
    differ by some units. Noise is the same on both: their difference would tell, without any, how
    the sums of the blocks after the first are rounded.
    """
    rows, columns = np.indices(information.shape)
    return information.select((np.minimum(rows, columns), np.maximum(rows, columns)))


def _counted(rows: Rows, weights: Masked, sizes: Scales) -> Rows:
    """Residuals and weights, multiplied by the row weights `weights`. 2 rounds."""
    residual = truncate(multiply(weights, rows.residual), PREDICTOR_BITS)
    if rows.weight is None:
        return Rows(residual, truncate(weights.shares(), PREDICTOR_BITS - sizes.weight_bits))
    return Rows(residual, truncate(multiply(weights, rows.weight), PREDICTOR_BITS))


def _gradient(x: Masked, residual: Masked, sizes: Scales, noise: Noise | None) -> Masked:
    whole = sizes.input_bits + PREDICTOR_BITS
    bits = whole + sizes.count + sizes.gradient
    blocks = _products(x, residual, sizes.block)
    if noise is not None:
        blocks = noise.on_gradient(blocks, whole)
    return truncate(blocks, bits - sizes.gradient_bits).sum(axis=0)


def _information(x: Masked, weight: Masked | None, sizes: Scales, noise: Noise | None) -> Masked:
    weighted = x if weight is None else remask(multiply(x, weight))
    whole = 2 * sizes.input_bits + sizes.weight_bits
    bits = whole + sizes.count + sizes.diagonal
    blocks = _products(weighted, x, BLOCK_ROWS)
    if noise is not None:
        blocks = noise.on_information(blocks, whole)
    return truncate(blocks, bits - sizes.moment_bits).sum(axis=0)


def _products(x: Masked, y: Masked, size: int) -> Additive:
    """x' y of each block of rows, [blocks, columns of x, columns of y]."""
    rows = x.shape[0]
    blocks = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    shape = (len(blocks), x.shape[1], y.shape[1])

    def product(pairs: ring.Pairs, negative: bool) -> Words:
        out = np.empty(shape, np.int64)
        for place, block in enumerate(blocks):
            parts = [(left[block].T, right[block]) for left, right in pairs]
            out[place] = ring.sum_of_products(parts, negative)
        return out

    return bilinear("block products", product, x, y, shape)
