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

from protocols import ring
from protocols.arithmetic import remask, select
from protocols.deferred import Deferred, combine
from protocols.errors import RangeError
from protocols.masked import Additive, Masked, MaskedBit
from protocols.role import Octets, Role, Words, low_mask

DIGIT_BITS = 4
ARITY = 4


def below(x: Masked, thresholds: Sequence[int]) -> MaskedBit:
    """The bits [x < t] for each public threshold, shape [len(thresholds), *x.shape].

    x − t has to lie in [−2^(k−1), 2^(k−1)), where k = 64 − s straight after a truncation by s
    bits and 64 otherwise. 3 rounds; the first goes along with the second of the truncation.
    """
    role, count = x.role, len(thresholds)
    form = x.early
    bits, delta, lam = (64, x.delta, x.lam) if form is None else (form.bits, form.delta, form.lam)
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


def negative(x: Masked) -> MaskedBit:
    """The bits [x < 0]: the sign. 3 rounds."""
    return below(x, (0,)).reshape(*x.shape)


def relu(x: Masked) -> tuple[Masked, MaskedBit]:
    """max(x, 0) and the bit [x >= 0], which the backward pass selects with.

    4 rounds after the first opening of a truncation; 5 in all with it.
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
        groups = [list(range(i, min(i + ARITY, total))) for i in range(0, total, ARITY)]
        shares = _products(role, planes, mine, groups)
        total = len(groups)
        if total == 1:
            beta, mu = _root(role, shares.map(lambda s: s[0]), None, lanes)
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
    return remask(select(winner, x).sum(axis=-1, keepdims=True)), winner


def weighted(bits: MaskedBit, weights: Words) -> Additive:
    """Summands of sum_k weights[k]·b_k over the first axis, for public integer weights."""
    extended = weights.reshape(-1, *([1] * (len(bits.shape) - 1)))
    shares = bits.shares()
    part = shares.part.map(lambda words: (words * extended).sum(axis=0))
    return Additive(bits.role, bits.shape[1:], part, None)


def _sign(
    role: Role, bits: int, delta: Deferred[Words], lam: Words, thresholds: int, size: int
) -> tuple[Deferred[Words], Words]:
    """β and μ of msb(Δ − λ) modulo 2^bits; Δ: int64[thresholds, size], λ: int64[size]."""
    digits = ceil((bits - 1) / DIGIT_BITS)
    lanes = thresholds * size
    # 1
    table = None
    top = None
    if role.is_dealer:
        flat = lam.reshape(-1)
        table = _one_hot(flat, bits, digits)
        top = ring.shift_right(flat, bits - 1) & 1
    words = role.deal_bits(table, (digits, size, 2)).view(np.uint16).reshape(digits, size)
    leaves = delta.map(lambda d: _look_up(words, d, bits, digits))
    lt = leaves.map(lambda pair: pair[0])
    eq = leaves.map(lambda pair: pair[1])
    # 2
    count = digits
    while count > 1:
        lt, eq = _combine_digits(role, lt, eq, count, lanes)
        count = ceil(count / ARITY)
    # 3
    tops = None if top is None else np.broadcast_to(top, (thresholds, size)).reshape(1, -1)
    beta, mu = _root(role, lt.map(lambda planes: planes[0]), tops, lanes)
    sign = delta.map(lambda d: ring.shift_right(d, bits - 1).reshape(-1) & 1)
    return combine(np.bitwise_xor, beta, sign), mu


def _root(
    role: Role, share: Deferred[Octets], flip: Words | None, lanes: int
) -> tuple[Deferred[Words], Words]:
    """Open a shared bit under ν: β, and additive shares of μ = ν ⊕ flip (at the dealer μ)."""
    packed = ceil(lanes / 8)
    mask = role.mask_bits((packed,))
    opened = role.open_bits(share, mask)
    mu = None
    if role.is_dealer:
        mu = _unpack(mask.octets, lanes)
        if flip is not None:
            mu = mu ^ flip.reshape(-1)
    dealt = role.deal(mu, (lanes,))
    return opened.map(lambda octets: _unpack(octets, lanes)), dealt if mu is None else mu


def _one_hot(lam: Words, bits: int, digits: int) -> Octets:
    """uint16 words 1 << λ_j as bytes [digits, size, 2], j from the least significant digit."""
    low = lam & low_mask(bits - 1)
    table = np.left_shift(np.uint16(1), _digits(low, digits))
    return table.view(np.uint8).reshape(digits, -1, 2)


def _digits(low: Words, digits: int) -> NDArray[np.uint16]:
    """The 4-bit digits of words, [digits, *], the least significant first."""
    octets = np.ascontiguousarray(low).view(np.uint8).reshape(-1, 8)
    used = np.ascontiguousarray(octets[:, : (digits + 1) // 2].T)
    nibbles = np.empty((2 * used.shape[0], used.shape[1]), np.uint16)
    np.bitwise_and(used, 15, out=nibbles[0::2])
    np.right_shift(used, 4, out=nibbles[1::2])
    return nibbles[:digits]


def _look_up(
    table: NDArray[np.uint16], delta: Words, bits: int, digits: int
) -> tuple[Octets, Octets]:
    """XOR shares of [D_j < λ_j] and [D_j = λ_j], packed to [digits, lanes]."""
    thresholds, size = delta.shape
    places = _digits((delta & low_mask(bits - 1)).reshape(-1), digits)
    if thresholds > 1:
        table = np.broadcast_to(table[:, None, :], (digits, thresholds, size))
        places = places.reshape(digits, thresholds, size)
    above = np.right_shift(table, places)
    eq = (above & 1).astype(np.uint8).reshape(digits, -1)
    above >>= 1
    for fold in (8, 4, 2, 1):
        above ^= above >> fold
    lt = (above & 1).astype(np.uint8).reshape(digits, -1)
    return _pack(lt), _pack(eq)


def _combine_digits(
    role: Role, lt: Deferred[Octets], eq: Deferred[Octets], count: int, lanes: int
) -> tuple[Deferred[Octets], Deferred[Octets]]:
    """One level of nodes: planes of `count` digits to planes of ceil(count / 4). 1 round."""
    packed = ceil(lanes / 8)
    plan = _plan(count)
    mask = role.mask_bits((plan.opened, packed))

    def factors(lt_planes: Octets, eq_planes: Octets) -> Octets:
        out = np.empty((plan.opened, packed), np.uint8)
        for node in plan.nodes:
            for place, (kind, digit) in enumerate(node.factors):
                out[node.offset + place] = (eq_planes if kind else lt_planes)[digit]
        return out

    opened = role.open_bits(combine(factors, lt, eq), mask)
    products = None
    if role.is_dealer:
        products = _mask_products(mask.octets, [node.subsets for node in plan.nodes], plan.dealt)
    dealt = role.deal_bits(products, (plan.dealt, packed))

    def node_values(planes: Octets, lt_planes: Octets) -> tuple[Octets, Octets]:
        lt_out = np.empty((len(plan.nodes), packed), np.uint8)
        eq_out = np.empty((len(plan.nodes), packed), np.uint8)
        for place, node in enumerate(plan.nodes):
            shares = {
                subset: dealt[node.first_product + position]
                for position, subset in enumerate(node.subsets)
            }
            value = _expand(role, planes, mask.octets, shares, node.lt_terms)
            lt_out[place] = lt_planes[node.top] if value is None else value ^ lt_planes[node.top]
            if node.eq_terms:
                eq_out[place] = _expand(role, planes, mask.octets, shares, node.eq_terms)
        return lt_out, eq_out

    values = combine(node_values, opened, lt)
    return values.map(lambda pair: pair[0]), values.map(lambda pair: pair[1])


def _products(
    role: Role, planes: Deferred[Octets], mine: Octets, groups: list[list[int]]
) -> Deferred[Octets]:
    """XOR shares of the product of each group of masked bits.

    planes: the public bits; mine: an evaluator's shares of their masks, at the dealer the masks.
    """
    terms = [[tuple(group)] for group in groups]
    subsets = [_needed(wanted) for wanted in terms]
    count = sum(len(some) for some in subsets)
    products = _mask_products(mine, subsets, count) if role.is_dealer else None
    dealt = role.deal_bits(products, (count, mine.shape[1])) if count else None

    def values(opened: Octets) -> Octets:
        out = np.empty((len(groups), mine.shape[1]), np.uint8)
        first = 0
        for place, (wanted, some) in enumerate(zip(terms, subsets, strict=True)):
            shares = {}
            if dealt is not None:
                shares = {subset: dealt[first + i] for i, subset in enumerate(some)}
            out[place] = _expand(role, opened, mine, shares, wanted)  # type: ignore[assignment]
            first += len(some)
        return out

    return planes.map(values)


Subset = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node of the comparison tree: which planes it opens and which products it needs.

    factors: (is it an eq plane, digit) in the order of the opened planes. Terms and subsets name
    opened planes by their row in the opening of the whole level.
    """

    top: int
    offset: int
    factors: tuple[tuple[bool, int], ...]
    lt_terms: tuple[Subset, ...]
    eq_terms: tuple[Subset, ...]
    subsets: tuple[Subset, ...]
    first_product: int


@dataclass(frozen=True, slots=True)
class _Level:
    nodes: tuple[_Node, ...]
    opened: int
    dealt: int


@cache
def _plan(count: int) -> _Level:
    """The nodes over `count` digits, output j covering the j-th group from the bottom.

    Groups are filled from the top, so that the smallest one is the lowest, which needs no eq.
    """
    groups: list[list[int]] = []
    digits = list(range(count - 1, -1, -1))
    for start in range(0, count, ARITY):
        groups.append(digits[start : start + ARITY])
    groups.reverse()
    nodes = []
    offset = dealt = 0
    for position, group in enumerate(groups):
        with_eq = position > 0
        eqs = group if with_eq else group[:-1]
        factors = [(True, digit) for digit in eqs] + [(False, digit) for digit in group[1:]]
        row = {factor: offset + place for place, factor in enumerate(factors)}
        lt_terms = tuple(
            (*(row[True, digit] for digit in group[:place]), row[False, group[place]])
            for place in range(1, len(group))
        )
        eq_terms = (tuple(row[True, digit] for digit in group),) if with_eq else ()
        subsets = _needed([*lt_terms, *eq_terms])
        nodes.append(_Node(group[0], offset, tuple(factors), lt_terms, eq_terms, subsets, dealt))
        offset += len(factors)
        dealt += len(subsets)
    return _Level(tuple(nodes), offset, dealt)


def _needed(terms: Sequence[Subset]) -> tuple[Subset, ...]:
    """All products of two or more masks that the expansion of the terms contains."""
    found = {
        subset
        for term in terms
        for size in range(2, len(term) + 1)
        for subset in combinations(term, size)
    }
    return tuple(sorted(found, key=lambda subset: (len(subset), subset)))


def _mask_products(masks: Octets, subsets: Sequence[Sequence[Subset]], count: int) -> Octets:
    """The products of masks, [count, lanes]; a longer one extends one that is there already."""
    out = np.empty((count, masks.shape[1]), np.uint8)
    first = 0
    for some in subsets:
        row: dict[Subset, int] = {}
        for subset in some:
            head = masks[subset[0]] if len(subset) == 2 else out[row[subset[:-1]]]
            np.bitwise_and(head, masks[subset[-1]], out=out[first])
            row[subset] = first
            first += 1
    return out


def _expand(
    role: Role,
    opened: Octets,
    masks: Octets,
    products: dict[Subset, Octets],
    terms: Sequence[Subset],
) -> Octets | None:
    """XOR share of the sum of products of masked bits v = opened[v] ⊕ mask[v].

    prod_{v in T} (B_v ⊕ ρ_v) = sum over U of prod_{v in T∖U} B_v · prod_{v in U} ρ_v.
    """
    total: Octets | None = None
    for term in terms:
        public: dict[Subset, Octets] = {}
        for size in range(1, len(term) + 1):
            for subset in combinations(term, size):
                if size == 1:
                    public[subset] = opened[subset[0]]
                else:
                    public[subset] = public[subset[:-1]] & opened[subset[-1]]
        for size in range(len(term) + 1):
            for hidden in combinations(term, size):
                rest = tuple(v for v in term if v not in hidden)
                if not hidden:
                    if not role.is_first:
                        continue
                    value = public[rest]
                else:
                    value = masks[hidden[0]] if size == 1 else products[hidden]
                    if rest:
                        value = value & public[rest]
                total = value if total is None else total ^ value
    return total


def _pack(bits: NDArray[np.integer]) -> Octets:
    """Bits [rows, lanes] of 0 and 1 to bytes [rows, ceil(lanes / 8)], padding zero."""
    return np.packbits(bits.astype(np.uint8, copy=False), axis=-1, bitorder="little")


def _unpack(octets: Octets, lanes: int) -> Words:
    """Packed bits to int64[lanes] of 0 and 1; padding lanes are dropped."""
    return np.unpackbits(octets, count=lanes, bitorder="little").astype(np.int64)
