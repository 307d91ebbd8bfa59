"""Products, truncation and re-masking: from secrets to secrets, one opening at a time.

Each function is run by evaluators and dealer alike. Costs are for one output element: openings
are bytes that an evaluator sends to each other evaluator, corrections are bytes that the dealer
sends to one evaluator.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from protocols.arrays import Shape, Words
from protocols.errors import RangeError
from protocols.ring import kernels, products
from protocols.ring.rational import HEADROOM_BITS
from protocols.roles.deferred import Deferred, combine
from protocols.roles.role import Role
from protocols.shares.masked import Additive, Early, Masked, MaskedBit, joint_shape

ROUNDING_BITS = 20
"""The most bits below the last place that a truncation opens; they decide how it rounds."""


def bilinear(
    name: str, function: products.Bilinear, x: Masked, y: Masked, shape: Shape
) -> Additive:
    """Summands of B(x, y) for a bilinear B that yields `shape`. No communication.

    Evaluator i: − B(Δx, [λy]_i) − B([λx]_i, Δy), and B(Δx, Δy) at the first, which joins it to
    the first term. The dealer: B(λx, λy).
    """
    role = x.role
    role.issue(name, *x.shape, *y.shape)
    x_lam, y_lam = x.lam, y.lam

    def part(dx: Words, dy: Words) -> Words:
        pairs = []
        if role.is_first:
            pairs.append((dx, -dy if y_lam is None else y_lam - dy))
        elif y_lam is not None:
            pairs.append((dx, y_lam))
        if x_lam is not None:
            pairs.append((x_lam, dy))
        return function(pairs, True) if pairs else np.zeros(shape, np.int64)

    dealt = None
    has_dealt = x.masked and y.masked
    if role.is_dealer and has_dealt:
        assert x_lam is not None and y_lam is not None
        dealt = function([(x_lam, y_lam)], False)
    return Additive(role, shape, combine(part, x.delta, y.delta), dealt, has_dealt)


_elementwise = products.summed(np.multiply)


def multiply(x: Masked, y: Masked) -> Additive:
    """Element-wise product, with broadcasting."""
    shape = joint_shape(x.shape, y.shape)
    return bilinear("multiply", _elementwise, x, y, shape)


def matmul(x: Masked, y: Masked) -> Additive:
    """Matrix product of x[m, k] and y[k, n]."""
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[1] != y.shape[0]:
        raise ValueError(f"matmul: shapes {x.shape} and {y.shape} do not fit")
    return bilinear("matmul", products.sum_of_products, x, y, (x.shape[0], y.shape[1]))


def square_sum(x: Masked) -> Additive:
    """Summands of Σ x² over a vector x[n], int64[1]. No communication, and no array of its size.

    Evaluator i: − 2 Σ Δ·[λ]_i, and Σ Δ² at the first. The dealer: Σ λ².
    """
    role, lam = x.role, x.lam
    role.issue("square sum", *x.shape)

    def part(delta: Words) -> Words:
        total = np.zeros(1, np.int64)
        if lam is not None:
            total -= 2 * products.inner(delta, lam)
        if role.is_first:
            total += products.inner(delta, delta)
        return total

    dealt = None
    if role.is_dealer and x.masked:
        assert lam is not None
        dealt = products.inner(lam, lam)
    return Additive(role, (1,), x.delta.map(part), dealt, x.masked)


def remask(z: Additive) -> Masked:
    """Masked form of a sum of summands. 1 round, opens 8 bytes.

    Corrections: 8 bytes if the dealer has a summand, otherwise none.
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


@dataclass(frozen=True, slots=True, repr=False)
class Rounded:
    """t = z / 2^bits right after its first opening; evaluators hold summands of it.

    c = z + r is public (of a long truncation without its lowest bits), u = r >> bits and
    m = msb(r) are dealt: an evaluator's share, at the dealer the value. With
    d = ((c + 2^62) >> bits) − 2^(62 − bits) and b = msb(c + 2^62),

        t = d + 2^(64 − bits)·(1 − b)·m − u.

    A comparison or a selection can start from here; everything else needs `lift`.
    """

    role: Role
    shape: Shape
    bits: int
    opened: Deferred[Words]
    u: Words
    m: Words

    def __repr__(self) -> str:
        return f"Rounded(shape={self.shape})"

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def early(self) -> Early:
        """t modulo 2^(64 − bits), where the term with m vanishes: Δ = d, λ = u."""
        u = self.u if self.role.is_dealer else None
        return Early(64 - self.bits, self.opened.map(self._low), u)

    def _low(self, c: Words) -> Words:
        out = np.empty(self.shape, np.int64)
        kernels.rounded(c.reshape(-1), self.bits, out.reshape(-1))
        return out

    def lift(self) -> Masked:
        """t in masked form. 1 round, opens a packed word of `bits` bits.

        With S uniform modulo 2^bits, V = (1 − b)·m + S modulo 2^bits is opened:
        Δ = d + 2^(64 − bits)·V and λ = u + 2^(64 − bits)·S.
        """
        role, bits, shape, m = self.role, self.bits, self.shape, self.m.reshape(-1)
        role.issue("lift", self.size, bits)
        spread = role.mask(shape, bits)

        def unwrapped(c: Words) -> Words:
            out = np.empty(shape, np.int64)
            kernels.unless_top(c.reshape(-1), m, out.reshape(-1))
            return out

        def joined(c: Words, v: Words) -> Words:
            out = np.empty(shape, np.int64)
            kernels.lifted(c.reshape(-1), v.reshape(-1), bits, out.reshape(-1))
            return out

        v = role.open(self.opened.map(unwrapped), spread, bits)
        lam = np.empty(shape, np.int64)
        kernels.mask_of_lifted(self.u.reshape(-1), spread.words.reshape(-1), bits, lam.reshape(-1))
        return Masked(role, shape, combine(joined, self.opened, v), lam, early=self.early)


def round_off(z: Additive, bits: int, *, exact: bool = False) -> Rounded:
    """z / 2^bits, rounded to one of its two neighbours without bias. 1 round.

    z: −2^62 <= z < 2^62 (the caller's interval analysis guarantees it), 1 <= bits <= 62. Opens 8
    bytes, for more than 20 bits a packed word of 84 − bits bits. Corrections: 8 bytes and a packed
    word of `bits` bits. exact: 8 bytes are opened for any `bits`, and z itself is rounded, not a
    number in its place.

    1. Open c = z + r. The dealer's summand of z needs no correction: it goes into r. Of more than
       20 bits below the last place, evaluators leave the lowest out of what they send. So c is a
       multiple of 2^(bits − 20) and the sum of r without its lowest bits and of a number in place
       of z, less than N · 2^(bits − 20) from it and equal on average; within so much of the ends
       of the range, z is not exact. The rest goes on with these.
    2. u = r >> bits and m = msb(r) are dealt, m modulo 2^bits. b = 0 and m = 1 is exactly the
       case in which (z + 2^62) + r has wrapped around.

    t is floor(z / 2^bits) + [c mod 2^bits < z mod 2^bits] for z or that number: evaluators
    learn the offset of the rounding, the dealer its random part. Wrap bit: SecureQ8 (Dalskov,
    Escudero, Keller 2020); stochastic rounding in training: Keller and Sun (ICML 2022).
    """
    if not 1 <= bits <= HEADROOM_BITS:
        raise RangeError(f"truncation by {bits} bits: 1 to {HEADROOM_BITS} are possible")
    role = z.role
    role.issue("round", prod(z.shape), bits)
    # 1
    mask = role.mask(z.shape)
    low = 0 if exact else max(bits - ROUNDING_BITS, 0)
    # Each evaluator leaves out 2^(low − 1) on average, and so does r'', which has the other sign.
    lost = (role.evaluators - 1) << (low - 1) if low else 0
    opened = role.open(z.shift(lost).part if lost else z.part, mask, low=low)
    # 2
    u = m = None
    if role.is_dealer:
        r = mask.words if z.dealt is None else mask.words - z.dealt
        u, m = np.empty(z.shape, np.int64), np.empty(z.shape, np.int64)
        kernels.split(r.reshape(-1), bits, u.reshape(-1), m.reshape(-1))
    u = role.deal(u, z.shape)
    m = role.deal(m, z.shape, bits)
    return Rounded(role, z.shape, bits, opened, u, m)


def truncate(z: Additive, bits: int) -> Masked:
    """z / 2^bits in masked form: `round_off` and `Rounded.lift`, 2 rounds.

    The first round already gives the `early` form modulo 2^(64 − bits) that comparisons start
    from.
    """
    return round_off(z, bits).lift()


def select(bit: MaskedBit, x: Masked | Rounded) -> Additive:
    """Summands, at the evaluators alone, of b·x element-wise. No opening.

    [b·x]_i = β·[x]_i + (1 − 2β)·(Δx·[μ]_i − [μ·λx]_i)

    Corrections: 8 bytes. For a `Rounded` x the mask of x is u − 2^(64 − s)·(1 − b)·m with public b,
    so that μ·u and μ·m are dealt: 8 bytes and a packed word of s bits.
    """
    role = bit.role
    if isinstance(x, Rounded):
        return _select_rounded(bit, x)
    shape = joint_shape(bit.shape, x.shape)
    role.issue("select", *shape)
    cross = None
    if x.masked:
        product = None
        if role.is_dealer:
            assert x.lam is not None
            product = np.asarray(np.broadcast_to(bit.mu * x.lam, shape))
        cross = role.deal(product, shape)

    def part(beta: Words, dx: Words) -> Words:
        out = np.empty(shape, np.int64)
        words = [_flat(w, shape) for w in (beta, dx, bit.mu, x.lam, cross)]
        kernels.selected(*words, role.is_first, out.reshape(-1))
        return out

    return Additive(role, shape, combine(part, bit.beta, x.delta), None)


def _select_rounded(bit: MaskedBit, x: Rounded) -> Additive:
    role, shape, bits = bit.role, x.shape, x.bits
    if bit.shape != shape:
        raise ValueError(f"select: bits of shape {bit.shape} and words of shape {shape}")
    role.issue("select rounded", *shape)
    mu_u = role.deal(bit.mu * x.u if role.is_dealer else None, shape)
    mu_m = role.deal(bit.mu * x.m if role.is_dealer else None, shape, bits)

    def part(beta: Words, c: Words) -> Words:
        out = np.empty(shape, np.int64)
        words = [_flat(w, shape) for w in (beta, c, bit.mu, x.u, x.m, mu_u, mu_m)]
        kernels.selected_rounded(*words, bits, role.is_first, out.reshape(-1))
        return out

    return Additive(role, shape, combine(part, bit.beta, x.opened), None)


def _flat(words: Words | None, shape: Shape) -> Words:
    if words is None:
        return np.zeros(prod(shape), np.int64)
    return (words if words.shape == shape else np.broadcast_to(words, shape)).ravel()
