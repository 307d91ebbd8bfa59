"""Encoding: exact where it fits, RangeError where it does not."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RangeError
from protocols.ring.fixed_point import check_fraction_bits, decode, encode
from protocols.ring.rational import mantissa

BITS = st.integers(8, 26)


@given(BITS, st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_nearest(bits: int, values: list[float]) -> None:
    words = encode(np.array(values), bits)
    for word, value in zip(words.tolist(), values, strict=True):
        assert abs(Fraction(word, 1 << bits) - Fraction(value)) <= Fraction(1, 2 << bits)
    np.testing.assert_array_equal(encode(decode(words, bits), bits), words)


def test_vectors() -> None:
    words = encode(np.array([0, -0.0, 1, -1, 0.5, -0.5, 1.5 / 256, 2.5 / 256, -2.5 / 256]), 8)
    assert words.tolist() == [0, 0, 256, -256, 128, -128, 2, 2, -2]
    assert decode(words, 8).tolist()[:4] == [0, 0, 1, -1]


@pytest.mark.parametrize("bits", [8, 20, 26])
def test_range(bits: int) -> None:
    limit = 2.0 ** (62 - bits)
    inside = np.nextafter(limit, 0)
    assert encode(np.array([inside, -inside]), bits).tolist() == [
        2**62 - 2**9,
        -(2**62) + 2**9,
    ]
    for bad in (limit, -limit, 1e300, np.inf, -np.inf, np.nan):
        values = np.zeros((2, 3))
        values[1, 2] = bad
        with pytest.raises(RangeError, match=r"\(1, 2\)") as caught:
            encode(values, bits)
        assert str(bad) not in str(caught.value)


@pytest.mark.parametrize("bits", [-1, 0, 7, 27, 62])
def test_fraction_bits(bits: int) -> None:
    with pytest.raises(RangeError):
        check_fraction_bits(bits)


def test_fraction_bits_that_a_job_may_use() -> None:
    assert [check_fraction_bits(bits) for bits in (8, 26)] == [8, 26]


@given(
    st.fractions(-(2**20), 2**20).filter(lambda x: x != 0),
    st.integers(1, 24),
)
def test_mantissa_is_the_nearest(factor: Fraction, bits: int) -> None:
    try:
        whole, shift = mantissa(factor, bits)
    except RangeError:
        assert abs(factor) >= (1 << bits) - Fraction(1, 2)
        return
    assert abs(whole) < 1 << bits and shift >= 0
    assert abs(Fraction(whole, 1 << shift) - factor) <= abs(factor) / (1 << bits)
    assert shift == 0 or whole % 2


def test_mantissa_vectors() -> None:
    assert mantissa(Fraction(0), 12) == (0, 0)
    assert mantissa(Fraction(1, 2), 12) == (1, 1)
    assert mantissa(Fraction(-3, 8), 12) == (-3, 3)
    assert mantissa(Fraction(1, 10), 12) == (3277, 15)
    assert mantissa(Fraction(4095, 4096), 4) == (1, 0)  # rounds up to a power of two
    with pytest.raises(RangeError):
        mantissa(Fraction(16), 4)
