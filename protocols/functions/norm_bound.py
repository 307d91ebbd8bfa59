"""Whether secret vectors have at most a given Euclidean norm: one bit for each.

A vector comes from somebody who may choose any words of Z_2^64. Its sum of squares alone proves
nothing, because words wrap around: 2^32 squared is 0. So the sum is compared only for vectors that
are shown to be short enough that it cannot wrap.

u: words in [−2^63, 2^63), d of them. C: the bound, at most MOST_NORM. Random signs and places,
which the evaluators draw after the vector is theirs, send each element into one of BUCKETS sums,
REPEATS times over, and |y| <= T = TAIL · C is checked of each sum y modulo 2^64 (a count sketch:
Charikar, Chen, Farach-Colton 2002). Up to BUCKETS · REPEATS elements are checked themselves, |u_i|
<= C.

1. Whoever passes has |u_i| <= 2T for every i. Take i with a larger one, and fix where all others
   go: of all sums without i, only that into which i falls may be out of bounds, since a sum within
   ±T leaves ±T when ±u_i is added modulo 2^64. At most one place of BUCKETS is such: one repeat
   passes with probability at most 1/BUCKETS, all of them 2^−50.
2. Then no sum wraps (d · 2T < 2^63), and Σ y² over one repeat has the mean ‖u‖² and a variance of
   at most 2‖u‖⁴/BUCKETS. All |y| <= T means Σ y² <= BUCKETS · T². By Chebyshev's inequality a
   vector with ‖u‖² > 10 · BUCKETS · T² passes one repeat with probability at most 2/(BUCKETS ·
   0.9²), all of them 2^−43.
3. So ‖u‖² <= 10 · BUCKETS · T² < 2^63 for C <= MOST_NORM: the sum of squares is exact, and its
   comparison with C² decides.

A vector of norm at most C is refused with probability below 2^−59: the moments of y are those of a
Poisson sum, E exp(ty) <= exp((cosh(tC) − 1)/BUCKETS) since (cosh(x) − 1)/x² grows with |x|, so with
tC = ln(12 · BUCKETS) one sum is beyond T with probability at most 2 · exp(6 − 6 · 9.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import numpy as np

from protocols.arrays import Octets, Words
from protocols.comparison.compare import below
from protocols.errors import RangeError
from protocols.ring import kernels
from protocols.roles.role import Role
from protocols.roles.streams import KEY_BYTES, one_time
from protocols.shares.arithmetic import remask, square_sum
from protocols.shares.masked import Additive, Masked, MaskedBit, concatenate
from protocols.shares.pieces import summed

PLACE_BITS, REPEATS, TAIL = 10, 5, 6
BUCKETS = 1 << PLACE_BITS
"""A word has PLACE_BITS and a sign for each repeat: 55 of its 64 bits."""
MOST_NORM = 1 << 22
"""The largest bound C, with a thousandth more for the rounding of a vector of 2^23 elements."""
SLACK = 1.01
MOST_ELEMENTS = 1 << 30


def within(
    vectors: Sequence[Masked],
    most_square: int,
    bad: Additive | None = None,
) -> MaskedBit:
    """The bits [‖u‖² <= most_square] of vectors of one length, int64[vectors].

    most_square: at most (SLACK · MOST_NORM)². bad: int64[vectors], at least 0 and below 2^32; a
    vector with a positive one is refused as well. Rounds: 9, whatever the number of vectors, and
    one exchange of seeds. Opens 8 bytes for each of at most BUCKETS · REPEATS sums, and their
    comparison. Raises RangeError.
    """
    size, role = vectors[0].size, vectors[0].role
    norm = _root(most_square)
    if not 1 <= norm <= SLACK * MOST_NORM or not 1 <= size <= MOST_ELEMENTS:
        raise RangeError(f"a norm of {norm} units over {size} elements: at most {MOST_NORM}")
    role.issue("within", size, len(vectors), most_square)
    sums = list(vectors)
    if size > BUCKETS * REPEATS:
        sums = [remask(one) for one in _sketches(role, vectors)]
    limit = norm if size <= BUCKETS * REPEATS else TAIL * norm
    faults = [_outside(one.shift(limit), 2 * limit).sum().reshape(1) for one in sums]
    for number, vector in enumerate(vectors):
        faults[number] += _outside(remask(square_sum(vector)), most_square)
        if bad is not None:
            faults[number] += bad.select(slice(number, number + 1))
    totals = [remask(one) for one in faults]
    return below(concatenate(totals), (1,)).reshape(len(vectors))


def _root(square: int) -> int:
    """The least integer whose square is at least this."""
    return isqrt(max(square - 1, 0)) + 1 if square > 0 else 0


def outside(x: Masked, low: int, high: int) -> Additive:
    """Summands of numbers that are positive where x is below `low` or above `high`, as words of
    Z_2^64, and 0 elsewhere: for any word x and 0 <= high − low < 2^62."""
    return _outside(x.shift(-low), high - low)


def _outside(x: Masked, high: int) -> Additive:
    """The same for 0 and `high`. [x < 0] is right for every word; where it is 0, so is [x <= high],
    because x − high − 1 does not wrap around."""
    bits = below(x, (0, high + 1))
    return bits.select(0).shares() + bits.select(1).negate().shares()


def _sketches(role: Role, vectors: Sequence[Masked]) -> list[Additive]:
    """The sums of each vector, at the evaluators alone: int64[REPEATS · BUCKETS]."""
    key = role.common((KEY_BYTES,), anew=True)
    return [summed(vector, (REPEATS * BUCKETS,), _sketched, key) for vector in vectors]


def _sketched(shares: Iterator[Words], key: Octets) -> Words:
    out, stream = np.zeros((REPEATS, BUCKETS), np.int64), one_time(key.tobytes())
    for share in shares:
        kernels.scattered(share, stream.words(share.size), PLACE_BITS, out)
    return out.reshape(-1)
