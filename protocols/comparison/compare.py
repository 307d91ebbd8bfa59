"""Signs, thresholds and maxima: from a masked value to masked bits.

For x = Δ − λ modulo 2^k, with Δ public among the evaluators and λ known to the dealer,

    msb(x) = msb(Δ) ⊕ msb(λ) ⊕ [low(Δ) < low(λ)],    low: the k − 1 bits below the top bit,

which `less_than` computes. `plan` chooses the method by the numbers of bits and of elements:

    k = 64   3 rounds, 35 bits opened, 38 bytes from the dealer; for 20,000 elements and more
             4 rounds, 49 bits, 25 bytes
    k = 44   (a value that was just truncated by 20 bits)
             3 rounds, 28 bits, 21 bytes; for 60,000 elements and more 4 rounds, 32 bits, 17 bytes
    k = 24   2 rounds, 9 bits, 20 bytes; for 20,000 elements and more 3 rounds, 17 bits, 8 bytes

and 8 bytes from the dealer for the mask of the resulting bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

from protocols.arrays import Octets, Shape, Words
from protocols.comparison import less_than
from protocols.errors import RangeError
from protocols.ring import kernels
from protocols.roles.deferred import Deferred, combine
from protocols.roles.role import Role
from protocols.shares.arithmetic import Rounded, remask, select
from protocols.shares.masked import Additive, Masked, MaskedBit


def below(x: Masked | Rounded, thresholds: Sequence[int]) -> MaskedBit:
    """The bits [x < t] for each public threshold, shape [len(thresholds), *x.shape].

    x − t must lie in [−2^(k−1), 2^(k−1)), where k = 64 − s directly after a truncation by s bits,
    the bits of `Masked.narrowed`, and 64 otherwise. 2 to 4 rounds; the first coincides with the
    second of the truncation. Thresholds with common bits share the work for these.
    """
    role, count = x.role, len(thresholds)
    form = x.early
    if form is None:
        assert isinstance(x, Masked)
        bits, delta, lam = 64, x.delta, x.lam
    else:
        bits, delta, lam = form.bits, form.delta, form.lam
    role.issue("below", x.size, bits, *thresholds)
    limit = 1 << (bits - 1)
    if any(not -limit <= threshold < limit for threshold in thresholds):
        raise RangeError(f"a threshold does not fit {bits} bits")
    flat = None
    if role.is_dealer:
        flat = np.zeros(x.size, np.int64) if lam is None else _flat(lam)
    beta, mu = less_than.sign(role, bits, delta.map(_flat), flat, thresholds, x.size)
    shape = (count, *x.shape)
    return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))


def negative(x: Masked | Rounded) -> MaskedBit:
    """The bits [x < 0]: the sign. 3 rounds, 4 for many elements."""
    return below(x, (0,)).reshape(*x.shape)


def clamped(x: Masked, low: int, high: int) -> tuple[Additive, MaskedBit, MaskedBit]:
    """Summands of min(max(x, low), high) for public words low < high, and [x < low], [x < high].

    x·([x < high] − [x < low]) + low·[x < low] + high·(1 − [x < high])
    """
    bits = below(x, (low, high))
    under, inside = bits.select(0), bits.select(1)
    ends = under.shares().scale(low) - inside.shares().scale(high)
    kept = select(inside, x) - select(under, x)
    return (kept + ends).shift(high), under, inside


def relu(x: Masked | Rounded) -> tuple[Masked, MaskedBit]:
    """max(x, 0) and the bit [x >= 0], which the backward pass uses for its selection.

    One round more than the sign, also after `round_off`, whose second opening is not needed.
    """
    positive = negative(x).negate()
    return remask(select(positive, x)), positive


def all_of(bits: MaskedBit) -> MaskedBit:
    """The product of the n bits along the first axis. ceil(log4(n)) rounds."""
    role, factors, shape = bits.role, bits.shape[0], bits.shape[1:]
    if factors == 1:
        return bits.reshape(*shape)
    lanes = prod(shape)
    role.issue("all_of", factors, lanes)
    # The bits are already open, as β under μ, and the lowest bits of additive shares of μ are XOR
    # shares of it: only mask products are missing.
    planes = bits.beta.map(lambda beta: _pack(beta.reshape(factors, lanes)))
    masks = _pack(bits.mu.reshape(factors, lanes) & 1)
    beta, mu = less_than.product(role, planes, masks, lanes)
    return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))


def argmax(x: Masked) -> MaskedBit:
    """One-hot bits of the maximum along the last axis; of equal maxima, the first.

    Compares all pairs at once, for up to about 16 classes: 3 rounds of comparison and those of
    `all_of` over (classes − 1) bits.
    """
    classes = x.shape[-1]
    if classes == 1:
        raise ValueError("argmax: one class has nothing to compare")
    pairs = list(combinations(range(classes), 2))
    left = [i for i, _ in pairs]
    right = [j for _, j in pairs]
    # x_i < x_j for i < j: the later one wins only if it is strictly larger.
    later_wins = negative(x.select((..., left)) - x.select((..., right)))
    earlier_wins = later_wins.negate()
    place = {pair: position for position, pair in enumerate(pairs)}
    columns = [
        [(place[min(i, j), max(i, j)], i < j) for j in range(classes) if j != i]
        for i in range(classes)
    ]
    index = np.array([[position for position, _ in column] for column in columns]).T
    earlier = np.array([[early for _, early in column] for column in columns]).T

    def choose(first: Words, second: Words) -> Words:
        moved = np.where(earlier, first[..., index], second[..., index])
        return np.moveaxis(moved, -2, 0)

    wins = MaskedBit(
        x.role,
        (classes - 1, *x.shape),
        combine(choose, earlier_wins.beta, later_wins.beta),
        choose(earlier_wins.mu, later_wins.mu),
    )
    return all_of(wins)


def maximum(x: Masked) -> tuple[Masked, MaskedBit]:
    """The maximum along the last axis, kept as an axis of length 1, and the one-hot bits."""
    winner = argmax(x)
    top = remask(select(winner, x).sum(axis=-1, keepdims=True))
    return (top if x.early is None else top.narrowed(x.early.bits)), winner


def weighted(bits: MaskedBit, weights: Words) -> Additive:
    """Summands of sum_k weights[..., k]·b_k over the first axis, for public integer weights.

    weights: int64[k], or int64[c, k] for c sums at once, which get the first axis.
    """
    role, count, shape = bits.role, bits.shape[0], bits.shape[1:]
    rows = np.ascontiguousarray(weights, np.int64).reshape(-1, count)
    mu = np.ascontiguousarray(bits.mu).reshape(count, -1)
    target = (*weights.shape[:-1], *shape)

    def part(beta: Words) -> Words:
        out = np.empty((len(rows), mu.shape[1]), np.int64)
        beta = np.ascontiguousarray(beta).reshape(count, -1)
        kernels.weighted_bits(rows, beta, mu, role.is_first, out)
        return out.reshape(target)

    return Additive(role, target, bits.beta.map(part), None)


def from_digits(role: Role, planes: Deferred[Octets], digits: int, shape: Shape) -> MaskedBit:
    """The bits lt of whole numbers, from XOR shares of lt and eq of their digits.

    planes: packed [2 · digits, lanes], lt of each digit before eq of each, from the least
    significant one. 1 round, and 1 more if there are several digits, at most 6.
    """
    beta, mu = less_than.from_digits(role, planes, digits, prod(shape))
    return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))


def _flat(words: Words) -> Words:
    return np.ascontiguousarray(words).reshape(-1)


def _pack(bits: NDArray[np.integer]) -> Octets:
    """Bits [rows, lanes] of 0 and 1 to bytes [rows, ceil(lanes / 8)], padding zero."""
    # Transposed rows would be packed in their old memory order; kernels need rows.
    packed = np.packbits(bits.astype(np.uint8, copy=False), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed)
