"""Copies of the examples' folders, and the data that an example's script makes."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def copied_example(name: str, folder: Path) -> Path:
    """The example in `folder`, without data; returns the path of its job."""
    left_out = shutil.ignore_patterns("data", "runs", "__pycache__")
    shutil.copytree(EXAMPLES / name, folder, ignore=left_out, dirs_exist_ok=True)
    return folder / "job.toml"


def make_data(folder: Path) -> None:
    """Run the script as a user does, in a process of its own."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, str(folder / "make_data.py")], check=True, env=environment)
