"""AUC, and sums by bins of a score.

Up to 2048 rows AUC is exact: every pair is compared. Beyond, scores are put into 128 bins between
-8 and 8, and pairs within a bin count one half: what that changes is at most half the share of
pairs that fall together, and vanishes with its square where scores are smooth within a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from protocols.arithmetic import multiply, remask, select, truncate
from protocols.comparison import below, negative
from protocols.functions import divide
from protocols.masked import Additive, Masked, MaskedBit, concatenate

PAIRS_AT_ONCE = 1 << 17
"""So many comparisons at once, to bound memory."""
MOST_PAIRED_ROWS = 2048
LEVELS, LARGEST = 128, 8


def area(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    """Share of (negative, positive) pairs in which the positive has the larger score."""
    if z.shape[0] <= MOST_PAIRED_ROWS:
        return _by_pairs(z, y, fraction_bits)
    return _by_levels(z, y, fraction_bits)


def _by_pairs(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    rows = z.shape[0]
    block = max(1, PAIRS_AT_ONCE // rows)
    ranks = []
    for start in range(0, rows, block):
        stop = min(start + block, rows)
        left = z.select(slice(start, stop)).reshape(stop - start, 1)
        lower = negative(left - z.reshape(1, rows))
        ranks.append(remask(select(lower, y.reshape(1, rows)).sum(axis=1)))
    ordered: Additive | None = None
    negatives = (-y).shift(1 << fraction_bits)
    for index, rank in enumerate(ranks):
        part = negatives.select(slice(index * block, index * block + rank.shape[0]))
        product = multiply(part, rank).sum()
        ordered = product if ordered is None else ordered + product
    if ordered is None:
        raise ValueError("auc: no rows")
    pairs = multiply(negatives.sum(), y.sum())
    bits = fraction_bits + 2 * (rows - 1).bit_length() - 4
    return divide(truncate(ordered, bits), truncate(pairs, bits), fraction_bits)


def _by_levels(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    f, rows = fraction_bits, z.shape[0]
    one = 1 << f
    step = 2 * LARGEST * one // LEVELS
    thresholds = [-LARGEST * one + step * k for k in range(LEVELS + 1)]
    counts, (positives,) = cumulative(z, [y], thresholds, f)
    # Of each bin: its negatives, and the positives above it and half of those within.
    scale = rows.bit_length()
    total = y.sum()
    edges = concatenate([_zero(counts), positives, total.reshape(1)])
    whole = _zero(counts).shift(rows << f)
    everybody = concatenate([_zero(counts), counts, whole])
    negatives = everybody - edges
    inside = negatives.select(slice(1, None)) - negatives.select(slice(0, -1))
    twice = edges.select(slice(1, None)) + edges.select(slice(0, -1))
    above = total.scale(2).reshape(1) - twice
    inside, above = truncate(inside.shares(), scale - 8), truncate(above.shares(), scale - 8)
    ordered = truncate(multiply(inside, above).sum(), f + 12)
    sides = concatenate([(whole - total.reshape(1)), total.reshape(1).scale(2)])
    sides = truncate(sides.shares(), scale - 8)
    pairs = truncate(multiply(sides.select(0), sides.select(1)), f + 12)
    return divide(ordered, pairs, f)


def _zero(like: Masked) -> Masked:
    return like.select(slice(0, 1)).scale(0)


def cumulative(
    z: Masked, weights: Sequence[Masked], thresholds: Sequence[int], fraction_bits: int
) -> tuple[Masked, list[Masked]]:
    """For each threshold: how many z are below, at scale 2^f, and the sums of weights of those."""
    count, rows = len(thresholds), z.shape[0]
    block = max(1, PAIRS_AT_ONCE // count)
    totals: list[Masked | None] = [None] * (1 + len(weights))

    def add(place: int, part: Additive) -> None:
        words, before = remask(part), totals[place]
        totals[place] = words if before is None else before + words

    for start in range(0, rows, block):
        where = slice(start, min(start + block, rows))
        bits: MaskedBit = below(z.select(where), thresholds)
        add(0, bits.shares().sum(axis=1).scale(1 << fraction_bits))
        for place, weight in enumerate(weights, 1):
            add(place, select(bits, weight.select(where).reshape(1, -1)).sum(axis=1))
        z.role.finish()
    first, *others = (total for total in totals if total is not None)
    return first, others


def binned(
    z: Masked, weights: Sequence[Masked], bins: int, fraction_bits: int
) -> tuple[Masked, list[Masked]]:
    """Counts and sums of weights for `bins` bins of equal width of the probability 1/(1 + e^-z)."""
    f, rows = fraction_bits, z.shape[0]
    # Public constants from a float: rounded to 2^-10, which every machine does alike.
    thresholds = [round(log(k / (bins - k)) * 1024) << (f - 10) for k in range(1, bins)]
    counts, parts = cumulative(z, weights, thresholds, f)
    whole = [_zero(counts).shift(rows << f), *(weight.sum().reshape(1) for weight in weights)]
    found = []
    for below_each, total in zip([counts, *parts], whole, strict=True):
        edges = concatenate([_zero(counts), below_each, total])
        found.append(edges.select(slice(1, None)) - edges.select(slice(0, -1)))
    return found[0], found[1:]
