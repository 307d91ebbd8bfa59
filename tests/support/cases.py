"""Small jobs with made-up tables that once came out wrong (`tests/cases`), run as a user runs them.

Each folder holds a job and its owners' tables; which result is right stands in the test.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.commands import ended, launch

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
    process = launch(job, *options)
    record, err = ended(process)
    return CaseRun(process.returncode, record, err, here)
