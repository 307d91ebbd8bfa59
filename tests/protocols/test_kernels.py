"""Kernels against NumPy and Python integers, at edges and at sizes that leave a remainder."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from protocols import kernels
from protocols.ring import matmul

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
    for size in SIZES:
        x, y = words(1, size), words(2, size)[::-1].copy()
        packed = np.full(kernels.packed_size(size, bits), 255, np.uint8)
        kernels.pack_sum(x, y, bits, packed)
        expected = modulo(x + y, bits)
        out = words(3, size)
        kernels.unpack(packed, bits, out)
        np.testing.assert_array_equal(out, expected)
        for sign in (1, -1):
            out = y.copy()
            kernels.add_unpacked(packed, bits, sign, out)
            np.testing.assert_array_equal(out, modulo(y + sign * expected, bits))


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


@pytest.mark.parametrize("bits", [5, 32, 44, 64])
@pytest.mark.parametrize(("thresholds", "size"), [(1, 1), (1, 70), (3, 5), (2, 64)])
def test_digits(bits: int, thresholds: int, size: int) -> None:
    digits = (bits - 1 + 3) // 4
    lam, delta = words(1, size), words(2, thresholds, size)
    table = np.empty((digits, size), np.uint16)
    kernels.one_hot(lam, bits, table)
    low = (1 << (bits - 1)) - 1
    for j in range(digits):
        expected = [1 << ((int(x) & low) >> (4 * j) & 15) for x in lam]
        np.testing.assert_array_equal(table[j], expected)
    table = np.random.default_rng(3).integers(0, 1 << 16, table.shape).astype(np.uint16)
    lanes = thresholds * size
    out = np.empty((2 * digits, (lanes + 7) // 8), np.uint8)
    kernels.look_up(table, delta, bits, out)
    found = np.unpackbits(out, axis=-1, count=lanes, bitorder="little")
    for j in range(digits):
        for lane in range(lanes):
            place = (int(delta[lane // size, lane % size]) & low) >> (4 * j) & 15
            word = int(table[j, lane % size])
            assert found[digits + j, lane] == word >> place & 1
            assert found[j, lane] == bin(word >> (place + 1)).count("1") % 2


def test_products_of_bits() -> None:
    generator = np.random.default_rng(1)
    masks, public = generator.integers(0, 256, (2, 5, 33)).astype(np.uint8)
    products = np.empty((2, 33), np.uint8)
    program = np.array([[0, -2, 3], [1, 0, 4]], np.int32)
    kernels.mask_products(program, masks, products)
    np.testing.assert_array_equal(products[0], masks[1] & masks[3])
    np.testing.assert_array_equal(products[1], masks[1] & masks[3] & masks[4])
    lines = [[0, -1, 1, 2, -1, -1], [1, 2, 0, 1, 3, 4], [0, 6, -1, -1, -1, -1]]
    start = generator.integers(0, 256, (2, 33)).astype(np.uint8)
    out = start.copy()
    kernels.sum_of_products(np.array(lines, np.int32), public, masks, products, out)
    np.testing.assert_array_equal(out[0], start[0] ^ public[1] & public[2] ^ products[1])
    factors = public[0] & public[1] & public[3] & public[4]
    np.testing.assert_array_equal(out[1], start[1] ^ masks[2] & factors)


def test_signs() -> None:
    octets = np.random.default_rng(1).integers(0, 256, 5).astype(np.uint8)
    x = words(2, 12)
    out = np.empty(36, np.int64)
    kernels.signs(octets, x, 44, out)
    found = np.unpackbits(octets, count=36, bitorder="little")
    np.testing.assert_array_equal(out, found ^ np.tile(x >> 43 & 1, 3))


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
            product = matmul(left, right)
            np.testing.assert_array_equal(product, x @ y)
            assert product.flags.c_contiguous and product.flags.writeable


def test_kernels_can_be_compiled_at_installation() -> None:
    done = subprocess.run([sys.executable, "-m", "protocols.kernels"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
