"""Homes of a company with an opened model, of clients, and the server as a process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpc_train.node.storage import MODEL, NodeVault
from mpc_train.results.kept import KeptModel
from mpc_train.run.node_config import load_node_config
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.node_files import party_toml

NAMES = ("company", "ann", "bob", "mallory")
PASSPHRASE = "a long passphrase of the tests"


class Company:
    """Everything below `folder`: `NAME.toml` of each, all with each other's cards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")
        self.passphrase.chmod(0o600)
        for name in NAMES:
            FileVault.create(folder / name, name, PASSPHRASE.encode())
        cards = [Card.load(folder / name / f"{name}.card") for name in NAMES]
        for name in NAMES:
            Roster.of(cards).save(folder / name / "roster")
            self.config(name).write_text(
                party_toml(name, node=f'home = "{name}"\npassphrase_file = "passphrase"')
            )
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.toml"

    def keep_model(self, name: str) -> None:
        """Put the model of the folder `model` into the company's vault."""
        config = load_node_config(self.config("company"))
        identity = FileVault.open(self.folder / "company" / "company.identity", PASSPHRASE.encode())
        files = {path.name: path.read_bytes() for path in (self.folder / "model").iterdir()}
        safe = NodeVault(config.vault, "company", identity)
        with safe.opened() as store, store.writing(MODEL, name) as out:
            out.write(KeptModel(name, files).packed())

    def serving(
        self,
        clients: Sequence[str] = ("ann", "bob"),
        rows: int = 40960,
        model: str = "model",
    ) -> Path:
        """The server's file: of the model in a folder, or vault:NAME."""
        path = self.folder / "serving.toml"
        path.write_text(
            f'listen = "tcp://127.0.0.1:*"\n[models.risk]\nmodel = "{model}"\n'
            f"clients = {json.dumps(list(clients))}\nrows_a_day = {rows}\n"
        )
        return path

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        command = [sys.executable, "-m", "mpc_train", "he", "serve", "--format", "json"]
        command += ["--config", str(self.config("company"))]
        command += ["--models", str(self.folder / "serving.toml")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.address = json.loads(line)["address"].removeprefix("tcp://")

    def stop(self) -> dict[str, Any]:
        """Interrupt the server; its last object."""
        assert self.process is not None
        self.process.terminate()
        out, error = self.process.communicate(timeout=60)
        self.process = None
        assert out, error
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found
