"""`mpc-train` as a user runs it: in this process, or `launch.py` in one of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def mpc_train(*words: object) -> Result:
    """How `mpc-train WORDS…` ended, run in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def last_object(stdout: str) -> dict[str, Any]:
    """The JSON object of the last line, which is a command's record."""
    record = json.loads(stdout.splitlines()[-1])
    assert isinstance(record, dict)
    return record


def as_json(*words: object) -> dict[str, Any]:
    """The record that `mpc-train WORDS… --format json` prints, however it ends."""
    return last_object(mpc_train(*words, "--format", "json").stdout)


def run_job(job: Path, *options: object) -> Result:
    """`mpc-train run` of a job: its nodes are processes, their files in `run` beside the job."""
    return mpc_train("run", job, "--format", "json", "--run-dir", job.parent / "run", *options)


def trained(job: Path, *options: object) -> dict[str, Any]:
    """The record of `mpc-train run` of a job, which must end well."""
    shown = run_job(job, *options)
    assert shown.exit_code == 0, shown.stderr
    return last_object(shown.stdout)


def launch(job: Path, *options: str) -> "subprocess.Popen[str]":
    """`launch.py` of a job, begun, with its files in `run` beside the job."""
    argv = [sys.executable, str(ROOT / "launch.py"), str(job), "--format", "json"]
    return subprocess.Popen(
        [*argv, "--run-dir", str(job.parent / "run"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=job.parent,
    )


def ended(
    process: "subprocess.Popen[str]", patience_s: float | None = PATIENCE_S
) -> tuple[dict[str, Any], str]:
    """Its record, if any, and what it said on standard error, once it has ended."""
    try:
        out, err = process.communicate(timeout=patience_s)
    finally:
        process.kill()  # where it hangs
    return last_object(out) if out else {}, err


def launched(job: Path, *options: str) -> dict[str, Any]:
    """The record of `launch.py` of a job, which must end well."""
    process = launch(job, *options)
    record, err = ended(process, None)
    assert process.returncode == 0, err
    return record


def options_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that `words` begin with, and the words that are left."""
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        if rest and rest[0] not in command.commands and hasattr(command, "default"):
            rest.insert(0, command.default)
        assert rest and rest[0] in command.commands, words
        command = command.commands[rest.pop(0)]
    return command, rest
