"""The baseline measures what it says and leaves nothing behind."""

import psutil
import pytest

from tests.bench import crypten_stock
from tests.bench.crypten_stock import StockError, run_stock


@pytest.mark.parametrize(
    ("workload", "parties", "steps", "warmup"),
    [("nothing", 2, 1, 0), ("relu", 1, 1, 0), ("relu", 2, 0, 0), ("relu", 2, 1, -1)],
)
def test_arguments_outside_their_range_are_refused(
    workload: str, parties: int, steps: int, warmup: int
) -> None:
    with pytest.raises(ValueError, match=r"workload|at least"):
        run_stock(workload, parties, steps, warmup)


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Passes the check here; unknown to the processes, which all load the module anew.
    monkeypatch.setattr(crypten_stock, "WORKLOADS", ("nothing",))
    others = psutil.Process().children()
    with pytest.raises(StockError, match=r"exit status 1(?s:.*)KeyError: 'nothing'"):
        run_stock("nothing", 2, steps=1, timeout_s=60)
    assert psutil.Process().children() == others


def test_a_run_that_takes_too_long_is_ended() -> None:
    others = psutil.Process().children()
    with pytest.raises(StockError, match="timed out"):
        run_stock("net_a", 2, steps=1000, timeout_s=0.2)
    assert psutil.Process().children() == others


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_softmax_is_right_and_its_cost_is_counted(parties: int) -> None:
    others = psutil.Process().children()
    result = run_stock("softmax", parties, steps=2, warmup=1)
    assert result.max_error < 0.05
    assert 0.001 < result.step_seconds_median < 30
    assert result.cpu_seconds_per_step > 0.01
    # 94 rounds of two parties, 1037 words a row: nothing that is timed may fall short of it.
    assert result.calls > 94
    assert result.bytes_sent >= 128 * 1037 * 8
    assert psutil.Process().children() == others


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["lr784", "net_a"])
def test_a_training_step_trains_and_sends_at_least_its_weights_and_batch(workload: str) -> None:
    result = run_stock(workload, steps=3, warmup=0)
    weights = {"lr784": 784, "net_a": 784 * 128 + 128 * 128 + 128 * 10}[workload]
    assert result.bytes_sent > 8 * (weights + 128 * 784)
    assert result.max_error < 0.01
