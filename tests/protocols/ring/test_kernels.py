"""Kernels against NumPy and Python integers, at edges and at sizes that leave a remainder."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from protocols.comparison.bit_programs import SCRATCH_ROWS, Term, compiled
from protocols.ring import kernels
from protocols.ring.products import sum_of_products

SIZES = (0, 1, 2, 3, 7, 8, 9, 33, 130)
EDGES = np.array([0, 1, -1, 2**62, -(2**62), 2**62 - 1, 2**63 - 1, -(2**63)])


def words(seed: int, *shape: int) -> np.ndarray:
    found = np.random.default_rng(seed).integers(-(2**63), 2**63, shape)
    flat = found.reshape(-1)
    flat[: len(EDGES)] = EDGES[: flat.size]
    return found


def bits_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape)


def modulo(x: np.ndarray, bits: int) -> np.ndarray:
    return x & np.int64((1 << bits) - 1)


@pytest.mark.parametrize("bits", range(1, 64))
def test_packed_words(bits: int) -> None:
    for size in (*SIZES, 2 * kernels.PACKED_BLOCK + 3):
        x, y = words(1, size), words(2, size)[::-1].copy()
        packed = np.full(kernels.packed_size(size, bits), 255, np.uint8)
        for low in (64 - bits, 0):
            kernels.pack_sum(x, y, low, bits, packed)
            expected = modulo((x + y) >> low, bits)
            out = words(3, size)
            kernels.unpack(packed, bits, out)
            np.testing.assert_array_equal(out, expected)
        for sign in (1, -1):
            out = y.copy()
            kernels.add_unpacked(packed, bits, sign, out)
            np.testing.assert_array_equal(out, modulo(y + sign * expected, bits))
        other = np.random.default_rng(size).integers(0, 256, len(packed), np.uint8)
        theirs = words(4, size)
        kernels.unpack(other, bits, theirs)
        kernels.unpack_sum(packed, other, bits, out)
        np.testing.assert_array_equal(out, modulo(expected + theirs, bits))
        kernels.pack_difference(y, other, bits, packed)
        kernels.unpack(packed, bits, out)
        np.testing.assert_array_equal(out, modulo(y - theirs, bits))


def test_packed_sizes() -> None:
    assert [kernels.packed_size(3, bits) for bits in (1, 4, 5, 8, 20, 40, 44, 63)] == [
        *(2, 2, 3, 3, 8, 15, 17, 24)
    ]


@pytest.mark.parametrize("bits", [1, 20, 40, 62])
def test_rounding(bits: int) -> None:
    c, v, m = words(4, 50), words(5, 50), words(6, 50)
    z = [(int(x) + 2**62) % 2**64 for x in c]
    d = np.array([(x >> bits) - 2 ** (62 - bits) for x in z])
    out = np.empty(50, np.int64)
    kernels.rounded(c, bits, out)
    np.testing.assert_array_equal(out, d)
    kernels.unless_top(c, m, out)
    np.testing.assert_array_equal(out, np.where(np.array([x >> 63 for x in z]) == 0, m, 0))
    kernels.lifted(c, v, bits, out)
    np.testing.assert_array_equal(out, d + (v << np.int64(64 - bits)))
    kernels.mask_of_lifted(m, v, bits, out)
    np.testing.assert_array_equal(out, m + (v << np.int64(64 - bits)))
    u, top = np.empty(50, np.int64), np.empty(50, np.int64)
    kernels.split(c, bits, u, top)
    np.testing.assert_array_equal(u, [int(x) % 2**64 >> bits for x in c])
    np.testing.assert_array_equal(top, c < 0)


@pytest.mark.parametrize("first", [True, False])
def test_selections(first: bool) -> None:
    beta = bits_of(1, 40)
    dx, mu, lam, cross, u, m, mu_u, mu_m = (words(seed, 40) for seed in range(8))
    out = np.empty(40, np.int64)
    kernels.selected(beta, dx, mu, lam, cross, first, out)
    mine = (dx if first else 0) - lam
    np.testing.assert_array_equal(out, beta * mine + (1 - 2 * beta) * (dx * mu - cross))
    s = 20
    kernels.selected_rounded(beta, dx, mu, u, m, mu_u, mu_m, s, first, out)
    d, w = np.empty(40, np.int64), np.empty(40, np.int64)
    kernels.rounded(dx, s, d)
    kernels.unless_top(dx, np.full(40, 1 << (64 - s)), w)
    expected = beta * ((d if first else 0) + w * m - u)
    expected += (1 - 2 * beta) * (d * mu + w * mu_m - mu_u)
    np.testing.assert_array_equal(out, expected)


def planes_of(values: list[int], low: int, rows: int) -> np.ndarray:
    bits = np.array([[v >> (low + j) & 1 for v in values] for j in range(rows)], np.uint8)
    return np.packbits(bits, axis=-1, bitorder="little")


@pytest.mark.parametrize(("low", "rows"), [(0, 1), (0, 63), (10, 14), (63, 1), (3, 9)])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 70, 4096, 5001])
def test_bit_planes(low: int, rows: int, size: int) -> None:
    x = words(1, size)
    levels = np.array([0, -(2**63), 12345])
    for flip in (0, -1):
        out = np.full((rows, 3 * ((size + 7) // 8)), 170, np.uint8)
        kernels.bit_planes(x, levels, flip, low, out)
        moved = [[(int(v) - int(t) ^ flip) % 2**64 for v in x] for t in levels]
        expected = [planes_of(values, low, rows) for values in moved]
        valid = planes_of([-1] * size, 0, 1)
        for found, planes in zip(np.split(out, 3, axis=1), expected, strict=True):
            np.testing.assert_array_equal(found & valid, planes)


@pytest.mark.parametrize(("repeats", "size"), [(1, 0), (1, 1), (1, 70), (3, 5), (2, 64)])
def test_unpacked_bits(repeats: int, size: int) -> None:
    octets = np.random.default_rng(1).integers(0, 256, repeats * ((size + 7) // 8)).astype(np.uint8)
    out = np.empty(repeats * size, np.int64)
    kernels.unpack_bits(octets, size, out)
    found = np.unpackbits(octets.reshape(repeats, -1), axis=1, count=size, bitorder="little")
    np.testing.assert_array_equal(out, found.reshape(-1))


def value_of(terms: list[Term], arrays: list[np.ndarray], column: int) -> int:
    total = 0
    for hidden, public in terms:
        factor = 255
        for kind, row in (*([hidden] if hidden else []), *public):
            factor &= int(arrays[kind][row, column % arrays[kind].shape[1]])
        total ^= factor
    return total


@pytest.mark.parametrize("columns", [1, 33, 4097])
@pytest.mark.parametrize("repeats", [1, 3])
def test_programs_of_bits(columns: int, repeats: int) -> None:
    """Random sums of products of rows of all kinds, and one that is added to what is there."""
    rng = np.random.default_rng(columns)
    wide, narrow = rng.integers(0, 256, (2, 4, 4, repeats * columns)).astype(np.uint8)
    arrays = [*wide, *np.ascontiguousarray(narrow[..., :columns])]
    rows = [(kind, row) for kind in range(8) for row in range(4)]
    sums: list[tuple[int, list[Term]]] = []
    for index in range(3):
        drawn = [rng.choice(32, rng.integers(1, 6), replace=False) for _ in range(6)]
        picks = [[rows[place] for place in place_list] for place_list in drawn]
        hidden: list[Term] = [(pick[0], tuple(pick[1:])) for pick in picks[:4]]
        sums.append((index, [*hidden, *((None, tuple(pick)) for pick in picks[4:])]))
    start = rng.integers(0, 256, (3, repeats * columns)).astype(np.uint8)
    out = start.copy()
    scratch = np.empty((SCRATCH_ROWS, kernels.BLOCK), np.uint8)
    kernels.bit_program(compiled(sums, [2]), *arrays, out, scratch)
    for index, terms in sums:
        before = int(index == 2)
        for column in {0, columns - 1, repeats * columns - 1}:
            expected = value_of(terms, arrays, column) ^ before * int(start[index, column])
            assert out[index, column] == expected


@pytest.mark.parametrize("first", [True, False])
def test_weighted_bits(first: bool) -> None:
    weights, beta, mu = words(1, 3, 4), bits_of(2, 4, 9), words(3, 4, 9)
    out = np.empty((3, 9), np.int64)
    kernels.weighted_bits(weights, beta, mu, first, out)
    share = (beta if first else 0) + (1 - 2 * beta) * mu
    np.testing.assert_array_equal(out, weights @ share)


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 1, 1), (1, 5, 7), (7, 5, 1), (3, 0, 2), (0, 3, 4), (12, 9, 13), (13, 9, 12), (20, 30, 25)],
)
def test_matrix_products_in_any_layout(m: int, k: int, n: int) -> None:
    x, y = words(1, m, k), words(2, k, n)
    lefts = [x, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1].copy()[::-1]]
    rights = [y, np.asfortranarray(y), np.repeat(y, 2, 0)[::2]]
    for left in lefts:
        for right in rights:
            product = sum_of_products([(left, right)])
            np.testing.assert_array_equal(product, x @ y)
            assert product.flags.c_contiguous and product.flags.writeable


def test_kernels_can_be_compiled_at_installation() -> None:
    done = subprocess.run([sys.executable, "-m", "protocols.ring.kernels"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
