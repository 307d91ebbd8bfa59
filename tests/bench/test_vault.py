"""The measurement of the vault runs, and what it measures is the whole table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE_S

SCRIPT = Path(__file__).parent / "vault.py"


@pytest.mark.slow
def test_a_table_comes_out_of_the_vault() -> None:
    command = [sys.executable, str(SCRIPT), "--mb", "8", "--rows", "3000", "--columns", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seal_gb_per_s"] > 0 and found["open_gb_per_s"] > 0
    for kind in ("csv", "parquet"):
        assert len(found[kind][kind]) == len(found[kind][f"vault:{kind}"]) == 2
