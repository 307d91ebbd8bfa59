"""Metrics over shares on the held-out rows: only the listed numbers are revealed.

Each metric ends in one secret number that passes the reveal gate, and a public step that makes
the metric out of it: a count over the number of rows, a sum of errors over the number of rows.
AUC and R² are quotients of secrets and are divided over shares, so that neither the number of
positives nor the spread of the labels becomes known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from protocols.arithmetic import multiply, remask, select, truncate
from protocols.comparison import argmax, negative
from protocols.crypten_backend import MaskedTensor
from protocols.fixed_point import mantissa
from protocols.functions import divide
from protocols.masked import Additive, Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

PAIRS_AT_ONCE = 1 << 17
"""AUC compares every pair of rows; so many at once, to bound memory."""


@dataclass(frozen=True, slots=True)
class SecretMetric:
    """A metric before it is revealed: `finish` makes the number from the revealed words."""

    name: str
    value: Masked
    finish: Callable[[float], float]


def secret_metrics(job: Job, outputs: MaskedTensor, labels: MaskedTensor) -> list[SecretMetric]:
    """The job's metrics of model outputs [rows, outputs] against labels of the same shape."""
    z, y = outputs.masked(), labels.masked()
    f, rows = job.fraction_bits, z.shape[0]
    found = []
    for name in job.reveal.metrics:
        if name == "accuracy":
            total = _correct_binary(z, y, f) if job.outputs == 1 else _correct_classes(z, y)
            found.append(SecretMetric(name, remask(total), _over(rows)))
        elif name == "auc":
            found.append(SecretMetric(name, _auc(z.reshape(-1), y.reshape(-1), f), _as_it_is))
        elif name == "mse":
            value = remask(_sum_of_squares(z - y, f))
            found.append(SecretMetric(name, value, _over(rows)))
        elif name == "mae":
            found.append(SecretMetric(name, remask(_absolute_error(z, y)), _over(rows)))
        elif name == "r2":
            found.append(SecretMetric(name, _unexplained(z, y, f), lambda share: 1 - share))
    return found


def _over(rows: int) -> Callable[[float], float]:
    return lambda total: total / rows


def _as_it_is(value: float) -> float:
    return value


def _correct_binary(z: Masked, y: Masked, fraction_bits: int) -> Additive:
    """Number of rows in which [z >= 0] is the label, at scale 2^f."""
    guess = negative(z).negate()
    # g·y + (1 − g)(1 − y) = 1 − y − g + 2·g·y
    agree = select(guess, y).scale(2) - y.shares() - guess.shares().scale(1 << fraction_bits)
    return agree.shift(1 << fraction_bits).sum()


def _correct_classes(z: Masked, y: Masked) -> Additive:
    """Number of rows in which the largest output is the label's, at the scale of y."""
    return select(argmax(z), y).sum()


def _sum_of_squares(x: Masked, fraction_bits: int) -> Additive:
    """At scale 2^f; each square is truncated first, so that any number of rows fits."""
    return truncate(multiply(x, x), fraction_bits).sum().shares()


def _absolute_error(z: Masked, y: Masked) -> Additive:
    error = z - y
    return (error.shares() - select(negative(error), error).scale(2)).sum()


def _unexplained(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    """1 − R²: the squared error over the squared deviation from the mean label."""
    rows = z.shape[0]
    whole, shift = mantissa(Fraction(1, rows), 20)
    mean = truncate(y.sum().shares().scale(whole), shift)
    scale = (rows - 1).bit_length()
    error, spread = (truncate(_sum_of_squares(x, fraction_bits), scale) for x in (z - y, y - mean))
    return divide(error, spread, fraction_bits)


def _auc(z: Masked, y: Masked, fraction_bits: int) -> Masked:
    """Share of (negative, positive) pairs in which the positive has the larger output."""
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
