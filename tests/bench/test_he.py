"""The measurement of encrypted questions runs, within what was promised of the server."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE_S

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

SCRIPT = Path(__file__).parent / "he.py"


@pytest.mark.slow
def test_a_logistic_regression_with_30_inputs_and_4096_records() -> None:
    command = [sys.executable, str(SCRIPT), "--rows", "1", "4096", "--repeat", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for numbers in found.values():
        assert numbers["server_cpu_s"] <= 1
        assert numbers["bytes_up"] <= 20e6
        assert numbers["largest_difference"] <= 1e-4


@pytest.mark.skipif(find_spec("concrete") is not None, reason="Concrete ML is installed here")
def test_an_interpreter_without_concrete_ml_says_so() -> None:
    command = [sys.executable, str(SCRIPT.with_name("he_concrete.py")), "records.npz", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 3 and not done.stdout
    assert "Concrete ML is not installed" in done.stderr and sys.executable in done.stderr
