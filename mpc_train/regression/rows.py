"""Residuals, weights and means of rows over shares, for the families of `family`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np

from mpc_train.regression.family import Family
from mpc_train.regression.noise import Noise
from mpc_train.regression.scales import PREDICTOR_BITS
from protocols.arrays import Words
from protocols.comparison.compare import below, weighted
from protocols.functions.exponential import exponential_bits, relative_exp
from protocols.functions.splines import evaluate, sigmoid
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.masked import Masked, concatenate

F = PREDICTOR_BITS
MIN_WEIGHT = Fraction(5, 1 << 16)
"""Added to σ(1 − σ): the spline of σ has an error of 2^-14, and a sum of weights may not be
negative.

It does not move coefficients, and makes standard errors smaller: by 0.5% if 1 row in 100 is of
class 1, by 2% if 3 in 1000 are.
"""
MIN_MEAN_BITS, MAX_MEAN_BITS = -6, 12
LOG2 = Fraction(6931471805599453094172321, 10**25)


@dataclass(frozen=True, slots=True)
class Rows:
    """Residuals [rows, 1] and, if they vary, weights [rows, 1] at scale 2^weight_bits."""

    residual: Masked
    weight: Masked | None


def rows_of(family: Family, predictor: Masked, label: Masked, weight_bits: int) -> Rows:
    """Residuals and weights of rows; both arguments at scale 2^PREDICTOR_BITS, [rows, 1].

    Rounds: linear 0, logistic 8, Poisson 10, gamma 12.
    """
    if family.name == "linear":
        return Rows(label - predictor, None)
    if family.name == "logistic":
        mean = sigmoid(predictor, F)
        spread = multiply(mean, (-mean).shift(1 << F))
        spread = spread.shift(round(MIN_WEIGHT * (1 << 2 * F)))
        return Rows(label - mean, truncate(spread, 2 * F - weight_bits))
    if family.name == "poisson":
        found = relative_exp(predictor, F, family.least, family.most)
        bits = exponential_bits(family.most)
        return Rows(label - truncate(found, bits - F), truncate(found, bits - weight_bits))
    found = relative_exp(-predictor, F, -family.most, -family.least)
    bits = exponential_bits(-family.least)
    kept = min(bits - 1, 28)
    ratio = truncate(multiply(label, truncate(found, bits - kept)), kept)
    return Rows(ratio.shift(-(1 << F)), None)


def mean_of(family: Family, predictor: Masked) -> Masked:
    """The mean of rows with a logarithmic link, at scale 2^PREDICTOR_BITS."""
    found = relative_exp(predictor, F, family.least, family.most)
    return truncate(found, exponential_bits(family.most) - F)


def logarithm_of_mean(labels: Sequence[Masked], noise: Noise | None = None) -> Masked:
    """log(mean of labels) at scale 2^PREDICTOR_BITS, int64[1], within 2^-9.

    labels: chunks [rows, 1], not negative; a mean outside 2^-6 to 2^12 is replaced by the nearer
    end. noise: on their sum. 12 rounds, for one number: the start of iterations with a logarithmic
    link.
    """
    rows = sum(chunk.shape[0] for chunk in labels)
    count = max(rows - 1, 1).bit_length()
    total = concatenate([chunk.sum().reshape(1) for chunk in labels]).sum()
    summed = total.shares()
    if noise is not None:
        summed = noise.on_labels(summed, F)
    mean = truncate(summed, count).reshape(1).narrowed(F + 16)
    exponents = range(MIN_MEAN_BITS, MAX_MEAN_BITS)
    bits = below(mean, [1 << (F + e) for e in exponents])
    # Above the last threshold 2^-11, below the first one 2^6, otherwise the power that brings the
    # mean to [1, 2).
    top = MAX_MEAN_BITS - 1
    powers = [1 << (top - e + 1) for e in exponents]
    power = remask(weighted(bits, _steps([*powers, 1])).shift(1))
    unit = truncate(multiply(mean, power), top).narrowed(F + 16)
    logs = [round((e - 1) * LOG2 * (1 << F)) for e in exponents] + [round(top * LOG2 * (1 << F))]
    log = remask(weighted(bits, _steps(logs)).shift(logs[-1]))
    with localcontext(prec=40):
        correction = Fraction((Decimal(1 << count) / rows).ln())  # the same on every machine
    return (log + evaluate("LOG", unit, F, upper=2)).shift(round(correction * (1 << F)))


def _steps(values: list[int]) -> Words:
    """The change that each bit [x < threshold] adds to the last value."""
    return np.array([low - high for low, high in pairwise(values)], np.int64)
