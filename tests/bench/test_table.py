"""The measurement of large tables runs, and memory stays near the size of the table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE_S

SCRIPT = Path(__file__).parent / "table.py"


def measured(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_reading_takes_little_more_than_the_table() -> None:
    found = measured("--rows", "400000", "--columns", "50")
    for kind in ("csv", "parquet"):
        assert found[kind]["table_mb"] == 180
        assert found[kind]["peak_rss_mb"] < 180 + 450


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharing_takes_less_than_four_times_the_table() -> None:
    """At its owner: the table, a word and a mask for each cell, and once more while joined. The dry
    run before it signs leaves some 45 MB of programs behind."""
    found = measured("--rows", "400000", "--columns", "50", "--share")
    assert max(found["peak_rss_mb"].values()) < 4 * 160 + 500
