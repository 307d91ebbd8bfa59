"""What a training remembers of its own speed."""

import statistics

import pytest

from mpc_train.training.step_times import MAX_KEPT, StepTimes


def times_of(count: int) -> StepTimes:
    times = StepTimes()
    for number in range(count):
        times.add(float(number))
    return times


@pytest.mark.parametrize("count", [0, 1, 2, 7, MAX_KEPT])
def test_a_short_training_is_told_exactly(count: int) -> None:
    times = times_of(count)
    assert times.count == count and times.total_s == sum(range(count))
    assert times.median_s() == statistics.median(list(range(count)) or [0])


@pytest.mark.parametrize("count", [MAX_KEPT + 1, 3 * MAX_KEPT - 1, 20 * MAX_KEPT])
def test_a_long_training_takes_no_more_memory(count: int) -> None:
    times = times_of(count)
    assert times.count == count and times.total_s == sum(range(count))
    assert len(times._kept) <= MAX_KEPT
    assert times.median_s() == pytest.approx(count / 2, rel=0.001)
