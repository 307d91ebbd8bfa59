"""What `step.py` prints for machines, in real processes over an emulated link."""

import json
import subprocess
import sys

import psutil
import pytest

from tests.bench import step
from tests.bench.cpu_kinds import KINDS, available
from tests.support.patience import PATIENCE_S

RTT_MS = 20


def run(options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, step.__file__, *options.split()]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.slow
def test_a_step_over_a_link_takes_half_a_round_trip_a_round() -> None:
    others = psutil.Process().children()
    ended = run(f"--workload matmul --steps 3 --rtt-ms {RTT_MS} --mbit-s 50 --format json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["link"]["kind"] == "proxy, per-node rate"
    assert (result["link"]["rtt_ms"], result["link"]["mbit_s"]) == (RTT_MS, 50)
    assert result["rounds"] == 2
    on_the_wire = result["rounds"] * RTT_MS / 2000 + result["bytes_sent"]["evaluator 0"] * 8 / 50e6
    assert result["step_seconds_median"] >= on_the_wire
    assert result["threads"] == 1 and result["steps"] == 3
    if available():
        assert set(result["evaluator_cpu_seconds_by_kind"]) == set(KINDS)
        assert 0 <= result["evaluator_ring_share"] <= 1
    assert psutil.Process().children() == others


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--rtt-ms -1", "round trip"),
        ("--mbit-s 0", "rate above 0"),
        ("--threads 0", "one thread"),
        ("--parties 1", "two parties"),
        ("--vs crypten --rtt-ms 40", "on loopback"),
        ("--vs crypten --workload lenet", "not measured on lenet"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        step.main()
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_described_for_people() -> None:
    ended = run("--workload softmax --steps 5 --threads 2 --parties 3")
    assert ended.returncode == 0, ended.stderr
    assert "softmax, 3 evaluators and a dealer" in ended.stdout
    assert "between them loopback" in ended.stdout
    assert not available() or "ring arithmetic" in ended.stdout
