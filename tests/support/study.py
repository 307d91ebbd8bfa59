"""A small study whose nodes are started by hand, as separate machines would, and its secrets.

Two evaluators with a CSV file each, a dealer, a coordinator, and a recipient that runs no node.
Every process is `mpc-train` under `recorded.py`, so that afterwards `leaks` can search whatever
the run left behind for the data's values, keys, passphrases, masks and shares.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import Rules
from mpc_train.node.remembered import Remembered
from mpc_train.node.storage import NodeVault
from mpc_train.run.place import KeyPlace, VaultPlace
from mpc_train.tables.source import Source
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.commands import last_object, mpc_train
from tests.support.patience import PATIENCE_S, wait_until

RECORDED = Path(__file__).with_name("recorded.py")
NAMES = ("ann", "bob", "registry", "office", "desk")
NODES = {"ann": "party", "bob": "party", "registry": "dealer"}
PASSPHRASE = "correct horse battery staple"
ROWS = {"ann": 40, "bob": 30}
JOB = """
[job]
name = "study"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann", "office"]
[data]
features = [{ name = "age", center = 50, scale = 10, range = [0, 120] }, "dose"]
label = "ill"
test_fraction = 0.4
rows = { ann = 40, bob = 30 }
[model]
kind = "logistic"
[train]
epochs = EPOCHS
batch_size = 8
seed = 3
optimizer = { learning_rate = 0.1, momentum = 0.5 }
[fixed_point]
fraction_bits = 24
gradient_limit = 2
[reveal]
metrics = ["accuracy"]
"""


RULES = """
recipients = ["ann", "office"]
dealers = ["registry"]
evaluators = ["ann", "bob"]
metrics = ["accuracy", "auc"]
validators = ["office"]
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, the last JSON object it printed, what it said."""

    status: int
    record: dict[str, Any]
    stderr: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def make_homes(folder: Path) -> None:
    """Keys of everybody, and a roster in each home with all cards."""
    for name in NAMES:
        FileVault.create(folder / name, name, PASSPHRASE.encode())
    spread_cards(folder)


def spread_cards(homes: Path) -> None:
    cards = [Card.load(homes / name / f"{name}.card") for name in NAMES]
    for name in NAMES:
        Roster.of(cards).save(homes / name / "roster")


def csv_text(rows: int, seed: int) -> str:
    """Cells with so many digits that none of them can stand in a log by chance."""
    generator = np.random.default_rng(seed)
    age, dose = generator.normal(50, 10, rows), generator.normal(0, 1.5, rows)
    ill = (age - 50) / 10 + dose > 0
    lines = [f"{a:.7f},{d:.7f},{int(i)}" for a, d, i in zip(age, dose, ill, strict=True)]
    return "\n".join(["age,dose,ill", *lines]) + "\n"


class Study:
    """Everything below `folder`; what the nodes leave is in `left`, what is secret elsewhere."""

    def __init__(self, folder: Path, epochs: int = 1) -> None:
        self.folder, self.homes = folder, folder / "homes"
        self.left = folder / "left"
        self.secrets = folder / "secrets"
        for place in (self.left, self.secrets, folder / "data"):
            place.mkdir()
        self.job = folder / "job.toml"
        self.job.write_text(JOB.replace("EPOCHS", str(epochs)))
        for seed, (owner, rows) in enumerate(ROWS.items()):
            self.csv(owner).write_text(csv_text(rows, seed))
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(PASSPHRASE + "\n")
        self.passphrase.chmod(0o600)
        self.cells = [self.csv(owner).read_text() for owner in ROWS]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""
        self.agreed = ""
        """The digest of the job that the coordinator proposes, which nodes agree to by it."""

        self.join_s = 2 * int(PATIENCE_S)
        """How long nodes and coordinator wait for each other; longer than any test does."""

        self.reconnect_s = 2
        """How long a node whose process was killed is waited for, if it is not started again."""

        self.return_s = 0
        """How long the coordinator waits for a node that left after the job was proposed."""

        self.node_lines = ""
        """More lines of `[node]` at the nodes."""

        self.tables: dict[str, str] = {}
        """What a node's file names as its table, where that is not its CSV file."""

        self.start_file: Path | None = None
        """The state_dict from which training starts, at every node."""

        self.roles, self.rows = dict(NODES), dict(ROWS)
        """The nodes with their commands, and how many rows each owner has."""

        self.inside: dict[str, list[str]] = {}
        """Words before a process's command, which put it elsewhere, by name."""

        self.paths: dict[str, Path] = {}
        """Where nodes look for code of their own, by name."""

        self.killed: set[str] = set()
        """Nodes whose process was killed: what it was writing goes when the node next writes."""

        self.good: dict[str, Ended] = {}
        """How each node ended, in the study that `conftest` makes once."""

    def csv(self, owner: str) -> Path:
        return self.folder / "data" / f"{owner}.csv"

    def start(self, name: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """`mpc-train ARGUMENTS…` with its output in `left`."""
        words = [str(word) for word in arguments]
        record = self.secrets / f"{name}.words"
        environment = dict(os.environ)
        if name in self.paths:
            environment["PYTHONPATH"] = str(self.paths[name])
        with (self.output(name, "out")).open("wb") as out, self.output(name, "err").open("wb") as e:
            process = subprocess.Popen(
                [*self.inside.get(name, []), sys.executable, str(RECORDED), str(record), *words],
                stdout=out,
                stderr=e,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=environment,
            )
        self.running[name] = process
        return process

    def output(self, name: str, stream: str) -> Path:
        return self.left / f"{name}.{stream}"

    def coordinator(self, job: Path | None = None, listen: str = "tcp://127.0.0.1:*") -> None:
        """Start it, on a free port by default, and learn its address from its first event."""
        self.agreed = load_job(job or self.job).digest().hex()
        config = self._config(
            "desk", f'[network]\nlisten = "{listen}"\n[run]\njob = "{job or self.job}"'
        )
        self.start("desk", "coordinator", "--config", config, *self._options())
        told = self.output("desk", "out")
        self.wait_for("desk", lambda: "listening" in told.read_text())
        self.address = str(json.loads(told.read_text().splitlines()[0])["address"])

    def node(
        self,
        name: str,
        *,
        network: str = 'listen = "tcp://127.0.0.1:*"',
        rules: str = "",
        passphrase: Path | None = None,
    ) -> None:
        """Start the party or dealer `name`, which agrees to the job unless `rules` say to which."""
        config = self.config(name, network=network, rules=rules)
        self.start(name, self.roles[name], "--config", config, *self._options(passphrase))

    def config(
        self, name: str, *, network: str = 'listen = "tcp://127.0.0.1:*"', rules: str = ""
    ) -> Path:
        """Write the file of the party or dealer `name`."""
        agreed = "" if "jobs" in rules or not self.agreed else f'jobs = ["{self.agreed}"]'
        sections = [
            f'[coordinator]\nname = "desk"\naddress = "{self.address}"',
            f"[rules]\n{RULES}\n{agreed}\n{rules}",
            f"[network]\n{network}",
        ]
        if name in self.rows:
            sections.append(f'[data]\nstudy = "{self.tables.get(name, self.csv(name))}"')
        if self.start_file is not None:
            sections.append(f'[warm_start]\nstudy = "{self.start_file}"')
        return self._config(name, *sections)

    def nodes(self) -> None:
        for name in self.roles:
            self.node(name)

    def _config(self, name: str, *sections: str) -> Path:
        path = self.folder / f"{name}.toml"
        node = f'[node]\nname = "{name}"\nhome = "homes/{name}"\nrun_dir = "left/{name}"'
        if name in self.roles:
            node += f"\n{self.node_lines}"
        waits = f"[timeouts]\njoin_s = {self.join_s}\nreturn_s = {self.return_s}"
        waits += f"\nreconnect_s = {self.reconnect_s}"
        path.write_text("\n".join([node, *sections, waits, ""]))
        return path

    def _options(self, passphrase: Path | None = None) -> list[object]:
        return ["--verbose", "--format", "json", "--passphrase-file", passphrase or self.passphrase]

    def wait_for_steps(self) -> None:
        told = self.output("desk", "out")
        self.wait_for("the first step", lambda: '"step"' in told.read_text())

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Until `condition` holds, or a process ends that should not."""

        def over() -> bool:
            for name, process in self.running.items():
                assert process.poll() is None, self.output(name, "err").read_text()
            return condition()

        wait_until(over, what)

    def ended(self, *names: str) -> dict[str, Ended]:
        """Wait for these processes, all by default; nothing of theirs is left, neither children
        nor half a file. Those that still run may be writing one."""
        found = {}
        for name in names or tuple(self.running):
            process = self.running.pop(name)
            children = _children(process)
            status = process.wait(PATIENCE_S)
            assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
            lines = self.output(name, "out").read_text().splitlines()
            record = json.loads(lines[-1]) if lines else {}
            err = self.output(name, "err").read_text()
            found[name] = Ended(status, record, err)
        half = self.folder.rglob("*.tmp")
        others = self.killed | self.running.keys()
        assert not [path for path in half if not others.intersection(path.parts)]
        return found

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    def model(self) -> dict[str, np.ndarray]:
        """The weights that the office opens."""
        (sealed,) = self.left.rglob("office.sealed")
        out = self.folder / "opened"
        opening = ("open", sealed, "--home", self.homes / "office", "--out", out)
        shown = mpc_train(*opening, "--passphrase-file", self.passphrase, "--format", "json")
        assert shown.exit_code == 0, shown.stderr
        weights = load_file(last_object(shown.stdout)["model"])
        return {name: np.asarray(value) for name, value in weights.items()}

    def vault(self, name: str) -> NodeVault:
        home = self.homes / name
        identity = FileVault.open(home / f"{name}.identity", PASSPHRASE.encode())
        return NodeVault(VaultPlace(home / "vault", KeyPlace("identity:"), {}), name, identity)

    def spent(self, owner: str) -> str:
        """What an owner's record says that runs over its table have cost."""
        record = Remembered(self.vault(owner), owner, Rules((), (), ()))
        return record.notes(Source(file=str(self.csv(owner))))[-1]

    def used_twice(self) -> int:
        """How many roots of streams and keys of records a node has used more than once, in all
        its sessions."""
        twice = 0
        for path in self.secrets.glob("*.roots"):
            data = path.read_bytes()
            used = [data[at : at + 32] for at in range(0, len(data), 32)]
            used = [one for one in used if any(one)]  # zeros: the dry run of estimates, over shapes
            twice += len(used) - len(set(used))
        return twice

    def leaks(self, *more: bytes) -> set[str]:
        """What of the secrets stands in what the run left, or in `more`; kinds, not values."""
        blobs = [path.read_bytes() for path in self.left.rglob("*") if path.is_file()]
        return find_secrets([*blobs, *more], self.cells, self._words())

    def _words(self) -> set[bytes]:
        words: set[bytes] = set()
        for path in self.secrets.glob("*.words"):
            values = np.frombuffer(path.read_bytes(), np.int64)
            large = values[np.abs(values >> 32) > 1]  # not padding, lengths or a single bit
            words.update(value.tobytes() for value in large)
        return words


def _children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Of any weight of two models with the same names."""
    assert one.keys() == other.keys()
    return max(float(np.max(np.abs(one[name] - other[name]))) for name in one)


def find_secrets(blobs: Iterable[bytes], cells: Iterable[str], secrets: set[bytes]) -> set[str]:
    """Search for cells of CSV texts and for secret words, in every spelling one might meet."""
    words = secrets | set(fixed_point_words(cells))
    spelt = {
        "words": words,
        "words, big-endian": {word[::-1] for word in words},
    }
    hexadecimal = {word.hex() for group in spelt.values() for word in group}
    base64s = {text for word in words for text in _base64_inner(word)}
    numbers = {str(int.from_bytes(word, "little", signed=True)) for word in words}
    numbers = {number for number in numbers if len(number) >= 8} | set(_spellings(cells))
    found = set()
    for blob in blobs:
        windows = {blob[at : at + 8] for at in range(len(blob) - 7)}
        found |= {kind for kind, group in spelt.items() if not windows.isdisjoint(group)}
        text = blob.decode("latin-1")
        low = text.lower()
        if not {low[at : at + 16] for at in range(len(low))}.isdisjoint(hexadecimal):
            found.add("hexadecimal")
        if not {text[at : at + 10] for at in range(len(text))}.isdisjoint(base64s):
            found.add("base64")
        if not numbers.isdisjoint(re.findall(r"-?\d+(?:\.\d+)?", text)):
            found.add("numbers")
        if PASSPHRASE in text:
            found.add("passphrase")
    return found


def fixed_point_words(cells: Iterable[str], bits: int = 24) -> Iterator[bytes]:
    """The features of CSV texts as the ring holds them, those of them that are not tiny."""
    for age, dose in _rows(cells):
        for value in ((float(age) - 50) / 10, float(dose)):
            word = round(value * 2**bits)
            if abs(word) > 1 << 20:
                yield word.to_bytes(8, "little", signed=True)


def _spellings(cells: Iterable[str]) -> Iterator[str]:
    for age, dose in _rows(cells):
        for text in (age, dose):
            yield from (text, f"{float(text):.5f}", repr(float(text)))
        yield from (f"{float(age):.4f}", repr((float(age) - 50) / 10))


def _rows(cells: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in cells:
        for line in text.splitlines()[1:]:
            age, dose, _ = line.split(",")
            yield age, dose


def _base64_inner(word: bytes) -> Iterator[str]:
    """The ten characters that `word` alone decides, wherever it begins in a longer text."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + word + bytes(2)).decode()
        start = -(-8 * before // 6)
        yield text[start : start + 10]
