"""Whether the low bits of a public Δ are below those of a mask λ, as masked bits.

The dealer knows λ, evaluators know Δ. Bits are packed, eight lanes a byte, a plane for each bit of
a number; padding lanes are masked like the others. `plan` says which planes are opened
and which products of masks are dealt.

1. Leaves. E = ¬Δ is public and λ its mask: E ⊕ λ says bit by bit where Δ and λ are equal. From XOR
   shares of the products of the bits of λ in a digit, evaluators compute shares of the digit's lt
   and eq without communication.
2. Nodes. A level of nodes opens lt and eq under fresh masks and computes
       lt = lt_top ⊕ sum_j lt_j·prod_{i > j} eq_i,    eq = prod_i eq_i
   from the opened bits and XOR shares of products of their masks.
3. Root. lt is opened under ν, and the dealer hands out additive shares of μ = ν ⊕ κ ⊕ msb(λ). κ is
   what the dealer kept: products of masks that are added to lt unchanged, so that nobody needs
   shares of them. The opened bit and msb(Δ) give β = b ⊕ μ for b = msb(Δ − λ).

Every opened bit has its own mask. Only leaf tables serve several thresholds, and bits that are the
same for several thresholds (`plan.Joint`) are opened once.

Digit-wise comparison: CrypTFlow2 (CCS 2020), Rabbit (FC 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.arrays import Octets, Words
from protocols.comparison.bit_programs import SCRATCH_ROWS, Program
from protocols.comparison.plan import (
    Joint,
    Level,
    Plan,
    best,
    nodes_plan,
    products_plan,
    split,
)
from protocols.ring import kernels
from protocols.roles.deferred import Deferred, combine
from protocols.roles.role import Role

FACTORS = 4
"""The most opened bits in one product; its mask products grow as 2^n."""

Kept = Octets | None
"""Packed bits that the dealer adds to the mask at the root; None for zeros, and at evaluators."""

_NONE = np.empty((0, 0), np.uint8)
_ZERO = np.zeros(1, np.int64)


def sign(
    role: Role,
    bits: int,
    delta: Deferred[Words],
    lam: Words | None,
    thresholds: Sequence[int],
    size: int,
) -> tuple[Deferred[Words], Words]:
    """β and μ of msb(Δ − t − λ) modulo 2^bits for each threshold t, concatenated.

    Δ: int64[size]. lam: at the dealer λ, int64[size]; None at evaluators.
    """
    way = best(bits - 1, tuple(thresholds), size)
    levels = np.array(thresholds, np.int64)
    width = packed_width(size)
    if isinstance(way, Joint):
        less, kept = _joint(role, way, delta, lam, levels, width)
    else:
        less, kept = _tree(role, way, delta, lam, levels, 0, width)
    if lam is not None:
        kept = _added(kept, np.tile(_planes(lam, _ZERO, 0, bits - 1, 1, width), len(levels)))
    opened, mu = _root(role, less, kept, len(levels), size)
    tops = delta.map(lambda d: _planes(d, levels, 0, bits - 1, 1, width)[0])
    beta = combine(lambda octets, top: _unpacked(octets ^ top, len(levels), size), opened, tops)
    return beta, mu


def from_digits(
    role: Role, planes: Deferred[Octets], digits: int, size: int
) -> tuple[Deferred[Words], Words]:
    """β and μ of lt of whole numbers, from XOR shares of lt and eq of their digits.

    planes: packed [2 · digits, lanes], lt of each digit before eq of each, from the least
    significant one. 1 round, and 1 for a node if there are several digits.
    """
    nodes = nodes_plan((digits, 1) if digits > 1 else (1,))
    less, kept = _nodes(role, nodes, planes, packed_width(size))
    opened, mu = _root(role, less, kept, 1, size)
    return opened.map(lambda octets: _unpacked(octets, 1, size)), mu


def product(
    role: Role, planes: Deferred[Octets], masks: Octets, size: int
) -> tuple[Deferred[Words], Words]:
    """β and μ of the product of two or more masked bits; 1 round for each level of four factors.

    planes: opened bits, packed [factors, lanes]; masks: XOR shares of their masks, at the dealer
    the masks.
    """
    factors = len(masks)
    while True:
        groups = -(-factors // FACTORS)
        level = products_plan(tuple(split(factors, groups)))
        shares, kept = _level(role, level, planes, masks, None)
        if groups == 1:
            opened, mu = _root(role, shares, kept, 1, size)
            return opened.map(lambda octets: _unpacked(octets, 1, size)), mu
        mask = role.mask_bits((groups, packed_width(size)))
        planes, masks, factors = role.open_bits(shares, mask), mask.octets, groups


def packed_width(size: int) -> int:
    """Bytes of a plane of `size` lanes."""
    return (size + 7) // 8


def _root(
    role: Role, planes: Deferred[Octets], kept: Kept, repeats: int, size: int
) -> tuple[Deferred[Octets], Words]:
    """Open plane 0 under ν: the opened bits, still packed, and shares of ν ⊕ kept."""
    mask = role.mask_bits((repeats * packed_width(size),))
    opened = role.open_bits(planes.map(lambda found: found[0]), mask)
    mu = None
    if role.is_dealer:
        octets = mask.octets if kept is None else mask.octets ^ kept[0]
        mu = _unpacked(octets, repeats, size)
    return opened, role.deal(mu, (repeats * size,))


def _tree(
    role: Role,
    plan: Plan,
    delta: Deferred[Words],
    lam: Words | None,
    levels: Words,
    low: int,
    width: int,
) -> tuple[Deferred[Octets], Kept]:
    """Planes of lt and eq of the bits from `low` on of Δ − t and λ, for each t of `levels`."""
    leaves = plan.leaves
    # 1
    products = None
    if lam is not None:
        products = np.empty((leaves.dealt, width), np.uint8)
        kernels.bit_planes(lam, _ZERO, 0, low, products[: plan.bits])
        _run(leaves.products, products)
    table = role.deal_bits(products, (leaves.dealt, width))

    def read(d: Words) -> Octets:
        public = _planes(d, levels, -1, low, plan.bits, width)
        out = np.empty((leaves.outputs, public.shape[1]), np.uint8)
        _run(leaves.shared, out, public=public, dealt_once=table)
        if role.is_first:
            _run(leaves.public, out, public=public)
        return out

    # 2
    return _nodes(role, plan.nodes, delta.map(read), len(levels) * width)


def _nodes(
    role: Role, nodes: Sequence[Level], planes: Deferred[Octets], columns: int
) -> tuple[Deferred[Octets], Kept]:
    """Levels of nodes, one round each."""
    kept: Kept = None
    for level in nodes:
        mask = role.mask_bits((len(level.opened), columns))
        opened = role.open_bits(_picked(planes, level.opened), mask)
        planes, more = _level(role, level, opened, mask.octets, planes)
        kept = _added(kept, more)
    return planes, kept


def _picked(planes: Deferred[Octets], rows: NDArray[np.intp]) -> Deferred[Octets]:
    return planes.map(lambda found: found[rows])


def _level(
    role: Role,
    level: Level,
    opened: Deferred[Octets],
    masks: Octets,
    below: Deferred[Octets] | None,
) -> tuple[Deferred[Octets], Kept]:
    """XOR shares of a level's planes, and the part that the dealer keeps; no round.

    opened: the public bits; masks: an evaluator's shares of their masks, at the dealer the masks.
    """
    columns = masks.shape[1]
    products = None
    kept: Kept = None
    if role.is_dealer:
        products = np.empty((level.dealt, columns), np.uint8)
        _run(level.products, products, masks=masks)
        kept = _kept(level.constant, columns, masks=masks, dealt=products)
    dealt = role.deal_bits(products, (level.dealt, columns)) if level.dealt else _NONE

    def values(public: Octets, planes: Octets) -> Octets:
        out = np.empty((level.outputs, columns), np.uint8)
        _run(level.shared, out, public=public, masks=masks, dealt=dealt, below=planes)
        if role.is_first:
            _run(level.public, out, public=public)
        return out

    if below is None:
        return opened.map(lambda public: values(public, _NONE)), kept
    return combine(values, opened, below), kept


def _joint(
    role: Role, way: Joint, delta: Deferred[Words], lam: Words | None, levels: Words, width: int
) -> tuple[Deferred[Octets], Kept]:
    """lt of all low bits for each threshold, from parts that most thresholds share."""
    columns = len(levels) * width
    join, with_upper = way.join, way.upper is not None
    largest = levels.max(keepdims=True)
    middle, kept = _tree(role, way.middle, delta, lam, levels, way.low, width)
    wide = slice(0 if with_upper else 1, 2 if way.lower is not None else 1)
    once: Deferred[Octets] | None = None
    upper: Deferred[Octets] | None = None
    if way.upper is not None:
        both = np.concatenate([largest, largest - (1 << way.high)])
        upper = _tree(role, way.upper, delta, lam, both, way.high, width)[0].map(
            lambda planes: planes.reshape(4, width)
        )
        once = upper.map(lambda planes: planes[2:])
    if way.lower is not None:
        lower = _tree(role, way.lower, delta, lam, largest, 0, width)[0].map(lambda p: p[:1])
        once = lower if once is None else combine(_stacked, once, lower)
    assert once is not None
    mask = role.mask_bits((wide.stop - wide.start, columns))
    opened = role.open_bits(middle.map(lambda planes: planes[wide]), mask)
    mask_once = role.mask_bits((2 * with_upper + (way.lower is not None), width))
    opened_once = role.open_bits(once, mask_once)
    masks, masks_once = mask.octets, mask_once.octets
    products = products_once = None
    if role.is_dealer:
        products_once = np.empty((join.dealt_once, width), np.uint8)
        _run(join.products_once, products_once, masks_once=masks_once)
        products = np.empty((join.dealt, columns), np.uint8)
        _run(join.products, products, masks=masks, masks_once=masks_once)
        kept = _added(kept, _kept(join.constant, columns, masks=masks, masks_once=masks_once))
    dealt = role.deal_bits(products, (join.dealt, columns)) if join.dealt else _NONE
    dealt_once = _NONE
    if join.dealt_once:
        dealt_once = role.deal_bits(products_once, (join.dealt_once, width))

    def selected(d: Words, single: Octets) -> Octets:
        """Public rows of C, 1 − C and the opened E that C selects."""
        carry = _planes(d, levels, 0, way.high, 1, width).reshape(-1, width)
        carry ^= _planes(d, largest, 0, way.high, 1, width)
        chosen = single[0] ^ (carry & (single[0] ^ single[1]))
        return np.stack([carry, ~carry, chosen]).reshape(3, columns)

    def values(public: Octets, others: tuple[Octets, Octets]) -> Octets:
        single, below = others
        out = np.empty((1, columns), np.uint8)
        known = {"public": public, "public_once": single[2 * with_upper :]}
        known["below_once" if with_upper else "below"] = below
        hidden = {"masks": masks, "masks_once": masks_once, "dealt": dealt}
        _run(join.shared, out, dealt_once=dealt_once, **known, **hidden)
        if role.is_first:
            _run(join.public, out, **known)
        return out

    public, below = opened, middle
    if upper is not None:
        public = combine(_stacked, combine(selected, delta, opened_once), opened)
        below = upper
    others = combine(lambda single, planes: (single, planes), opened_once, below)
    return combine(values, public, others), kept


def _stacked(first: Octets, second: Octets) -> Octets:
    return np.concatenate([first, second])


def _added(first: Kept, second: Kept) -> Kept:
    if first is None or second is None:
        return second if first is None else first
    return first ^ second


def _kept(program: Program, columns: int, **arrays: Octets) -> Kept:
    if not len(program):
        return None
    out = np.empty((1, columns), np.uint8)
    _run(program, out, **arrays)
    return out


def _run(
    program: Program,
    out: Octets,
    *,
    public: Octets = _NONE,
    masks: Octets = _NONE,
    dealt: Octets = _NONE,
    below: Octets = _NONE,
    public_once: Octets = _NONE,
    masks_once: Octets = _NONE,
    dealt_once: Octets = _NONE,
    below_once: Octets = _NONE,
) -> None:
    """Run a program (see `bit_programs`) on rows of packed bits; it sets or adds to `out`."""
    if len(program):
        once = (public_once, masks_once, dealt_once, below_once)
        scratch = np.empty((SCRATCH_ROWS, kernels.BLOCK), np.uint8)
        kernels.bit_program(program, public, masks, dealt, below, *once, out, scratch)


def _planes(words: Words, levels: Words, flip: int, low: int, rows: int, width: int) -> Octets:
    """Planes [rows, len(levels) · width] of the bits from `low` on of (words − level) ^ flip."""
    out = np.empty((rows, len(levels) * width), np.uint8)
    kernels.bit_planes(words, levels, flip, low, out)
    return out


def _unpacked(octets: Octets, repeats: int, size: int) -> Words:
    out = np.empty(repeats * size, np.int64)
    kernels.unpack_bits(octets, size, out)
    return out
