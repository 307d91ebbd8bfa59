"""Shares of a key: any k give it, k-1 are independent of it; checked against linear algebra."""

import itertools
import secrets
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import EnvelopeError
from protocols.sealing.secret_sharing import PRIME, combine_shares, split_secret

SECRET = bytes(range(32))


def solved(points: dict[int, int]) -> int:
    """f(0) by Gaussian elimination on the Vandermonde system: a second implementation."""
    rows = [[pow(x, power, PRIME) for power in range(len(points))] + [y] for x, y in points.items()]
    for column in range(len(rows)):
        pivot = next(row for row in rows[column:] if row[column])
        rows.remove(pivot)
        inverse = pow(pivot[column], PRIME - 2, PRIME)
        pivot = [value * inverse % PRIME for value in pivot]
        rows.insert(column, pivot)
        for place, row in enumerate(rows):
            if place != column:
                rows[place] = [
                    (value - row[column] * other) % PRIME
                    for value, other in zip(row, pivot, strict=True)
                ]
    return rows[0][-1]


def test_the_modulus_is_the_smallest_prime_above_all_secrets() -> None:
    def is_prime(number: int) -> bool:
        """Miller and Rabin, 32 random bases."""
        odd, twos = number - 1, 0
        while not odd % 2:
            odd, twos = odd // 2, twos + 1
        for _ in range(32):
            x = pow(secrets.randbelow(number - 3) + 2, odd, number)
            powers = [pow(x, 1 << step, number) for step in range(twos)]
            if x != 1 and number - 1 not in powers:
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range((1 << 256) + 1, PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_any_threshold_of_the_shares_gives_the_secret(secret: bytes, k: int, more: int) -> None:
    shares = dict(enumerate(split_secret(secret, k, k + more), 1))
    for places in itertools.islice(itertools.combinations(shares, k), 20):
        some = {place: shares[place] for place in places}
        assert combine_shares(some) == secret
        points = {place: int.from_bytes(share, "big") for place, share in some.items()}
        assert solved(points) == int.from_bytes(secret, "big")
    assert combine_shares(shares) == secret


def drawn(values: list[int]) -> Callable[[int], int]:
    """Gives these numbers instead of random ones."""
    left = list(values)

    def draw(below: int) -> int:
        assert below == PRIME
        return left.pop(0)

    return draw


def test_pinned_shares() -> None:
    """f(x) = secret + 5x + 7x² modulo the prime."""
    shares = split_secret(SECRET, 3, 4, drawn([5, 7]))
    number = int.from_bytes(SECRET, "big")
    assert [int.from_bytes(share, "big") for share in shares] == [
        (number + 5 * x + 7 * x * x) % PRIME for x in range(1, 5)
    ]
    assert all(len(share) == 33 for share in shares)


@given(st.binary(min_size=32, max_size=32), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_fewer_shares_fit_every_secret(other: bytes, k: int) -> None:
    """For k-1 shares of one secret there are coefficients with which they are shares of another:
    what k-1 recipients hold is independent of the key."""
    shares = split_secret(SECRET, k, k + 2)
    for places in itertools.combinations(range(1, k + 3), k - 1):
        points = {place: int.from_bytes(shares[place - 1], "big") for place in places}
        points[0] = int.from_bytes(other, "big")
        assert solved(points) == points[0]  # the polynomial through all of them exists


def test_one_of_n_is_the_secret_itself() -> None:
    assert split_secret(SECRET, 1, 2) == (b"\0" + SECRET, b"\0" + SECRET)


@pytest.mark.parametrize(("threshold", "count"), [(0, 1), (3, 2), (1, 256), (-1, 2)])
def test_impossible_thresholds_are_refused(threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split_secret(SECRET, threshold, count)


def test_secrets_of_another_length_are_refused() -> None:
    for secret in (b"", SECRET[:-1], SECRET + b"\0"):
        with pytest.raises(ValueError, match="32 bytes"):
            split_secret(secret, 2, 3)


def test_bytes_that_are_no_shares_are_one_error() -> None:
    good = dict(enumerate(split_secret(SECRET, 2, 2), 1))
    for bad in (
        {},
        {1: good[1][:-1], 2: good[2]},
        {1: b"\xff" * 33, 2: good[2]},
        {0: good[1], 2: good[2]},
        {256: good[1], 2: good[2]},
        {1: PRIME.to_bytes(33, "big")},
        {1: (PRIME - 1).to_bytes(33, "big")},
    ):
        with pytest.raises(EnvelopeError, match=r"shares? of a key"):
            combine_shares(bad)
