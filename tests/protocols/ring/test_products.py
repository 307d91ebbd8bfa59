"""Matrix products modulo 2^64 against NumPy's integers, by every way that this machine has."""

from itertools import product
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.arrays import Words
from protocols.ring import panels, tiles
from protocols.ring import products as ring

LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max

needs_tiles = pytest.mark.skipif(not tiles.grant(), reason="this processor has no tile unit")


def exactly(x: Words, y: Words) -> Words:
    """x @ y in Python's integers, reduced modulo 2^64 at the end."""
    total = x.astype(object) @ y.astype(object) if x.shape[1] else np.zeros((len(x), y.shape[1]))
    wrapped = np.vectorize(lambda word: (int(word) + 2**63) % 2**64 - 2**63, otypes=[np.int64])
    found: Words = wrapped(total)
    return found


def drawn(rng: np.random.Generator, *shape: int) -> Words:
    return rng.integers(LEAST, MOST, shape, endpoint=True)


def product_of(x: Words, y: Words) -> Words:
    return ring.sum_of_products([(x, y)])


def in_memory(x: Words, kind: str) -> Words:
    """The same matrix as it may lie in memory."""
    if kind == "columns":
        return np.asfortranarray(x)
    if kind == "slice":
        room = np.zeros((x.shape[0] + 1, x.shape[1] + 5), np.int64)
        room[1:, 2:-3] = x
        return room[1:, 2:-3]
    if kind == "strided":
        room = np.zeros((2 * x.shape[0], 3 * x.shape[1]), np.int64)
        room[::2, ::3] = x
        return room[::2, ::3]
    if kind == "read-only":
        x = x.copy()
        x.flags.writeable = False
    return np.ascontiguousarray(x[::-1])[::-1] if kind == "upside down" else x


KINDS = ("rows", "columns", "slice", "strided", "read-only", "upside down")


@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 140), st.integers(1, 70)),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_products_of_any_shape(
    sizes: tuple[int, int, int], kinds: tuple[str, str], seed: int
) -> None:
    m, k, n = sizes
    ring.calibrate(perf_counter)
    rng = np.random.default_rng(seed)
    x, y = drawn(rng, m, k), drawn(rng, k, n)
    expected = np.einsum("ik,kj->ij", x, y)
    a, b = in_memory(x, kinds[0]), in_memory(y, kinds[1])
    assert np.array_equal(product_of(a, b), expected)
    found = ring.sum_of_products([(a, b), (a, b)], True)
    assert np.array_equal(found, -2 * expected)


@pytest.mark.parametrize("fastest", ["torch", "panels", "tiles"])
def test_the_way_is_chosen_by_measurement(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by a clock by which one way takes a thousandth of the others' time."""
    monkeypatch.setattr(ring, "_tile_gain", 0.0)
    monkeypatch.setattr(ring, "_by_panels", fastest != "panels")
    calls: list[str] = []
    ways = (
        ("torch", ring, "_sum_by_torch"),
        ("panels", panels, "sum_of_products"),
        ("tiles", tiles, "sum_of_products"),
    )
    for name, place, function in ways:
        monkeypatch.setattr(place, function, lambda pairs, negative, name=name: calls.append(name))
    monkeypatch.setattr(tiles, "grant", lambda: True)
    took = [0.001 if name == fastest else 1.0 for name, *_ in ways]
    ticks = iter([tick for seconds in took for tick in (0.0, seconds)])
    ring.calibrate(lambda: next(ticks))
    assert calls == [name for name, *_ in ways for _ in range(4)]
    calls.clear()
    product_of(np.ones((128, 128), np.int64), np.ones((128, 128), np.int64))
    assert calls == [fastest]
    # Tiles are for large products: the best of the others makes a small one.
    product_of(np.ones((16, 16), np.int64), np.ones((16, 16), np.int64))
    assert calls[1] == ("panels" if fastest == "panels" else "torch")


@pytest.fixture(params=["words", "halves"])
def panel_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of all processors, whichever is the faster one here."""
    monkeypatch.setattr(panels, "WHOLE", request.param == "words")


@pytest.mark.usefixtures("panel_way")
@pytest.mark.parametrize(("left", "right"), list(product(KINDS, KINDS)))
def test_panels_for_every_layout(left: str, right: str) -> None:
    rng = np.random.default_rng(7)
    width, depth = panels.COLUMNS, panels.DEPTH
    for m, k, n in ((1, 1, 1), (2, depth, width), (3, depth + 1, width + 1), (9, 7, width - 1)):
        x, y = drawn(rng, m, k), drawn(rng, k, n)
        pair = in_memory(x, left), in_memory(y, right)
        assert np.array_equal(panels.sum_of_products([pair]), exactly(x, y))
        assert np.array_equal(panels.sum_of_products([pair, pair], True), -2 * exactly(x, y))


@pytest.mark.parametrize("word", [-1, LEAST, MOST, 0xFFFFFFFF, 0xFFFFFFFF << 32, 1 << 32])
@pytest.mark.usefixtures("panel_way")
def test_panels_lose_no_carry(word: int) -> None:
    """Sums of the largest halves, longer than a panel."""
    word = (word + 2**63) % 2**64 - 2**63
    for k in (1, panels.DEPTH, 3 * panels.DEPTH + 5):
        x, y = np.full((3, k), word, np.int64), np.full((k, 9), word, np.int64)
        expected = np.full((3, 9), (word * word * k + 2**63) % 2**64 - 2**63)
        assert np.array_equal(panels.sum_of_products([(x, y)]), expected)


@pytest.mark.usefixtures("panel_way")
def test_panels_of_pairs_of_unequal_length() -> None:
    rng = np.random.default_rng(3)
    pairs = [(drawn(rng, 61, k), drawn(rng, k, 45)) for k in (900, 30, 2000)]
    expected = sum(np.einsum("ik,kj->ij", x, y) for x, y in pairs)
    assert np.array_equal(panels.sum_of_products(pairs), expected)
    assert np.array_equal(panels.sum_of_products(pairs, True), -expected)
    nothing = np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int64)
    assert np.array_equal(panels.sum_of_products([nothing]), np.zeros((2, 3), np.int64))


@needs_tiles
@pytest.mark.parametrize(("left", "right"), list(product(KINDS, KINDS)))
def test_tiles_for_every_layout(left: str, right: str) -> None:
    rng = np.random.default_rng(7)
    for m, k, n in ((1, 1, 1), (16, 64, 16), (17, 65, 19), (33, 7, 5), (50, 130, 61)):
        x, y = drawn(rng, m, k), drawn(rng, k, n)
        found = tiles.sum_of_products([(in_memory(x, left), in_memory(y, right))])
        assert np.array_equal(found, exactly(x, y))


@needs_tiles
@pytest.mark.parametrize("word", [-1, LEAST, MOST, 0x0101010101010101, 0x00FF00FF00FF00FF])
def test_tiles_at_the_bounds_of_their_counters(word: int) -> None:
    """The longest sum that is made at once, of the words with the largest limbs."""
    steps = tiles.MAX_DEPTH * tiles.STEPS
    for k in (steps - 1, steps, steps + 1, 5 * steps + 3):
        x, y = np.full((2, k), word, np.int64), np.full((k, 3), word, np.int64)
        expected = np.full((2, 3), (word * word * k + 2**63) % 2**64 - 2**63)
        assert np.array_equal(tiles.sum_of_products([(x, y)]), expected)
        assert np.array_equal(tiles.sum_of_products([(x, y), (x, y)]), 2 * expected)


@needs_tiles
def test_no_counter_can_overflow() -> None:
    # Four partial products have a limb sum whose carries count; each is at most 255² a step.
    assert 4 * 255**2 * tiles.MAX_DEPTH * tiles.STEPS < 2**32


@needs_tiles
def test_tiles_in_pieces() -> None:
    """Operands that are longer than the cache, in every direction, and pairs of unequal length."""
    rng = np.random.default_rng(3)
    for m, k, n in ((1100, 70, 40), (40, 70, 1100), (300, 1030, 290), (20, 3000, 20)):
        x, y = drawn(rng, m, k), drawn(rng, k, n)
        expected = np.einsum("ik,kj->ij", x, y, optimize=False)
        assert np.array_equal(tiles.sum_of_products([(x, y)]), expected)
    pairs = [(drawn(rng, 60, k), drawn(rng, k, 45)) for k in (900, 30, 2000)]
    expected = sum(np.einsum("ik,kj->ij", x, y) for x, y in pairs)
    assert np.array_equal(tiles.sum_of_products(pairs), expected)
    assert np.array_equal(ring.sum_of_products(pairs), expected)


@pytest.mark.parametrize("by_panels", [True, False])
def test_without_tiles(by_panels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other machines run: panels or torch's product, and the thin loops."""
    monkeypatch.setattr(ring, "_tile_gain", 0.0)
    monkeypatch.setattr(ring, "_by_panels", by_panels)
    rng = np.random.default_rng(5)
    for m, k, n in ((40, 90, 50), (3, 90, 50), (9, 90, 50), (40, 90, 2), (40, 90, 9), (1, 1, 1)):
        x, y = drawn(rng, m, k), drawn(rng, k, n)
        assert np.array_equal(product_of(x, y), exactly(x, y))
        assert np.array_equal(ring.sum_of_products([(x, y)] * 3, True), -3 * exactly(x, y))
