"""Noise of a node that is correlated over the steps of a training, so that less of it adds up.

Where every step's sum has independent noise, that of weights, which are sums over steps, grows with
each. Here step t of a node has, in every element,

    n_t = z_t − round(c_1 n_{t−1} + … + c_{b−1} n_{t−b+1})

with a fresh z_t from N_Z(0, v), and n_s = 0 before its first step. So the noise of all steps is
C^{-1} z up to rounding, where C is lower triangular with the b bands 1, c_1, … (Kairouz et al.,
DP-FTRL, ICML 2021; Choquette-Choo et al., banded matrix factorisation, NeurIPS 2023). The bands are
those of the root of the matrix of prefix sums, c_j = binom(2j, j) / 4^j (Kalinin and Lampert,
NeurIPS 2024), rounded to multiples of 1/M, M = 16: other public numbers are as private, as long as
it is they that are accounted for. Everything is an integer, and every node does this alone.

**What somebody sees who does not know the noise of nodes 1 … m**, with variances v_1 … v_m, and
all else: with g_t the exact sum, n^i_t the noise of node i, N_t and Z_t the sums of n^i_t and z^i_t
over these nodes, y_t = g_t + N_t.

1. Given all before step t, Z_t and the residues n^i_t mod M of the nodes i < m are independent,
   Z_t has the law N_Z(0, v_1 + … + v_m), and residues are uniform. For two nodes with variances v
   and w: z² / 2v + (Z − z)² / 2w is Z² / 2(v + w) plus the square of z less a centre over 2u,
   1/u = 1/v + 1/w. Weights of z in one residue class add up to √(2πu) / M up to a factor of
   1 ± 2.1 exp(−2π² u / M²), by Poisson's summation. What is subtracted is known before, and leaves
   uniform residues uniform; further nodes follow one by one. So this is exact up to a factor
   exp(5 exp(−2π² u / M²)) for each number, the bound of sums of discrete Gaussians
   (`mpc_train.privacy.accounting`) at deviations M times smaller.
2. So the residues of the nodes i < m may be known: they depend neither on data nor on any Z.
3. The error e^i_t of node i's rounding depends on residues mod M of its b − 1 last noises alone. So
   N_t = Z_t − Σ c_j N_{t−j} − Σ e^i_t, where N_s = y_s − g_s. Given the residues and all y before
   it, y_t is Z_t plus an integer that data determine: a mechanism with discrete Gaussian noise.
4. Between neighbours whose sums differ by Δ_s, this integer differs by Δ_t + Σ c_j Δ_{t−j}, and by
   how e^m_t differs, the only error that is not given: by less than 1 in each element.

So the sensitivities of all steps together are those of C times the sums, and 1 in each element of
each step. A row with norm at most 1 that is in k steps, at least b apart, has √k ‖(1, c_1, …)‖:
its columns of C do not meet. A unit whose rows have norms of 1 together has no more, by the
triangle inequality. And no bit of a sum is finer than its noise: z_t is on the grid of the words.

**After a break** the bands begin anew, with n_s = 0 before. C then has blocks, and none of its
columns is longer than before: nothing has to be kept over a break, and no noise is drawn twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np

from protocols.arrays import Words

PRECISION_BITS = 4
PRECISION = 1 << PRECISION_BITS
"""M: bands are multiples of 1/M."""
MOST_BANDS = 64
_GONE = 2.0**-60


@lru_cache
def bands(count: int) -> tuple[int, ...]:
    """M, M · c_1, … M · c_{count−1}. ValueError unless 1 <= count <= MOST_BANDS."""
    if not 1 <= count <= MOST_BANDS:
        raise ValueError(f"between 1 and {MOST_BANDS} bands, not {count}")
    exact = [Fraction(1)]
    for j in range(1, count):
        exact.append(exact[-1] * Fraction(2 * j - 1, 2 * j))
    return tuple(round(part * PRECISION) for part in exact)


def square(count: int) -> Fraction:
    """‖(1, c_1, …)‖²."""
    return Fraction(sum(part * part for part in bands(count)), PRECISION**2)


@lru_cache
def inverse(count: int) -> tuple[float, ...]:
    """The first column of C^{-1}, up to where `count` numbers in a row are below 2^-60."""
    columns = np.array(bands(count)[1:], np.float64)[::-1] / PRECISION
    found = [0.0] * (count - 1) + [1.0]
    while count > 1 and max(map(abs, found[-count:])) > _GONE:
        found.append(-float(columns @ found[1 - count :]))
    return tuple(found[count - 1 :])


@lru_cache
def spread(count: int) -> Fraction:
    """No n_t is more than this many times the largest z and 1/2: Σ |C^{-1}|, rounded up.

    What `inverse` leaves out is the response to fewer than `count` numbers, each below
    2^-60 · Σ c_j: less than 2^-50 of the whole, as rounding in floating point is.
    """
    if count == 1:
        return Fraction(1)
    return Fraction(round(sum(map(abs, inverse(count))) * 64) + 1, 64)


def left_over(count: int, steps: int) -> float:
    """How many times as large the noise of sums over steps is as with independent noise, at the
    same privacy: root mean square over all sums over the first steps, up to `steps`."""
    column = np.zeros(steps)
    known = inverse(count)[:steps]
    column[: len(known)] = known
    sums = np.cumsum(np.cumsum(column) ** 2)
    return float(np.sqrt(float(square(count)) * sums.sum() / (steps * (steps + 1) / 2)))


@dataclass(slots=True, eq=False)
class Past:
    """The noise of a node's last steps for one tensor, int64 in words, latest first; secret."""

    count: int
    noise: list[Words] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Past(bands={self.count}, steps={len(self.noise)})"

    def follow(self, fresh: Words) -> Words:
        """n_t for z_t = `fresh`. Words have to be below 2^54 in magnitude (`spread`)."""
        total = np.full_like(fresh, PRECISION // 2)
        for part, words in zip(bands(self.count)[1:], self.noise, strict=False):
            total += part * words
        found = fresh - (total >> PRECISION_BITS)
        self.noise.insert(0, found)
        del self.noise[self.count - 1 :]
        return found
