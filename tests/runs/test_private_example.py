"""The command of `examples/breast_cancer` that trains with differential privacy, in processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES, ROOT, copied_example, make_data

COMMAND = "python launch.py examples/breast_cancer/private.toml --compare"


@pytest.mark.slow  # five processes, and the training in the clear
@pytest.mark.timeout(600)
def test_the_private_job_trains_and_its_noise_is_named(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    assert f"    {COMMAND}\n" in (EXAMPLES / "breast_cancer" / "README.md").read_text()
    copied_example("breast_cancer", tmp_path / "examples" / "breast_cancer")
    make_data(tmp_path / "examples" / "breast_cancer")
    (tmp_path / "launch.py").write_text((ROOT / "launch.py").read_text())
    done = subprocess.run(
        [sys.executable, *COMMAND.split()[1:]],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    metric = re.search(
        r"accuracy (\S+)   \(same training in the clear, with noise of its own: (\S+)\)",
        done.stdout,
    )
    # Ten standard deviations of the noise of accuracy are 0.34.
    assert metric and all(float(number) > 0.5 for number in metric.groups())
    assert "most of it by the noise of [privacy]" in done.stdout
