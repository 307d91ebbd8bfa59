"""The value types of masked sharing, and everything that is local on them.

A secret x in Z_2^64 is held as Δ = x + λ. Every evaluator knows Δ (or will get it, see `deferred`)
and holds a share [λ]_i; the dealer knows only λ. Three types:

* `Masked`: the pair (Δ, λ).
* `Additive`: summands, one an evaluator and possibly one at the dealer, whose sum is the secret.
  Products come out like this; they become `Masked` by an opening (`arithmetic`).
* `MaskedBit`: a secret bit b as a public β = b ⊕ μ and additive shares of the bit μ.

Sums, differences, reshapes, slices and products with public integers are local, without
communication. No `repr` shows a value, a mask or a share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from protocols.arrays import Shape, Words
from protocols.roles.deferred import Deferred, combine
from protocols.roles.role import Role

Linear = Callable[[Words], Words]


@lru_cache(4096)
def joint_shape(x: Shape, y: Shape) -> Shape:
    """The shape of x + y with broadcasting. A program asks for few shapes, over and over."""
    return np.broadcast_shapes(x, y)


@lru_cache(4096)
def reduced_shape(shape: Shape, axis: int | tuple[int, ...] | None, keepdims: bool) -> Shape:
    """The shape that a sum over `axis` leaves."""
    empty = np.broadcast_to(np.bool_(True), shape)
    return np.asarray(np.any(empty, axis=axis, keepdims=keepdims)).shape


@lru_cache(4096)
def _reshaped(shape: Shape, target: Shape) -> Shape:
    """`target` with −1 replaced by what is left."""
    return np.empty(shape, np.bool_).reshape(target).shape


@dataclass(frozen=True, slots=True, repr=False)
class Early:
    """A masked form modulo 2^bits of a value in [−2^(bits − 1), 2^(bits − 1)), for comparisons.

    A truncation knows it one round before the full one. Bits of Δ and λ above are not looked at.
    lam is the dealer's mask; evaluators hold no share of it and need none: it serves comparisons.
    """

    bits: int
    delta: Deferred[Words]
    lam: Words | None

    def map(self, function: Linear) -> Early:
        lam = None if self.lam is None else function(self.lam)
        return Early(self.bits, self.delta.map(function), lam)


@dataclass(frozen=True, slots=True, repr=False)
class Masked:
    """A secret tensor x as (Δ, λ), Δ = x + λ modulo 2^64.

    delta: Δ, int64[shape], known to all evaluators. lam: an evaluator's share of λ, at the
    dealer λ itself; None where it is zero. masked: False for a public constant, the same at all
    roles.
    """

    role: Role
    shape: Shape
    delta: Deferred[Words]
    lam: Words | None
    masked: bool = True
    early: Early | None = None

    def __repr__(self) -> str:
        return f"Masked(shape={self.shape})"

    @property
    def size(self) -> int:
        return prod(self.shape)

    def _map(self, shape: Shape, function: Linear, keep_early: bool) -> Masked:
        lam = None if self.lam is None else function(self.lam)
        early = self.early.map(function) if keep_early and self.early is not None else None
        return Masked(self.role, shape, self.delta.map(function), lam, self.masked, early)

    def linear(self, shape: Shape, function: Linear) -> Masked:
        """A linear map without constants, to words of `shape`; applied to Δ and to λ."""
        return self._map(shape, function, False)

    def moved(self, shape: Shape, function: Linear) -> Masked:
        """As `linear`, for a function that only copies elements, so that a truncation's early
        form goes along."""
        return self._map(shape, function, True)

    def narrowed(self, bits: int) -> Masked:
        """The same secret with an early form modulo 2^bits, for shorter comparisons.

        For values of which the caller knows that they and their differences lie in
        [−2^(bits−1), 2^(bits−1)), such as a choice among values that a truncation by 64 − bits
        gave.
        """
        lam = self.lam if self.role.is_dealer else None
        return replace(self, early=None if bits == 64 else Early(bits, self.delta, lam))

    def reshape(self, *shape: int) -> Masked:
        target = _reshaped(self.shape, shape)
        return self._map(target, lambda words: words.reshape(target), True)

    def transpose(self, *axes: int) -> Masked:
        order = axes or tuple(reversed(range(len(self.shape))))
        shape = tuple(self.shape[axis] for axis in order)
        return self._map(shape, lambda words: words.transpose(order), True)

    def select(self, index: Any) -> Masked:
        """Elements by any NumPy index that is public."""
        shape = np.broadcast_to(np.bool_(True), self.shape)[index].shape
        return self._map(shape, lambda words: words[index], True)

    def broadcast_to(self, shape: Shape) -> Masked:
        return self._map(shape, lambda words: np.broadcast_to(words, shape), True)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Masked:
        shape = reduced_shape(self.shape, axis, keepdims)
        return self._map(
            shape,
            lambda words: np.asarray(np.sum(words, axis=axis, keepdims=keepdims)).reshape(shape),
            False,
        )

    def scale(self, factor: int | Words) -> Masked:
        """The product with a public integer, or element-wise with public integers."""
        constant = np.asarray(factor, np.int64)
        shape = joint_shape(self.shape, constant.shape)
        return self._map(shape, lambda words: words * constant, False)

    def __neg__(self) -> Masked:
        return self._map(self.shape, np.negative, True)

    def shift(self, constant: int | Words) -> Masked:
        """The sum with a public integer or public integers of a shape that broadcasts."""
        words = np.asarray(constant, np.int64)
        shape = joint_shape(self.shape, words.shape)
        base = self if shape == self.shape else self.broadcast_to(shape)

        def added(delta: Words) -> Words:
            return delta + words

        early = base.early
        if early is not None:
            early = Early(early.bits, early.delta.map(added), early.lam)
        return Masked(self.role, shape, base.delta.map(added), base.lam, self.masked, early)

    def __add__(self, other: Masked) -> Masked:
        return self._join(other, np.add)

    def __sub__(self, other: Masked) -> Masked:
        return self._join(other, np.subtract)

    def _join(self, other: Masked, function: Any) -> Masked:
        shape = joint_shape(self.shape, other.shape)
        early = None
        mine, theirs = self.early, other.early
        if mine is not None and theirs is not None and mine.bits == theirs.bits:
            lam = _join_masks(function, mine.lam, theirs.lam, shape)
            early = Early(mine.bits, combine(function, mine.delta, theirs.delta), lam)
        return Masked(
            self.role,
            shape,
            combine(function, self.delta, other.delta),
            _join_masks(function, self.lam, other.lam, shape),
            self.masked or other.masked,
            early,
        )

    def shares(self) -> Additive:
        """Additive shares among the evaluators alone: Δ at the first, less [λ]_i at each."""
        role, lam = self.role, self.lam

        def share(delta: Words) -> Words:
            if role.is_first:
                return delta if lam is None else delta - lam
            return np.zeros(delta.shape, np.int64) if lam is None else -lam

        return Additive(role, self.shape, self.delta.map(share), None)


def _join_masks(
    function: Any, mine: Words | None, theirs: Words | None, shape: Shape
) -> Words | None:
    if theirs is None:
        return mine if mine is None or mine.shape == shape else np.broadcast_to(mine, shape)
    left = np.zeros(shape, np.int64) if mine is None else mine
    joined: Words = function(left, theirs)
    return joined


@dataclass(frozen=True, slots=True, repr=False)
class Additive:
    """Summands of a secret tensor.

    part: an evaluator's summand, int64[shape]. dealt: the dealer's summand, which depends on
    masks only; None elsewhere, and at the dealer when the evaluators hold everything.
    """

    role: Role
    shape: Shape
    part: Deferred[Words]
    dealt: Words | None
    has_dealt: bool = False

    def __repr__(self) -> str:
        return f"Additive(shape={self.shape})"

    def _map(self, shape: Shape, function: Linear) -> Additive:
        dealt = None if self.dealt is None else function(self.dealt)
        return Additive(self.role, shape, self.part.map(function), dealt, self.has_dealt)

    def linear(self, shape: Shape, function: Linear) -> Additive:
        """A linear map without constants, to words of `shape`."""
        return self._map(shape, function)

    def reshape(self, *shape: int) -> Additive:
        target = _reshaped(self.shape, shape)
        return self._map(target, lambda words: words.reshape(target))

    def transpose(self, *axes: int) -> Additive:
        order = axes or tuple(reversed(range(len(self.shape))))
        shape = tuple(self.shape[axis] for axis in order)
        return self._map(shape, lambda words: words.transpose(order))

    def select(self, index: Any) -> Additive:
        shape = np.broadcast_to(np.bool_(True), self.shape)[index].shape
        return self._map(shape, lambda words: words[index])

    def broadcast_to(self, shape: Shape) -> Additive:
        return self._map(shape, lambda words: np.broadcast_to(words, shape))

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Additive:
        shape = reduced_shape(self.shape, axis, keepdims)
        return self._map(
            shape,
            lambda words: np.asarray(np.sum(words, axis=axis, keepdims=keepdims)).reshape(shape),
        )

    def scale(self, factor: int) -> Additive:
        constant = np.int64(factor)
        return self._map(self.shape, lambda words: words * constant)

    def __neg__(self) -> Additive:
        return self._map(self.shape, np.negative)

    def shift(self, constant: int | Words) -> Additive:
        """The sum with a public integer or integers: the first evaluator adds it."""
        words = np.asarray(constant, np.int64)
        shape = joint_shape(self.shape, words.shape)
        base = self if shape == self.shape else self.broadcast_to(shape)
        if not self.role.is_first:
            return base
        part = base.part.map(lambda mine: mine + words)
        return Additive(self.role, shape, part, base.dealt, self.has_dealt)

    def __add__(self, other: Additive) -> Additive:
        shape = joint_shape(self.shape, other.shape)
        part = combine(np.add, self.part, other.part)
        dealt = _join_masks(np.add, self.dealt, other.dealt, shape)
        return Additive(self.role, shape, part, dealt, self.has_dealt or other.has_dealt)

    def __sub__(self, other: Additive) -> Additive:
        return self + -other


@dataclass(frozen=True, slots=True, repr=False)
class MaskedBit:
    """Secret bits b as public β = b ⊕ μ and the masks μ.

    beta: int64[shape] of 0 and 1, known to all evaluators. mu: an evaluator's additive share of μ
    modulo 2^64, at the dealer μ itself.
    """

    role: Role
    shape: Shape
    beta: Deferred[Words]
    mu: Words

    def __repr__(self) -> str:
        return f"MaskedBit(shape={self.shape})"

    def reshape(self, *shape: int) -> MaskedBit:
        target = _reshaped(self.shape, shape)
        beta = self.beta.map(lambda bits: bits.reshape(target))
        return MaskedBit(self.role, target, beta, self.mu.reshape(target))

    def select(self, index: Any) -> MaskedBit:
        mu = self.mu[index]
        return MaskedBit(self.role, mu.shape, self.beta.map(lambda bits: bits[index]), mu)

    def broadcast_to(self, shape: Shape) -> MaskedBit:
        beta = self.beta.map(lambda bits: np.broadcast_to(bits, shape))
        return MaskedBit(self.role, shape, beta, np.broadcast_to(self.mu, shape))

    def negate(self) -> MaskedBit:
        """The bits 1 − b: β changes, the masks stay."""
        return MaskedBit(self.role, self.shape, self.beta.map(lambda bits: 1 - bits), self.mu)

    def shares(self) -> Additive:
        """Additive shares of b = β + (1 − 2β)·μ among the evaluators alone."""
        role, mu = self.role, self.mu

        def share(beta: Words) -> Words:
            mine = mu * (1 - 2 * beta)
            return mine + beta if role.is_first else mine

        return Additive(role, self.shape, self.beta.map(share), None)


def public(role: Role, value: Words) -> Masked:
    """A public constant: Δ = value, λ = 0."""
    return Masked(role, value.shape, role.known(value), None, masked=False)


def concatenate(parts: Sequence[Masked], axis: int = 0) -> Masked:
    """Masked tensors one after the other along `axis`; where one has no mask, zeros stand."""
    first = parts[0]
    shape = np.concatenate([np.empty(part.shape, np.bool_) for part in parts], axis).shape
    delta = first.delta.map(lambda words: [words])
    for part in parts[1:]:
        delta = combine(lambda found, words: [*found, words], delta, part.delta)
    lam = None
    if any(part.lam is not None for part in parts):
        # Zeros that are never written take no memory: the masks of others' rows.
        lam = np.zeros(shape, np.int64)
        ends = np.cumsum([part.shape[axis] for part in parts])[:-1]
        for part, place in zip(parts, np.split(lam, ends, axis), strict=True):
            if part.lam is not None:
                place[...] = part.lam
    joined = delta.map(lambda words: np.concatenate(words, axis))
    return Masked(first.role, shape, joined, lam, any(part.masked for part in parts))


def together(bits: Sequence[MaskedBit]) -> MaskedBit:
    """Masked bits of one shape side by side, along a new first axis."""
    first = bits[0]
    beta = first.beta.map(lambda words: words[None])
    for other in bits[1:]:
        beta = combine(lambda found, words: np.concatenate([found, words[None]]), beta, other.beta)
    mu = np.stack([one.mu for one in bits])
    return MaskedBit(first.role, mu.shape, beta, mu)
