"""Products, truncation and re-masking: from secrets to secrets, one opening at a time.

Each function is run by evaluators and dealer alike. Costs are for one output element: openings
are bytes that an evaluator sends to each other evaluator, corrections are bytes that the dealer
sends to one evaluator.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from protocols import ring
from protocols.deferred import combine
from protocols.errors import RangeError
from protocols.masked import Additive, Early, Masked, MaskedBit
from protocols.role import Shape, Words, low_mask

Bilinear = Callable[[Words, Words], Words]

HEADROOM_BITS = 62
"""A truncation is exact for −2^62 <= z < 2^62."""


def bilinear(name: str, function: Bilinear, x: Masked, y: Masked, shape: Shape) -> Additive:
    """Summands of B(x, y) for a bilinear B that yields `shape`. No communication.

    Evaluator i: B(Δx, Δy) at the first, − B(Δx, [λy]_i) − B([λx]_i, Δy) at each.
    The dealer: B(λx, λy).
    """
    role = x.role
    role.issue(name, *x.shape, *y.shape)
    x_lam, y_lam = x.lam, y.lam

    def part(dx: Words, dy: Words) -> Words:
        if role.is_first:
            z = function(dx, dy if y_lam is None else dy - y_lam)
            return z if x_lam is None else z - function(x_lam, dy)
        if x_lam is None and y_lam is None:
            return np.zeros(shape, np.int64)
        if x_lam is None:
            assert y_lam is not None
            return -function(dx, y_lam)
        z = function(x_lam, dy)
        return -z if y_lam is None else -(z + function(dx, y_lam))

    dealt = None
    has_dealt = x.masked and y.masked
    if role.is_dealer and has_dealt:
        assert x_lam is not None and y_lam is not None
        dealt = function(x_lam, y_lam)
    return Additive(role, shape, combine(part, x.delta, y.delta), dealt, has_dealt)


def multiply(x: Masked, y: Masked) -> Additive:
    """Element-wise product, with broadcasting."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    return bilinear("multiply", np.multiply, x, y, shape)


def matmul(x: Masked, y: Masked) -> Additive:
    """Matrix product of x[m, k] and y[k, n]."""
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[1] != y.shape[0]:
        raise ValueError(f"matmul: shapes {x.shape} and {y.shape} do not fit")
    return bilinear("matmul", ring.matmul, x, y, (x.shape[0], y.shape[1]))


def remask(z: Additive) -> Masked:
    """Masked form of a sum of summands. 1 round, opens 8 bytes.

    Corrections: 8 bytes where the dealer has a summand, else none.
    """
    role = z.role
    role.issue("remask", prod(z.shape))
    mask = role.mask(z.shape)
    delta = role.open(z.part, mask)
    lam = mask.words
    if z.has_dealt:
        # Δ opened is z − dealt + mask, so the mask of z is mask − dealt: known to the dealer.
        lam = role.deal(lam - z.dealt if z.dealt is not None else None, z.shape)
    return Masked(role, z.shape, delta, lam)


def truncate(z: Additive, bits: int) -> Masked:
    """z / 2^bits, rounded to one of its two neighbours without bias; exact up to one unit.

    z: −2^62 <= z < 2^62 (the caller's interval analysis guarantees it), 1 <= bits <= 62.
    2 rounds, opens 8 + ceil(bits / 8) bytes; corrections 8 + ceil(bits / 8). The first of the
    rounds already gives the `early` form modulo 2^(64 − bits) that comparisons start from.

    1. Open c = z + 2^62 + r. The dealer's summand of z needs no correction: it goes into r.
    2. With m = msb(r), u = r >> bits, S uniform modulo 2^bits: the mask of the result is
       u + 2^(64 − bits)·S.
    3. Open V = (1 − msb c)·m + S modulo 2^bits. msb c = 0 and m = 1 is exactly the case in which
       z + 2^62 + r has wrapped around.
    4. Δ = (c >> bits) − 2^(62 − bits) + 2^(64 − bits)·V.

    The result is floor(z / 2^bits) + [(c − 2^62) mod 2^bits < z mod 2^bits]: evaluators learn the
    offset of the rounding, the dealer its random part. Wrap bit: SecureQ8 (Dalskov, Escudero,
    Keller 2020); stochastic rounding in training: Keller and Sun (ICML 2022).
    """
    if not 1 <= bits <= HEADROOM_BITS:
        raise RangeError(f"truncation by {bits} bits: 1 to {HEADROOM_BITS} are possible")
    role = z.role
    role.issue("truncate", prod(z.shape), bits)
    high = 64 - bits
    # 1
    mask = role.mask(z.shape)
    opened = role.open(z.shift(1 << HEADROOM_BITS).part, mask)
    # 2
    u = m = None
    if role.is_dealer:
        r = mask.words if z.dealt is None else mask.words - z.dealt
        u, m = ring.shift_right(r, bits), ring.top_bit(r)
    u_share = role.deal(u, z.shape)
    m_share = role.deal(m, z.shape, bits)
    # 3
    spread = role.mask(z.shape)

    def wrap(c: Words) -> Words:
        return np.where(c < 0, 0, m_share)

    wrapped = role.open(opened.map(wrap), spread, bits)
    # 4
    offset = np.int64(1 << (HEADROOM_BITS - bits))
    early_delta = opened.map(lambda c: ring.shift_right(c, bits) - offset)
    delta = combine(lambda d, v: d + (v << np.int64(high)), early_delta, wrapped)
    lam = (u_share if u is None else u) + (spread.words << np.int64(high))
    return Masked(role, z.shape, delta, lam, early=Early(high, early_delta, u))


def select(bit: MaskedBit, x: Masked) -> Additive:
    """Summands, at the evaluators alone, of b·x element-wise. No opening; corrections 8 bytes.

    [b·x]_i = β·[x]_i + (1 − 2β)·(Δx·[μ]_i − [μ·λx]_i)
    """
    role = bit.role
    shape = np.broadcast_shapes(bit.shape, x.shape)
    role.issue("select", *shape)
    mu, lam = bit.mu, x.lam
    if x.masked:
        product = np.broadcast_to(mu * lam, shape) if role.is_dealer and lam is not None else None
        cross = role.deal(product, shape)

    def part(beta: Words, dx: Words) -> Words:
        hidden = dx * mu
        if x.masked:
            hidden = hidden - cross
        hidden = hidden - beta * (hidden + hidden)
        if role.is_first:
            return hidden + beta * (dx if lam is None else dx - lam)
        return hidden if lam is None else hidden - beta * lam

    return Additive(role, shape, combine(part, bit.beta, x.delta), None)


def reduce_words(words: Words, bits: int) -> Words:
    """Elements modulo 2^bits."""
    return words if bits == 64 else words & low_mask(bits)
