"""The norm of vectors whose owner may choose any words: exact, and not to be wrapped around."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest

from protocols.errors import RangeError
from protocols.functions.norm_bound import BUCKETS, MOST_NORM, REPEATS, within
from protocols.ring import kernels
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked
from tests.support.lockstep import compute
from tests.support.loopback import secret

SMALL, LARGE = 50, BUCKETS * REPEATS + 1
"""Sizes that are checked element by element, and by sums."""


def _bits(square: int, vectors: list[np.ndarray], role: Role) -> Masked:
    shared = [secret(role, one, number % role.evaluators) for number, one in enumerate(vectors)]
    return remask(within(shared, square).shares())


def bits(square: int, *vectors: np.ndarray, evaluators: int = 2) -> list[int]:
    with np.errstate(over="ignore"):
        found = compute(partial(_bits, square, list(vectors)), evaluators)
    return [int(one) for one in found]


def vector(size: int, **places: int) -> np.ndarray:
    found = np.zeros(size, np.int64)
    for place, word in places.items():
        found[int(place[1:])] = word
    return found


@pytest.mark.parametrize("size", [1, SMALL, LARGE])
def test_the_bound_is_exact(size: int) -> None:
    """One unit decides."""
    norm = 1000
    assert bits(norm**2, vector(size, _0=norm), vector(size, _0=norm + 1)) == [1, 0]
    assert bits(norm**2, vector(size, _0=-norm), vector(size, _0=-norm - 1)) == [1, 0]
    assert bits(norm**2 - 1, vector(size, _0=norm)) == [0]


def test_dense_vectors() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(-300, 300, LARGE)
    square = int((one**2).sum())
    assert bits(square, one, one, -one) == [1, 1, 1]
    assert bits(square - 1, one) == [0]
    assert bits(square, one * 1000, 2 * one) == [0, 0]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_words_that_wrap_around(size: int) -> None:
    """The sum of squares of each of these is small modulo 2^64, and each would ruin a sum."""
    traps = [
        vector(size, _3=1 << 32),
        vector(size, _3=-(1 << 63)),
        vector(size, _3=1 << 61, _4=1 << 61),
        vector(size, _0=-(1 << 63), _1=-(1 << 63)),
        np.full(size, -(1 << 63)),
        np.full(size, 1 << 62),
        np.full(size, 1 << 32),
    ]
    for trap in traps:
        with np.errstate(over="ignore"):
            assert 0 <= int((trap * trap).sum()) <= 100
    assert bits(100, *traps) == [0] * len(traps)


def test_squares_that_add_up_to_a_small_word() -> None:
    """No element wraps around by itself, and four squares of 2^31 are 2^64."""
    trap = vector(LARGE, _0=1 << 31, _1=1 << 31, _2=1 << 31, _3=1 << 31)
    with np.errstate(over="ignore"):
        assert int((trap * trap).sum()) == 0
    assert bits(MOST_NORM**2, trap) == [0]
    assert bits(MOST_NORM**2, vector(LARGE, _0=MOST_NORM)) == [1]


def test_three_evaluators() -> None:
    assert bits(25, vector(4, _0=3, _1=4), vector(4, _0=3, _1=5), evaluators=3) == [1, 0]


def test_a_bound_that_could_wrap_is_refused() -> None:
    for square in (0, 2 * MOST_NORM**2):
        with pytest.raises(RangeError, match="at most"):
            bits(square, vector(4))


def test_sums_go_where_public_places_say() -> None:
    words, rng = np.array([5, -7, 1 << 62, -(1 << 63)]), np.random.default_rng(3)
    places = rng.integers(-(1 << 63), 1 << 63, 4)
    out = np.zeros((5, 8), np.int64)
    expected: list[list[int]] = [[0] * 8 for _ in range(5)]
    kernels.scattered(words, places, 3, out)
    for word, place in zip(words.tolist(), places.tolist(), strict=True):
        for row in range(5):
            part = place >> 4 * row
            expected[row][part & 7] += -word if part & 8 else word
    for found, right in zip(out.tolist(), expected, strict=True):
        assert [(a - b) % (1 << 64) for a, b in zip(found, right, strict=True)] == [0] * 8


def test_the_places_are_drawn_after_the_vectors_and_anew() -> None:
    """Whoever knew them could choose a vector that vanishes in every sum."""
    seen = []

    def program(role: Role) -> Masked:
        if isinstance(role, Evaluator):
            role._entropy = os.urandom  # the test's own would be the same each time
        first, second = (role.common((32,), anew=anew) for anew in (False, True))
        third = role.common((32,), anew=True)
        if not role.is_dealer:
            seen.append([one.get().tobytes() for one in (first, second, third)])
        return secret(role, np.zeros(1, np.int64))

    compute(program)
    assert seen[0] == seen[1] and len(set(seen[0])) == 3
