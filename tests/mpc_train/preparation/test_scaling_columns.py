"""Columns come out scaled whatever their declared range: over shares, against scikit-learn.

scikit-learn gets the same numbers less one of them, so that float64 keeps their digits; what is
allowed beside rounding to the fixed point is some units of the last digit that a cell is shared
with.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from mpc_train.jobs.pipeline import MAX_COARSE, Pipeline
from mpc_train.jobs.sealed import BEYOND
from mpc_train.owners.cells import MIN_SPREAD_BITS, Affine, halves, joined_bits
from mpc_train.owners.local import Local
from mpc_train.preparation.sealed import in_words, remarks
from protocols.arrays import Reals
from tests.support.scaling_case import Prepared, over_joined, over_shares, terms

CELL, JOINED_CELL = 2.0**-56, 2.0**-40
SPREAD = 2 * CELL * 2**MIN_SPREAD_BITS
STEPS = {"standard": StandardScaler, "minmax": MinMaxScaler}


def column(generator: np.random.Generator, rows: int, width: float, heavy: bool) -> Reals:
    """Values of about this width somewhere in the declared range, as often as not with one that is
    far off."""
    values = generator.normal(0, 0.3, rows)
    if heavy:
        values[generator.integers(rows)] += 40 * generator.choice([-1, 1])
    place = generator.uniform(-1, 1) * (1 - width)
    moved: Reals = place + width * values / max(1.0, np.abs(values).max())
    return moved


def expected(
    shared: str, values: Reals, there: NDArray[np.bool_], training: NDArray[np.int64]
) -> Reals:
    """scikit-learn's inputs, of cells that are there and of others."""
    gaps = np.where(there, values - values[0], np.nan)
    steps = make_pipeline(SimpleImputer(), STEPS[shared]())
    found: Reals = steps.fit(gaps[training]).transform(gaps)
    return found


def check(found: Reals, wanted: Reals, deviation: Reals, unit: Reals | float, f: int) -> None:
    """deviation: what the inputs were divided by, in the units of u."""
    off, size = np.abs(found - wanted).max(axis=0), np.abs(wanted).max(axis=0)
    assert (off <= 3 * 2.0**-f + 2.0**-17 * size + 3 * (1 + size) * unit / deviation).all()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shared=st.sampled_from(["standard", "minmax"]),
    width_bits=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    owners=st.integers(1, 5),
    evaluators=st.sampled_from([2, 3, 5]),
    missing=st.booleans(),
    f=st.sampled_from([12, 20, 26]),
)
def test_rows_of_several_owners(
    seed: int,
    shared: str,
    width_bits: list[int],
    owners: int,
    evaluators: int,
    missing: bool,
    f: int,
) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 60, owners)
    rows = int(sizes.sum())
    heavy = bool(generator.integers(2))
    values = np.column_stack([column(generator, rows, 2.0**-b, heavy) for b in width_bits])
    there = np.ones(values.shape, bool)
    if missing:
        there = generator.random(values.shape) < generator.uniform(0.3, 1)
        there[:2] = True  # owner 0 has two cells of each column, others perhaps none
    cuts = np.cumsum(sizes)[:-1]
    training = [np.sort(generator.permutation(n)[: max(2, n * 3 // 4)]) for n in sizes]
    training[0] = np.union1d(training[0], [0, 1])
    pooled = np.concatenate([at + rows for at, rows in zip([0, *cuts], training, strict=True)])
    # Two of many cells may be so close that they count as equal.
    cells = np.where(there, values, np.nan)[pooled]
    assume((np.nanmax(cells, axis=0) - np.nanmin(cells, axis=0) > SPREAD).all())
    present = there.astype(np.float64) if missing else np.ones((rows, 0))
    parts = [
        Local(mine, own)
        for mine, own in zip(
            np.split(np.where(there, values, 0), cuts), np.split(present, cuts), strict=True
        )
    ]
    pipeline = terms(shared, 3, "mean" if missing else "error")
    found = over_shares(pipeline, parts, training, evaluators, f)
    wanted = expected(shared, values, there, pooled)
    check(found.inputs, wanted, 1 / found.parameters["prepare.inverse"], CELL, f)
    largest = np.abs(wanted).max(axis=0)
    assert (found.sealed[BEYOND][largest >= 2**12] == 1).all()
    assert (found.sealed[BEYOND][largest < 2**10] == 0).all()
    assert not remarks(pipeline, found.parameters).get("constant")


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shared=st.sampled_from(["standard", "minmax"]),
    width_bits=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    evaluators=st.sampled_from([2, 3]),
    missing=st.booleans(),
    rows=st.integers(20, 200),
)
def test_joined_rows(
    seed: int, shared: str, width_bits: list[int], evaluators: int, missing: bool, rows: int
) -> None:
    """Of the owner's records some are joined; one that is not may lie 2^10 times as far off."""
    generator = np.random.default_rng(seed)
    records = rows + 10
    values = np.column_stack([column(generator, records, 2.0**-b, False) for b in width_bits])
    there = np.ones(values.shape, bool)
    if missing:
        there = generator.random(values.shape) < 0.7
    joined = generator.permutation(records - 1)[:rows]
    training = np.sort(generator.permutation(rows)[: rows * 3 // 4])
    there[joined[training[:2]]] = True
    away = np.where(values[0] > 0, -1, 1) * 2.0 ** (10 - np.array(width_bits))
    values[-1] = (values[0] + away).clip(-1, 1)
    present = there.astype(np.float64) if missing else np.ones((records, 0))
    pipeline = terms(shared, 3, "mean" if missing else "error")
    local = Local(np.where(there, values, 0), present)
    found = over_joined(pipeline, local, joined, training, evaluators)
    wanted = expected(shared, values[joined], there[joined], training)
    unit = np.maximum(CELL, JOINED_CELL * np.ptp(values, axis=0))
    check(found.inputs, wanted, 1 / found.parameters["prepare.inverse"], unit, 20)


def standardised(values: Reals, training: NDArray[np.int64], shared: str = "standard") -> Prepared:
    """All rows at one owner."""
    pipeline = terms(shared, values.shape[1])
    return over_shares(pipeline, [Local(values, np.ones((len(values), 0)))], [training])


@pytest.mark.parametrize("shared", ["standard", "minmax"])
def test_a_constant_column_is_0_and_named(shared: str) -> None:
    """Also in held-out rows that differ, and where float64's last digits alone tell cells apart."""
    values = np.full((40, 4), 0.7)
    values[:, 1] += 2.0**-52 * np.arange(40)  # 39 · 2^4 units: below 2^10
    values[:, 2] += 2.0**-46 * np.arange(40)
    values[:, 3] = np.linspace(-1, 1, 40)
    values[30:, 0] = -0.4
    found = standardised(values, np.arange(30), shared)
    assert not found.inputs[:, :2].any()
    assert (found.parameters["prepare.inverse"][:2] == 0).all()
    said = remarks(terms(shared, 4), found.parameters)
    assert said["constant"] == ["x0", "x1"]
    assert ("coarse" in said) == (shared == "standard")  # a deviation of 2^-43, a spread of 2^-41
    (first, *_) = in_words(said)
    assert first.startswith("x0, x1: not scaled, the input is 0")
    wanted = STEPS[shared]().fit((values - 0.7)[:30]).transform(values - 0.7)
    np.testing.assert_allclose(found.inputs[:, 2:], wanted[:, 2:], atol=2**-9)


def test_a_far_value_that_is_held_out_changes_nothing_for_the_others() -> None:
    """With 10^12 declared and 17,000 deviated, a held-out value at the other end of the range."""
    generator = np.random.default_rng(3)
    values = (generator.normal(5e4, 1.7e4, (300, 1)) - 5e11) / 5e11
    values[-1] = 1.0
    found = standardised(values, np.arange(200))
    train = values[:200] - values[0]
    wanted = StandardScaler().fit(train).transform(values[:-1] - values[0])
    np.testing.assert_allclose(found.inputs[:-1], wanted, atol=2**-18)
    # Only that one does not fit the ring, and the recipients are told of the column.
    assert found.sealed[BEYOND].tolist() == [1]
    assert remarks(terms("standard", 1), found.parameters | found.sealed) == {"beyond": ["x0"]}


def test_values_up_to_4000_deviations_come_out_right() -> None:
    """What `fitted` promises: beyond 2^12 deviations inputs do not fit the ring."""
    generator = np.random.default_rng(4)
    values = 2.0**-14 * generator.normal(0, 0.5, (100, 1))
    values[-2:, 0] = 4000 * values[:90].std(), -4000 * values[:90].std()
    found = standardised(values, np.arange(90))
    wanted = StandardScaler().fit(values[:90]).transform(values)
    np.testing.assert_allclose(found.inputs, wanted, rtol=2**-22, atol=2**-18)
    values[-2:] /= 4
    assert standardised(values, np.arange(90)).sealed[BEYOND].tolist() == [0]


@pytest.mark.parametrize("joined", [False, True])
def test_columns_without_a_value_are_told_from_others(joined: bool) -> None:
    """Scaled or not; one value among all owners' training rows is a mean."""
    scaled, declared = terms("standard", 2, "mean").terms, terms("declared", 2, "mean").terms
    pipeline = Pipeline((*scaled, *declared))
    generator = np.random.default_rng(5)
    values, present = generator.uniform(-1, 1, (900, 4)), np.ones((900, 4))
    present[:, [0, 2]] = 0
    present[10:, [1, 3]] = 0
    present[899, [0, 2]] = 1  # held out
    present[1:10, 3] = 0
    values *= present
    if joined:
        found = over_joined(pipeline, Local(values, present), np.arange(900), np.arange(800))
    else:
        parts = [Local(values[:12], present[:12]), Local(values[12:], present[12:])]
        found = over_shares(pipeline, parts, [np.arange(12), np.arange(800)])
    assert found.some.tolist() == [0, 1, 0, 1]
    fill = found.parameters["prepare.fill"]
    np.testing.assert_allclose(fill[[1, 3]], [values[:10, 1].mean(), values[0, 3]], atol=2**-19)
    np.testing.assert_allclose(found.inputs[5:, 3], values[0, 3], atol=2**-19)


def test_bounds_of_other_sizes() -> None:
    """A declared center and scale leave cells up to 16, or far below 1."""
    generator = np.random.default_rng(6)
    for bound in (float(MAX_COARSE), 3.0, 1.0, 2.0**-30):
        values = bound * generator.uniform(-1, 1, (50, 2)) * [1, 2.0**-20]
        pipeline = terms("standard", 2, bound=bound)
        found = over_shares(pipeline, [Local(values, np.ones((50, 0)))], [np.arange(50)])
        wanted = StandardScaler().fit_transform(values)
        np.testing.assert_allclose(found.inputs, wanted, atol=2**-18)
        np.testing.assert_allclose(
            found.parameters["prepare.inverse"], 1 / values.std(axis=0), rtol=2**-24
        )
        np.testing.assert_allclose(
            found.parameters["prepare.center"], values.mean(axis=0), rtol=2**-20, atol=0
        )


def test_a_sealed_scale_says_nothing_of_the_spread() -> None:
    """Its mantissa and exponent are those of the number, whatever secret powers led to it."""
    even = np.where(np.arange(400) % 2, 1.0, -1.0)
    peaked = np.zeros(400)
    peaked[:2] = 1, -1
    values = np.column_stack([even, peaked / peaked.std()]) * 2.0**-9 * 1.234
    found = standardised(values, np.arange(400))
    spreads = np.ptp(values, axis=0)
    assert spreads[1] > 8 * spreads[0]
    mantissa, exponent = found.sealed["prepare.mantissa"], found.sealed["prepare.exponent"]
    assert exponent[0] == exponent[1] and abs(mantissa[0] - mantissa[1]) <= 2.0**-25
    np.testing.assert_allclose(np.ldexp(mantissa, exponent.astype(int)), 1 / values.std(axis=0))
    assert (mantissa > 0.5).all() and (mantissa <= 1).all()


def test_words_are_exact_at_the_owner() -> None:
    whole = np.array([[0.0, 1, -1, 2.0**56, -(2.0**56), 12345678901234567, 2.0**27, -(2.0**27)]])
    coarse, fine = halves(whole, 28)
    np.testing.assert_array_equal(coarse * 2**28 + fine, whole)
    assert np.abs(fine).max() <= 2**27 and np.abs(coarse).max() <= 2**28
    there = np.array([[True] * 7 + [False]] * 3)
    affine = Affine.of(np.repeat(whole, 3, axis=0) + np.arange(3)[:, None] * 10**9, there, 20)
    numbers = affine.numbers(np.repeat(whole, 3, axis=0), there)
    assert np.abs(numbers).max() < 2**40 and not numbers[:, -1].any()
    assert joined_bits(1) == joined_bits(2**20) == 20 > joined_bits(2**23) == 18
    assert MIN_SPREAD_BITS == 10


def test_rounds_do_not_grow_with_rows() -> None:
    """Parameters and rows together, for two owners: what the docstrings say."""
    counts: dict[tuple[str, str], set[int]] = {}
    for shared, missing in (("standard", "error"), ("standard", "mean"), ("minmax", "error")):
        for rows in (20, 300):
            values = np.random.default_rng(1).uniform(-1, 1, (rows, 2))
            there = np.ones((rows, 2 if missing == "mean" else 0))
            parts = [
                Local(half, own)
                for half, own in zip(np.split(values, 2), np.split(there, 2), strict=True)
            ]
            found = over_shares(terms(shared, 2, missing), parts, [np.arange(rows // 2)] * 2)
            counts.setdefault((shared, missing), set()).add(found.rounds)
    assert counts == {
        ("standard", "error"): {54},
        ("standard", "mean"): {62},
        ("minmax", "error"): {36},
    }
