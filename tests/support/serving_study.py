"""A study whose model stays in shares and is served, by real processes, to clients in this one."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from mpc_train.asking.client import SharedService, connected
from mpc_train.cli import app
from mpc_train.errors import QueryRefusedError
from mpc_train.owners.local import Local
from mpc_train.serving.offered import Offered
from mpc_train.shared.description import read_description
from mpc_train.shared.library import Library
from parties.errors import PartiesError
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from parties.nodes.node import NodeSettings
from protocols.errors import ProtocolError
from protocols.ring.fixed_point import decode
from tests.support.commands import last_object
from tests.support.patience import PATIENCE_S
from tests.support.study import NAMES, NODES, PASSPHRASE, Study, csv_text

CLIENTS = ("office", "clinic")
TOLERANCE = 2**-10
LISTEN = 'listen = "tcp://127.0.0.1:*"'
RULES = f"""
clients = {json.dumps(CLIENTS)}
answers = ["number"]
max_rows_a_day = 1000000
max_drift_epsilon = 20.0
disclosures = ["training_counts"]
"""


class ServingStudy(Study):
    """`train` makes versions of the model; `serve` starts all nodes, which are killed and started
    again by name."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self._text, self._desk = self.job.read_text(), address
        self.return_s = self.join_s
        self.weights: dict[str, dict[str, np.ndarray]] = {}
        FileVault.create(self.homes / "clinic", "clinic", PASSPHRASE.encode())
        names = (*NAMES, "clinic")
        cards = Roster.of(Card.load(self.homes / name / f"{name}.card") for name in names)
        for name in names:
            cards.save(self.homes / name / "roster")
        text = csv_text(20, 9)
        self.cells.append(text)
        cells = [[float(cell) for cell in row[:2]] for row in list(csv.reader(text.split()))[1:]]
        values = np.array(cells) - [50, 0]
        self.rows_asked = values / [10, 1]

    def train(self, file: str, rows_a_day: int, rate: float, more: str = "") -> None:
        """Train a version, and write its description. more: lines of `[serve]`."""
        self.roles = dict(NODES)
        text = self._text.replace('recipients = ["ann", "office"]\n', "")
        text = text.replace("learning_rate = 0.1", f"learning_rate = {rate}")
        clients = json.dumps(CLIENTS)
        serve = f"[serve]\nclients = {clients}\nrows_a_day = {rows_a_day}\n{more}\n"
        self.job.write_text(text.replace("[reveal]", f'{serve}[reveal]\nmodel = "shares"'))
        self.coordinator()
        self.nodes()
        ended = self.ended()
        assert {end.status for end in ended.values()} == {0}, ended
        self.model_command("ann", "show", "study", "--out", str(self.folder / file))
        self.weights[file] = self._opened(file)

    def model_command(self, name: str, *words: str) -> None:
        config = ("--config", str(self.folder / f"{name}.toml"))
        secret = ("--passphrase-file", str(self.passphrase))
        done = CliRunner().invoke(app, ["model", *words, *config, *secret])
        assert done.exit_code == 0, done.output

    def _opened(self, file: str) -> dict[str, np.ndarray]:
        """What nobody ever holds: all shares of a version, added up."""
        about = read_description(self.folder / file)
        found: dict[str, Any] = {}
        for name in about.job.evaluators:
            (share,) = Library(self.vault(name).opened).shares(about.digest)
            for key, words in share.parts.items():
                with np.errstate(over="ignore"):
                    found[key] = found.get(key, 0) + words
        bits = about.job.fraction_bits
        return {key.partition("/")[2]: decode(words, bits) for key, words in found.items()}

    def serve(self, *files: str) -> None:
        self.offer(*files)
        for name in NODES:
            self.again(name)

    def offer(self, *files: str) -> None:
        """Start the coordinator of a service of these models."""
        (self.folder / "service.toml").write_text(
            f'[service]\nname = "house"\nmodels = {json.dumps(files)}\n'
        )
        config = self._config(
            "desk", f'[network]\nlisten = "{self._desk}"\n[run]\njob = "service.toml"'
        )
        self.address = self._desk
        self.start("desk", "serve", "--config", config, *self._options())

    def again(self, name: str) -> None:
        """Start a node of the service."""
        self.roles[name] = "serve"
        self.node(name)

    def config(self, name: str, *, network: str = LISTEN, rules: str = "") -> Path:
        return super().config(name, network=network, rules=rules + RULES)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running.pop(name).wait()
        self.killed.add(name)

    def stop(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGTERM)
        self.running.pop(name).wait(PATIENCE_S)

    def logged(self, name: str, *kinds: str) -> list[tuple[str, dict[str, Any]]]:
        """The entries of a node's audit log, of these kinds or of all that end something."""
        words = ["--config", str(self.folder / f"{name}.toml"), "--format", "json"]
        done = CliRunner().invoke(
            app, ["audit", "show", *words, "--passphrase-file", str(self.passphrase)]
        )
        assert done.exit_code == 0, done.output
        known = kinds or ("run-ended", "run-aborted", "service-ended")
        found = last_object(done.stdout)["entries"]
        return [(each["kind"], each["fields"]) for each in found if each["kind"] in known]

    def entry(self, name: str) -> tuple[FileVault, Roster, Path]:
        """What a client has: its identity, its roster, a folder."""
        vault = FileVault.open(self.homes / name / f"{name}.identity", PASSPHRASE.encode())
        return vault, Roster.load(self.homes / name / "roster"), self.folder / f"{name}-run"

    @contextlib.contextmanager
    def client(self, name: str = "office") -> Iterator[SharedService]:
        vault, roster, run_dir = self.entry(name)
        settings = NodeSettings("desk", self.address, run_dir, reconnect_s=2.0)
        with connected(
            vault,
            roster,
            settings,
            lambda kind, fields: None,
            lambda kind, fields: None,
            connect_s=PATIENCE_S,
        ) as service:
            yield service

    def local(self, count: int = 3) -> Local:
        return Local(self.rows_asked[:count], np.ones((count, 0)))

    def expected(self, file: str, count: int = 3) -> np.ndarray:
        weights = self.weights[file]
        found: np.ndarray = self.rows_asked[:count] @ weights["weight"].T + weights["bias"]
        return found


def newest(service: SharedService) -> Offered:
    return service.models["study"][-1]


class Asking:
    """A thread that asks without pause. answers: their largest difference from what is right."""

    def __init__(self, study: ServingStudy, service: SharedService, file: str) -> None:
        self._study, self._service = study, service
        self._expected = study.expected(file)
        self.answered = 0
        self.refused: list[tuple[str, float]] = []
        """The word of each refusal, and how many seconds it took."""
        self.wrong: list[Any] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                model = newest(self._service)
                began = time.monotonic()
                found = self._service.ask(model, self._study.local())
            except QueryRefusedError as error:
                self.refused.append((error.code, time.monotonic() - began))
                self._over.wait(0.2)
            except (PartiesError, ProtocolError) as error:
                self.wrong.append(error)
                self._over.wait(0.2)
            else:
                if np.abs(found - self._expected).max() > TOLERANCE:
                    self.wrong.append(found)
                self.answered += 1
