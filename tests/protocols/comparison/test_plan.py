"""Trees of comparisons: what they cost, and that every one of them compares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.comparison import less_than
from protocols.comparison.compare import below
from protocols.comparison.plan import (
    MOST,
    OPENED_WEIGHT,
    Counts,
    Joint,
    Plan,
    _joint,
    best,
    cheapest,
    cost,
    plan,
    split,
)
from protocols.functions.splines import spline_at
from protocols.shares.arithmetic import remask
from tests.support.lockstep import compute
from tests.support.loopback import secret


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, Counts]:
    counts = [1]
    for _ in range(draw(st.integers(0, 3))):
        counts.append(draw(st.integers(counts[-1] + 1, min(counts[-1] * 4, 63))))
    counts.reverse()
    bits = draw(st.integers(counts[0], min(63, counts[0] * 4)))
    return bits, tuple(counts)


@settings(max_examples=60, deadline=None)
@given(trees(), st.booleans(), st.booleans())
def test_cost_is_what_is_dealt_and_opened(
    tree: tuple[int, Counts], with_eq: bool, rooted: bool
) -> None:
    made = plan(*tree, with_eq, rooted)
    found = cost(*tree, with_eq, rooted)
    assert found.tables == made.leaves.dealt
    nodes = sum(level.dealt + OPENED_WEIGHT * len(level.opened) for level in made.nodes)
    assert found.nodes == nodes
    assert len(made.nodes) == len(tree[1]) - 1


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
@pytest.mark.parametrize("bits", [1, 2, 5, 8, 31, 43, 63])
def test_cheapest(bits: int, rounds: int) -> None:
    tree = cheapest(bits, rounds)
    if tree is None:
        assert bits > MOST ** (rounds + 1) or bits < 2 ** (rounds + 1)
        return
    found, counts = tree
    assert counts[-1] == 1 and len(counts) == rounds + 1
    assert found == cost(bits, counts).tables + cost(bits, counts).nodes
    assert all(max(split(below, above)) <= MOST for below, above in pairwise((bits, *counts)))


def test_few_rounds_for_few_and_few_bytes_for_many() -> None:
    rounds = {}
    for bits, size in ((64, 100), (64, 100_000), (44, 16_384), (44, 1 << 20), (24, 100)):
        way = best(bits - 1, (0,), size)
        assert isinstance(way, Plan)
        opened = 1 + sum(len(level.opened) for level in way.nodes)
        dealt = way.leaves.dealt + sum(level.dealt for level in way.nodes)
        rounds[bits, size] = 1 + len(way.nodes), opened, dealt
    assert rounds == {
        (64, 100): (3, 35, 305),
        (64, 100_000): (4, 49, 202),
        (44, 16_384): (3, 28, 168),
        (44, 1 << 20): (4, 32, 137),
        (24, 100): (2, 9, 156),
    }


@settings(max_examples=40, deadline=None)
@given(trees(), st.integers(2, 4), st.data())
def test_every_tree_compares(
    tree: tuple[int, Counts], evaluators: int, data: st.DataObject
) -> None:
    bits, counts = tree
    top = 1 << bits
    thresholds = (0, data.draw(st.integers(-top // 2, top // 2)))
    values = data.draw(st.lists(st.integers(-top // 2, top // 2 - 1), min_size=1, max_size=20))
    x = np.array([*values, 0, -1, *(t - i for t in thresholds for i in (0, 1))])
    x = x[np.all([(x - t >= -top) & (x - t < top) for t in thresholds], axis=0)]
    compare_by(plan(bits, counts), bits + 1, x, thresholds, evaluators)


def compare_by(
    way: Plan | Joint, bits: int, x: np.ndarray, thresholds: tuple[int, ...], evaluators: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(less_than, "best", lambda *arguments: way)
        found = compute(
            lambda r: remask(below(secret(r, x).narrowed(bits), thresholds).shares()), evaluators
        )
    np.testing.assert_array_equal(found, x < np.array(thresholds)[:, None])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 64),
    st.lists(st.integers(-200, 200), min_size=2, max_size=5, unique=True),
    st.integers(0, 50),
    st.integers(1, 3),
    st.integers(2, 3),
    st.data(),
)
def test_thresholds_with_common_bits(
    bits: int,
    multiples: list[int],
    low: int,
    rounds: int,
    evaluators: int,
    data: st.DataObject,
) -> None:
    top = 1 << (bits - 1)
    offset = data.draw(st.integers(-top // 2, top // 2 - 1))
    thresholds = tuple(sorted({(m << low) + offset for m in multiples}))
    thresholds = tuple(t for t in thresholds if -top // 2 <= t < top // 2)
    found = _joint(bits - 1, thresholds, rounds) if len(thresholds) > 1 else None
    if found is None:
        return
    values = data.draw(st.lists(st.integers(-top // 2, top // 2 - 1), min_size=1, max_size=12))
    x = np.array([*values, *(t + i for t in thresholds for i in (-1, 0, 1))], object)
    x = x[[all(-top <= v - t < top for t in thresholds) for v in x]]
    compare_by(found[1], bits, x.astype(np.int64), thresholds, evaluators)


@pytest.mark.parametrize("name", ["EXP", "SIGMOID", "TANH"])
def test_knots_of_splines_are_compared_together(name: str) -> None:
    """By a third cheaper than each for itself, with their common tables counted."""
    knots = spline_at(name, 20).knots
    way = best(43, knots, 1280)
    assert isinstance(way, Joint)
    alone = cheapest(43, 2, len(knots))
    joint = _joint(43, knots, 2)
    assert alone is not None and joint is not None
    assert joint[0] < 0.7 * alone[0]
