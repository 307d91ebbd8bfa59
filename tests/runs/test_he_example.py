"""The commands of `examples/homomorphic` as its README has them, with real processes: what a clinic
gets of a model at a laboratory, and that the laboratory's own copy says the same."""

from __future__ import annotations

import csv
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES, ROOT, copied_example
from tests.support.patience import PATIENCE_S

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

README = (EXAMPLES / "homomorphic" / "README.md").read_text()
LINES = [line.strip() for line in README.splitlines() if re.match(r" {4}\S", line)]


class Shell:
    """Types the README's lines in a copy of the example, where the server has a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copied_example("homomorphic", folder)
        (folder / "pass").write_text("a long passphrase of the tests")
        (folder / "pass").chmod(0o600)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        path = folder / "serving.toml"
        path.write_text(self.here(path.read_text()))

    def here(self, text: str) -> str:
        return text.replace("127.0.0.1:7800", f"127.0.0.1:{self.port}")

    def start(self, line: str) -> subprocess.Popen[str]:
        typed = self.here(line)
        if line.removeprefix("mpc-train ").startswith(("identity new", "he ", "audit show")):
            typed = re.sub(r"( > |$)", r" --passphrase-file pass\1", typed, count=1)
        typed = re.sub(r"^mpc-train", f"exec {sys.executable} -m mpc_train", typed)
        typed = re.sub(r"^python", f"exec {sys.executable}", typed)
        return subprocess.Popen(  # noqa: S602 - a README's line, as a shell reads it
            typed,
            shell=True,
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, line: str, patience_s: float | None = PATIENCE_S) -> str:
        ended = self.start(line)
        try:
            out, error = ended.communicate(timeout=patience_s)
        finally:
            ended.kill()
        assert ended.returncode == 0, f"{line}: {error}"
        return out

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_train_serve_ask_and_compare(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    at = next(place for place, line in enumerate(LINES) if line.startswith("mpc-train he serve"))
    for line in LINES[:at]:
        shell.type(line, None if line.startswith("mpc-train run") else PATIENCE_S)
    server = shell.start(LINES[at])
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("Serving tumours on ")
        asking = [
            line for line in LINES[at:] if line.startswith("mpc-train he") and line != LINES[at]
        ]
        assert [line.split()[2] for line in asking] == ["keys", "show", "query"]
        for line in asking:
            said = shell.type(line)
        assert said.strip() == "100 predictions in predictions.csv"
        server.terminate()
        assert server.communicate(timeout=PATIENCE_S)[0].strip() == "Answered 1 requests."
    finally:
        server.kill()
    *_, predict, audit = LINES
    shell.type(predict)
    assert shell.type(audit).count("query-answered") == 1
    found, plain = shell.table("predictions.csv"), shell.table("plain.csv")
    assert [row["patient"] for row in found] == [f"p{number:03}" for number in range(1, 101)]
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours["patient"], ours["prediction"]) == (theirs["patient"], theirs["prediction"])
        assert abs(float(ours["p(true)"]) - float(theirs["p(true)"])) < 1e-4
