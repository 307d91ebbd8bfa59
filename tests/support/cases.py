"""Small jobs with made-up tables that once came out wrong (`tests/cases`), run as a user runs them.

Each folder holds a job and its owners' tables; which result is right stands in the test.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases"


@dataclass(frozen=True)
class CaseRun:
    """status: of the process. record: its last line. words: what it printed on standard error."""

    status: int
    record: dict[str, Any]
    words: str
    folder: Path


def run_case(
    name: str, folder: Path, *options: str, change: Callable[[str], str] | None = None
) -> CaseRun:
    """Copy a case into `folder` and run it in real processes; `change` rewrites its job first."""
    here = folder / name
    shutil.copytree(CASES / name, here)
    job = here / "job.toml"
    if change is not None:
        job.write_text(change(job.read_text()))
    argv = [sys.executable, str(ROOT / "launch.py"), str(job), "--format", "json"]
    ended = subprocess.run(
        [*argv, "--run-dir", str(here / "run"), *options],
        capture_output=True,
        text=True,
        cwd=here,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = ended.stdout.splitlines()
    record = json.loads(lines[-1]) if lines else {}
    return CaseRun(ended.returncode, record, ended.stderr, here)
