"""Windows of counts: which units they add up, and when they are released."""

from __future__ import annotations

import numpy as np
import pytest

from mpc_train.serving.monitoring import window as window_module
from mpc_train.serving.monitoring.window import Counting, Unit, Window
from protocols.arrays import Words


def test_a_window_is_the_sum_of_the_units_that_everybody_has_heard() -> None:
    """Also where sums leave the ring: summands are random words."""
    rng = np.random.default_rng(7)
    counts_of = {unit: rng.integers(0, 100, 4) for unit in ((0, 1), (1, 1), (1, 2), (0, 2))}
    windows = Window(4), Window(4)
    for unit, numbers in counts_of.items():
        mask = rng.integers(-(2**63), 2**63, 4)
        for index, window in enumerate(windows):
            whole = (index, unit) not in ((0, (1, 1)), (1, (0, 2)))
            with np.errstate(over="ignore"):
                words = mask if index else numbers - mask
            window.add(unit, words, 16, whole=whole)
    assert [window.missed for window in windows] == [((1, 1),), ((0, 2),)]
    assert {window.rows for window in windows} == {64}
    missed = [unit for window in windows for unit in window.missed]
    for window in windows:
        window.settle(missed)
    with np.errstate(over="ignore"):
        total = sum((window.close() for window in windows), np.zeros(4, np.int64))
    assert total.tolist() == (counts_of[0, 1] + counts_of[1, 2]).tolist()
    for window in windows:  # each count is in one window
        assert (window.rows, window.missed, window.close().tolist()) == (0, (), [0] * 4)


def filled(
    units: int, every_rows: int, missed: set[Unit]
) -> tuple[list[tuple[Unit, ...]], list[tuple[int, list[int]]]]:
    """What an evaluator says it has missed, and what it releases, of units of 16 rows in which the
    unit n has the count 10^n. missed: by others."""
    said: list[tuple[Unit, ...]] = []
    released: list[tuple[int, list[int]]] = []

    def exchange(mine: tuple[Unit, ...]) -> set[Unit]:
        said.append(mine)
        return {*mine, *missed}

    def release(rows: int, total: Words) -> None:
        released.append((rows, total.tolist()))

    counting = Counting(1, every_rows, exchange, release)
    for number in range(units):
        counting.add((0, number), np.array([10**number]), 16, whole=number != 1)
    return said, released


def test_a_window_is_released_once_it_has_its_rows() -> None:
    said, released = filled(7, 48, {(0, 3)})
    assert said == [((0, 1),), ()]  # the second window begins without what the first has missed
    assert released == [(48, [101]), (48, [110000])]
    assert filled(2, 48, set()) == ([], [])  # nothing is said and nothing leaves before


def test_units_are_added_up_before_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long window takes little room, and what is said of it is short."""
    monkeypatch.setattr(window_module, "MOST_UNITS", 2)
    said, released = filled(6, 96, {(0, 4)})
    assert said == [((0, 1),), (), ()]
    assert released == [(96, [101101])]
