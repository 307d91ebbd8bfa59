"""Sweeps: what may be asked for, and one of them in real processes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import scale
from tests.bench.scale import QUICK, SWEEPS, Point, parse_sweep
from tests.support.patience import PATIENCE_S


def run(*options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, scale.__file__, *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_size_can_be_swept() -> None:
    assert set(SWEEPS) == set(QUICK) == set(Point.__dataclass_fields__)
    assert (min(SWEEPS["parties"]), max(SWEEPS["parties"])) == (2, 8)
    assert (min(SWEEPS["rows"]), max(SWEEPS["rows"])) == (10**3, 10**6)
    assert (min(SWEEPS["features"]), max(SWEEPS["features"])) == (10, 10**4)


def test_sweeps_are_named_with_or_without_values() -> None:
    assert parse_sweep("rows") == ("rows", None)
    assert parse_sweep("rows=1000,1000000") == ("rows", (1000, 1_000_000))


@pytest.mark.parametrize("text", ["colour", "rows=", "rows=1,x", "rows=0", "parties=1,2"])
def test_sweeps_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_sweep(text)


@pytest.mark.parametrize("option", ["--draw=growth.pdf", "--parties=1", "--rows=0"])
def test_options_that_make_no_sense_are_refused(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale.py", option])
    with pytest.raises(SystemExit, match="2"):
        scale.main()


@pytest.mark.slow
def test_a_point_is_measured_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    ended = run("--quick", "--sweep", "rows=900", "--draw", str(picture), "--format", "json")
    assert ended.returncode == 0, ended.stderr
    (point,) = json.loads(ended.stdout)["rows"]
    assert (point["rows"], point["parties"], point["features"]) == (900, 2, 20)
    # Each of two evaluators sends half of the masked rows and labels to the other one.
    assert 900 / 2 * 30 * 8 <= point["share_bytes"]["evaluator"] < 900 / 2 * 30 * 8 + 1000
    assert point["share_bytes"]["dealer"] == 0
    assert 0 < point["step_seconds_median"] < 30
    assert point["peak_rss_mb"]["evaluator"] >= point["start_rss_mb"]["evaluator"] > 50
    assert picture.read_text().startswith("<svg")


@pytest.mark.slow
def test_rows_are_bounded_by_memory_alone() -> None:
    ended = run("--quick", "--sweep", "rows=1000000", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    (point,) = json.loads(ended.stdout)["rows"]
    assert max(point["peak_rss_mb"].values()) < point["rss_limit_mb"]


@pytest.mark.slow
def test_a_slow_link_is_not_taken_for_a_broken_one() -> None:
    # Each evaluator is busy for 10 s with one table; heartbeats wait behind its frames.
    ended = run("--sweep=rows=200000", "--steps=1", "--mbit-s=20", "--format=json")
    assert ended.returncode == 0, ended.stderr
    (point,) = json.loads(ended.stdout)["rows"]
    assert point["share_seconds"] >= point["share_bytes"]["evaluator"] * 8 / 20e6 > 6


@pytest.mark.slow
def test_eight_parties_train() -> None:
    ended = run("--quick", "--sweep", "parties=8")
    assert ended.returncode == 0, ended.stderr
    assert "Memory of a process, MB" in ended.stdout
