"""How fast this machine computes: measured in a fraction of a second, for estimates of time.

A step's time has three parts: what the interpreter does, which a dry run does as well; passes over
memory; and matrix products. The machine may be busy, and other nodes' machines may be others: what
comes out is an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protocols.linkage.intersection import Exponent
from protocols.ring import kernels, products

if TYPE_CHECKING:
    from mpc_train.estimates.rehearsal import Spent

INTERPRETER = 0.6
"""What a real step's interpreter takes of a dry step's, whose arrays are slower to handle."""
WORDS = 1 << 17
SIDES = 128, 784, 128
POINTS = 64
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one core: bytes that a pass over memory reads and writes, multiply-adds of products and
    curve points, each per second."""

    bytes_s: float
    products_s: float
    points_s: float

    def seconds(self, spent: Spent) -> float:
        """The processor's time of one node."""
        return (
            INTERPRETER * spent.seconds
            + spent.moved / self.bytes_s
            + spent.products / self.products_s
            + spent.points / self.points_s
        )


def measured_speed() -> Speed:
    """This machine's."""
    products.calibrate(time.perf_counter)
    m, k, n = SIDES
    x, y = np.arange(m * k).reshape(m, k), np.arange(k * n).reshape(k, n)
    words, out = np.arange(WORDS), np.empty(WORDS, np.int64)
    tokens = np.zeros((POINTS, 32), np.uint8)
    tokens[:, 0] = np.arange(POINTS)
    exponent = Exponent()
    return Speed(
        5 * words.nbytes / _best(lambda: kernels.selected(*[words] * 5, True, out), 6),
        m * k * n / _best(lambda: products.sum_of_products([(x, y)]), 1),
        POINTS / _best(lambda: exponent.of_tokens(tokens, bytes(32)), 1),
    )


def _best(work: Callable[[], object], times: int) -> float:
    """Seconds of one call, of the fastest of a few."""
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(times):
            work()
        found.append((time.perf_counter() - begin) / times)
    return min(found)
