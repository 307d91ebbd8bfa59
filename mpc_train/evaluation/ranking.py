"""AUC, and sums by bins of a score.

Up to 2048 rows AUC is exact: every pair is compared, and a pair of equal scores counts one half.
Beyond that, scores are put into 128 bins between -8 and 8, and pairs within a bin count one half:
the error is at most half the share of pairs within one bin, and falls with its square if scores are
smooth within a bin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpc_train.evaluation.figures import quotient
from mpc_train.training.chunk_sizes import LEVELS, PAIRS_AT_ONCE
from protocols.comparison.compare import below
from protocols.functions.splines import divide
from protocols.shares.arithmetic import multiply, remask, select, truncate
from protocols.shares.computed import computed
from protocols.shares.masked import Masked, MaskedBit, concatenate

PAIR_BITS = 20
"""Fractional bits of numbers of rows, at most 2^20, whose product is taken."""
LEVEL_THRESHOLDS = range(-(LEVELS // 2), LEVELS // 2 + 1)
"""The bin edges of an AUC of many rows, in eighths."""


def area_by_pairs(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    """The share of pairs (i of class 0, j of class 1) with z_i < z_j, plus half of those with z_i =
    z_j.

    z, y: [rows], at most 2048. With s = [z_i < z_j] − [z_j < z_i] for a pair of rows i < j,

        2 · Σ = positives · negatives + Σ s · (y_j − y_i).
    """
    f, rows = fraction_bits, z.shape[0]
    left, right = np.triu_indices(rows, 1)
    total: Masked | None = None
    for start in range(0, len(left), PAIRS_AT_ONCE):
        i, j = (side[start : start + PAIRS_AT_ONCE] for side in (left, right))
        bits = below((z.select(i) - z.select(j)).narrowed(64 - f), (0, 1))
        gain = y.select(j) - y.select(i)
        # [d < 0] + [d < 1] − 1, for d = z_i − z_j.
        signed = select(bits.select(0), gain) + select(bits.select(1), gain) - gain.shares()
        part = remask(signed.sum())
        total = part if total is None else total + part
        computed(total)
    if total is None:
        raise ValueError("auc: no pair of rows")
    sides = [y.sum(), (-y.sum()).shift(rows << f)]
    if f > PAIR_BITS:  # exact: numbers of rows
        total, *sides = (truncate(side.shares(), f - PAIR_BITS) for side in (total, *sides))
    scale = min(f, PAIR_BITS)
    pairs = multiply(sides[0], sides[1])
    ordered = pairs + total.shares().scale(1 << scale)
    # At scale 2^f and over 2^(2·log2(rows) − 4), so that a divisor is between 2^-7 and 2^2.
    down = 2 * scale - f + 2 * (rows - 1).bit_length() - 4
    return divide(truncate(ordered, down + 1), truncate(pairs, down), f)


def area_by_levels(counts: Masked, positives: Masked, rows: int, fraction_bits: int) -> Masked:
    """The same from the numbers of rows, and of rows of class 1, below each threshold: [2,
    thresholds].

    Σ over bins of (class 0 in the bin / all of it) · (class 1 above it and half of it / all of it).
    """
    f = fraction_bits
    total = positives.reshape(1)
    each, true = (
        concatenate([_zero(part), part, whole])
        for part, whole in (
            (counts.select(0), _zero(counts.select(0)).shift(rows << f)),
            (counts.select(1), total),
        )
    )
    false = each - true
    inside = false.select(slice(1, None)) - false.select(slice(0, -1))
    above = total.scale(2) - true.select(slice(1, None)) - true.select(slice(0, -1))
    negatives = (-total).shift(rows << f)
    shares = quotient(
        concatenate([inside.reshape(1, -1), above.reshape(1, -1)]),
        concatenate([negatives, total.scale(2)]).reshape(2, 1).broadcast_to((2, *inside.shape)),
        2 * rows,
        f,
    )
    return truncate(multiply(shares.select(0), shares.select(1)).sum(), f)


def _zero(like: Masked) -> Masked:
    return like.select(slice(0, 1)).scale(0)


def below_each(
    z: Masked, weights: Sequence[Masked], thresholds: Sequence[int], fraction_bits: int
) -> Masked:
    """For each threshold: how many z are below, at scale 2^f, and the sums of their weights.

    z, weights: [rows]. Returns [1 + weights, thresholds].
    """
    bits: MaskedBit = below(z, thresholds)
    found = [remask(bits.shares().sum(axis=1).scale(1 << fraction_bits))]
    found += [remask(select(bits, weight.reshape(1, -1)).sum(axis=1)) for weight in weights]
    return concatenate([part.reshape(1, -1) for part in found])


def binned(under: Masked, totals: Sequence[Masked]) -> Masked:
    """The sums for each bin, from the sums below each edge, [sums, edges], and those of all
    rows."""
    whole = concatenate([total.reshape(1, 1) for total in totals])
    nothing = whole.scale(0)
    edges = concatenate([nothing, under, whole], 1)
    return edges.select((slice(None), slice(1, None))) - edges.select((slice(None), slice(0, -1)))
