"""What `private_step.py` prints for machines, in real processes."""

import json
import subprocess
import sys

import pytest

from tests.bench import private_step
from tests.support.patience import PATIENCE_S


def test_less_than_a_block_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["private_step.py", "--blocks", "0"])
    with pytest.raises(SystemExit, match="2"):
        private_step.main()
    assert "at least one block" in capsys.readouterr().err


@pytest.mark.slow
def test_noise_on_rows_that_owners_clip_costs_no_round_and_no_byte() -> None:
    argv = [sys.executable, private_step.__file__, "--network", "lr784", "--blocks", "1"]
    ended = subprocess.run(
        [*argv, "--format", "json"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    kinds = json.loads(ended.stdout)["kinds"]
    assert list(kinds) == ["plain", "private", "private, 16 bands"]
    plain = kinds["plain"]
    assert plain["ratio"] == plain["cpu_ratio"] == 1
    for said in kinds.values():
        assert said["rounds"] == plain["rounds"]
        # But for the numbers of steps in frames, which grow.
        assert said["bytes_sent"] == pytest.approx(plain["bytes_sent"], abs=4)
        assert said["cpu_seconds"] > 0 and said["step_seconds"] > 0
