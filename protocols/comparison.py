"""Signs, thresholds and maxima: from a masked value to masked bits.

For x = Δ − λ modulo 2^k, with Δ public among the evaluators and λ known to the dealer,

    msb(x) = msb(Δ) ⊕ msb(λ) ⊕ [low(Δ) < low(λ)],    low: the k − 1 bits below the top bit.

1. Digits. The dealer splits low(λ) into 4-bit digits and hands out XOR shares of the one-hot word
   W = 1 << λ_j of each. With its public digit D_j an evaluator reads XOR shares of two bits:
   eq = bit D_j of W, and lt = parity of the bits of W above D_j. Both are linear in W.
2. Nodes. Up to four digits at a time, from the most significant,
       lt = lt3 ⊕ eq3·(lt2 ⊕ eq2·(lt1 ⊕ eq1·lt0)),    eq = eq3·eq2·eq1·eq0.
   The factors are opened under fresh masks. A product of masked bits expands into products of
   public bits and of masks; the dealer hands out XOR shares of the mask products.
3. Root. [low(Δ) < low(λ)] is opened under ν, which gives β = b ⊕ μ with μ = ν ⊕ msb(λ), and the
   dealer hands out additive shares of μ.

Several thresholds of one value share the table W. Every opened bit of every threshold has a mask
of its own: masks shared between thresholds would tell some secrets apart with certainty.

Bits are packed, eight lanes a byte; padding lanes are masked like the others. lt3 of a node is
never opened: it enters the result linearly. For k = 64: 3 rounds, 34 bits opened; for k = 44 (a
value that was just truncated by 20 bits): 3 rounds, 23 bits.

Digit-wise comparison: CrypTFlow2 (CCS 2020), Rabbit (FC 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from protocols import kernels
from protocols.arithmetic import Rounded, remask, select
from protocols.deferred import Deferred, combine
from protocols.errors import RangeError
from protocols.masked import Additive, Masked, MaskedBit
from protocols.role import Octets, Role, Shape, Words

DIGIT_BITS = 4
ARITY = 4


def below(x: Masked | Rounded, thresholds: Sequence[int]) -> MaskedBit:
    """The bits [x < t] for each public threshold, shape [len(thresholds), *x.shape].

    x − t has to lie in [−2^(k−1), 2^(k−1)), where k = 64 − s straight after a truncation by s
    bits, what `Masked.narrowed` says, and 64 otherwise. 3 rounds; the first goes along with the
    second of the truncation.
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
    levels = np.array(thresholds, np.int64).reshape(count, 1)
    shifted = delta.map(lambda d: d.reshape(1, -1) - levels)
    if lam is None:
        lam = np.zeros(x.shape, np.int64)
    beta, mu = _sign(role, bits, shifted, lam, count, x.size)
    shape = (count, *x.shape)
    return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))


def negative(x: Masked | Rounded) -> MaskedBit:
    """The bits [x < 0]: the sign. 3 rounds."""
    return below(x, (0,)).reshape(*x.shape)


def relu(x: Masked | Rounded) -> tuple[Masked, MaskedBit]:
    """max(x, 0) and the bit [x >= 0], which the backward pass selects with.

    4 rounds, also after `round_off`, whose second opening is not needed.
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
    # The bits are open already, as β under μ, and the lowest bits of additive shares of μ are XOR
    # shares of it: only mask products are missing.
    planes = bits.beta.map(lambda beta: _pack(beta.reshape(factors, lanes)))
    mine = _pack(bits.mu.reshape(factors, lanes) & 1)
    total = factors
    while True:
        shares = _level(role, planes, mine, _product_plan(total), None)
        total = ceil(total / ARITY)
        if total == 1:
            beta, mu = _root(role, shares.map(lambda s: s[0]), None, lanes, None, 1)
            return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))
        mask = role.mask_bits((total, ceil(lanes / 8)))
        planes = role.open_bits(shares, mask)
        mine = mask.octets


def argmax(x: Masked) -> MaskedBit:
    """One-hot bits of the maximum along the last axis; of equal maxima, the first.

    All pairs at once, meant for up to about 16 classes: 3 rounds of comparison and those of
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
    """The bits lt of whole numbers, from XOR shares of lt and eq of their digits of 4 bits.

    planes: packed [2 · digits, lanes], lt of each digit before eq of each, from the least
    significant one. 1 round, and 1 for each level of nodes.
    """
    lanes = prod(shape)
    beta, mu = _root(role, _less(role, planes, digits, lanes), None, lanes, None, 1)
    return MaskedBit(role, shape, beta.map(lambda b: b.reshape(shape)), mu.reshape(shape))


def _sign(
    role: Role, bits: int, delta: Deferred[Words], lam: Words, thresholds: int, size: int
) -> tuple[Deferred[Words], Words]:
    """β and μ of msb(Δ − λ) modulo 2^bits; Δ: int64[thresholds, size], λ: int64[size]."""
    digits = ceil((bits - 1) / DIGIT_BITS)
    lanes = thresholds * size
    # 1
    table = None
    flat = np.ascontiguousarray(lam).reshape(-1) if role.is_dealer else None
    if flat is not None:
        hot = np.empty((digits, size), np.uint16)
        kernels.one_hot(flat, bits, hot)
        table = hot.view(np.uint8).reshape(digits, size, 2)
    words = role.deal_bits(table, (digits, size, 2)).view(np.uint16).reshape(digits, size)

    def leaves(d: Words) -> Octets:
        out = np.empty((2 * digits, ceil(lanes / 8)), np.uint8)
        kernels.look_up(words, np.ascontiguousarray(d), bits, out)
        return out

    # 2, 3
    less = _less(role, delta.map(leaves), digits, lanes)
    return _root(role, less, flat, lanes, delta, bits)


def _less(role: Role, planes: Deferred[Octets], digits: int, lanes: int) -> Deferred[Octets]:
    """XOR shares of lt of whole numbers from those of lt and eq of their digits."""
    while digits > 1:
        planes = _combine_digits(role, planes, digits, lanes)
        digits = ceil(digits / ARITY)
    return planes.map(lambda p: p[0])


def _root(
    role: Role,
    share: Deferred[Octets],
    lam: Words | None,
    lanes: int,
    delta: Deferred[Words] | None,
    bits: int,
) -> tuple[Deferred[Words], Words]:
    """Open a shared bit under ν: β = opened ⊕ msb(Δ), and additive shares of μ = ν ⊕ msb(λ).

    At the dealer μ itself. lam: λ, which the dealer has; None like delta where there is no such
    bit. Both repeat as often as the lanes ask for.
    """
    mask = role.mask_bits((ceil(lanes / 8),))
    opened = role.open_bits(share, mask)
    blank = np.zeros(1, np.int64)
    mu = None
    if role.is_dealer:
        mu = _unpack(mask.octets, blank if lam is None else lam, lanes, bits)
    mu = role.deal(mu, (lanes,))
    if delta is None:
        return opened.map(lambda octets: _unpack(octets, blank, lanes, bits)), mu
    beta = combine(
        lambda octets, d: _unpack(octets, np.ascontiguousarray(d).reshape(-1), lanes, bits),
        opened,
        delta,
    )
    return beta, mu


def _combine_digits(
    role: Role, planes: Deferred[Octets], count: int, lanes: int
) -> Deferred[Octets]:
    """One level of nodes: planes of `count` digits to planes of ceil(count / 4). 1 round.

    The first half of the planes are lt, the others eq, from the least significant digit.
    """
    plan = _plan(count)
    mask = role.mask_bits((plan.opened, ceil(lanes / 8)))
    opened = role.open_bits(planes.map(lambda p: p[plan.factors]), mask)
    return _level(role, opened, mask.octets, plan, planes)


def _level(
    role: Role,
    opened: Deferred[Octets],
    masks: Octets,
    plan: _Plan,
    below: Deferred[Octets] | None,
) -> Deferred[Octets]:
    """XOR shares of the sums of products that a plan asks for; no round.

    opened: the public bits; masks: an evaluator's shares of their masks, at the dealer the masks.
    below: planes whose rows `plan.top` are added to the first outputs.
    """
    packed = masks.shape[1]
    products = None
    if role.is_dealer:
        products = np.empty((plan.dealt, packed), np.uint8)
        kernels.mask_products(plan.products, masks, products)
    dealt = role.deal_bits(products, (plan.dealt, packed)) if plan.dealt else masks[:0]

    def values(public: Octets, planes: Octets | None) -> Octets:
        out = np.zeros((plan.outputs, packed), np.uint8)
        if planes is not None:
            out[: len(plan.top)] = planes[plan.top]
        kernels.sum_of_products(plan.shared_terms, public, masks, dealt, out)
        if role.is_first:
            kernels.sum_of_products(plan.public_terms, public, masks, dealt, out)
        return out

    if below is None:
        return opened.map(lambda public: values(public, None))
    return combine(values, opened, below)


Subset = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What one level of nodes opens, which mask products it needs and what it adds up.

    factors: the rows of the level below that are opened. top: the rows that enter the first
    outputs unopened. products, shared_terms and public_terms: programs for the kernels; the last
    are the products of opened bits alone, which the first evaluator adds.
    """

    factors: NDArray[np.intp]
    top: NDArray[np.intp]
    opened: int
    dealt: int
    outputs: int
    products: NDArray[np.int32]
    shared_terms: NDArray[np.int32]
    public_terms: NDArray[np.int32]


@cache
def _plan(count: int) -> _Plan:
    """The nodes over `count` digits, output j covering the j-th group from the bottom.

    Groups are filled from the top, so that the smallest one is the lowest, which needs no eq.
    """
    groups: list[list[int]] = []
    digits = list(range(count - 1, -1, -1))
    for start in range(0, count, ARITY):
        groups.append(digits[start : start + ARITY])
    groups.reverse()
    factors: list[int] = []
    sums: list[tuple[int, list[Subset]]] = []
    for position, group in enumerate(groups):
        with_eq = position > 0
        eqs = group if with_eq else group[:-1]
        rows = [count + digit for digit in eqs] + group[1:]
        row = {factor: len(factors) + place for place, factor in enumerate(rows)}
        factors += rows
        lt_terms = [
            (*(row[count + digit] for digit in group[:place]), row[group[place]])
            for place in range(1, len(group))
        ]
        sums.append((position, lt_terms))
        if with_eq:
            eq_term = tuple(row[count + digit] for digit in group)
            sums.append((len(groups) + position, [eq_term]))
    return _compiled(factors, [group[0] for group in groups], 2 * len(groups), sums, len(factors))


@cache
def _product_plan(count: int) -> _Plan:
    """The products of `count` opened bits, up to four at a time."""
    groups = [tuple(range(i, min(i + ARITY, count))) for i in range(0, count, ARITY)]
    sums = [(position, [group]) for position, group in enumerate(groups)]
    return _compiled([], [], len(groups), sums, count)


def _compiled(
    factors: list[int],
    top: list[int],
    outputs: int,
    sums: list[tuple[int, list[Subset]]],
    opened: int,
) -> _Plan:
    """The kernels' programs for sums of products of masked bits v = opened[v] ⊕ mask[v].

    prod_{v in T} (B_v ⊕ ρ_v) = sum over U ⊆ T of prod_{v in T∖U} B_v · prod_{v in U} ρ_v. The
    products over each U of two or more masks are dealt.
    """
    needed = {
        subset
        for _, terms in sums
        for term in terms
        for size in range(2, len(term) + 1)
        for subset in combinations(term, size)
    }
    ordered = sorted(needed, key=lambda subset: (len(subset), subset))
    place = {subset: row for row, subset in enumerate(ordered)}
    products = [
        (row, -1 - subset[0] if len(subset) == 2 else place[subset[:-1]], subset[-1])
        for subset, row in place.items()
    ]
    shared: list[tuple[int, ...]] = []
    public: list[tuple[int, ...]] = []
    for output, terms in sums:
        for term in terms:
            for size in range(len(term) + 1):
                for hidden in combinations(term, size):
                    rest = tuple(v for v in term if v not in hidden)
                    source = -1
                    if size == 1:
                        source = hidden[0]
                    elif size > 1:
                        source = opened + place[hidden]
                    line = (output, source, *rest, *[-1] * (ARITY - len(rest)))
                    (shared if hidden else public).append(line)
    return _Plan(
        np.array(factors, np.intp),
        np.array(top, np.intp),
        opened,
        len(place),
        outputs,
        np.array(products, np.int32).reshape(-1, 3),
        np.array(shared, np.int32).reshape(-1, 2 + ARITY),
        np.array(public, np.int32).reshape(-1, 2 + ARITY),
    )


def _pack(bits: NDArray[np.integer]) -> Octets:
    """Bits [rows, lanes] of 0 and 1 to bytes [rows, ceil(lanes / 8)], padding zero."""
    return np.packbits(bits.astype(np.uint8, copy=False), axis=-1, bitorder="little")


def _unpack(octets: Octets, words: Words, lanes: int, bits: int) -> Words:
    """Packed bits ⊕ bit (bits − 1) of the words, as int64[lanes] of 0 and 1."""
    out = np.empty(lanes, np.int64)
    kernels.signs(octets, words, bits, out)
    return out
