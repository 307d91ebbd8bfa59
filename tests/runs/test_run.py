"""Whole runs in real processes: a good one, its files and logs, and what faults look like."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.audience import learnt
from mpc_train.run.phases.prepare import agreed_outputs
from parties.nodes.supervisor import PARENT_FD
from tests.support.commands import ended, launch
from tests.support.csv_tables import ROWS, fitting_tables, write_tables
from tests.support.jobs import replaced, write_job
from tests.support.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"party", "dealer", "coordinator", "mpc_train", "json"}


def study(folder: Path, **changes: str) -> Path:
    """A job of three owners and their files; `changes` are lines of theirs, by name."""
    for owner, table in fitting_tables().items():
        # Digits of their own, so that no figure in a log equals a cell by chance.
        lines = [re.sub(r"(\.\d+)", r"\g<1>5772157", line) for line in table]
        if owner in changes:
            lines[3] = changes[owner]
        write_tables(folder, {owner: lines})
    text = replaced("learning_rate = 0.5", "learning_rate = 0.1")
    return write_job(folder, f"{text}least_group = 1\n")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("good")
    process = launch(study(folder), "--compare", "--vault")
    record, err = ended(process)
    assert process.returncode == 0, err
    return folder, record, err


@pytest.mark.slow
def test_the_report_has_every_field(good: tuple[Path, dict[str, Any], str]) -> None:
    _, record, _ = good
    assert record["status"] == "ok"
    assert (record["parties"], record["steps"]) == (3, 16)
    assert set(record["bytes_sent"]) == {"ann", "bob", "cleo", "registry"}
    assert all(count > 0 for count in record["bytes_sent"].values())
    assert record["rounds"] > 0
    assert 0 < record["step_seconds_median"] <= record["train_seconds"]
    assert set(record["metrics"]) == set(record["twin_metrics"]) == {"accuracy", "auc"}
    assert len(record["sealed"]) == 2


@pytest.mark.slow
def test_what_was_learnt_is_what_the_contract_says(
    good: tuple[Path, dict[str, Any], str],
) -> None:
    folder, record, _ = good
    job = load_job(folder / "job.toml")
    due = learnt(job, sorted(output.name for output in agreed_outputs(job)))
    assert {name: sorted(what) for name, what in record["learnt"].items()} == {
        name: sorted(what) for name, what in due.items()
    }
    assert record["learnt"]["bob"] == ["range", "accuracy", "auc"]
    for name in ("ann", "bob", "registry"):
        log = (folder / "run" / "logs" / f"{name}.stdout.log").read_text().splitlines()
        said = json.loads(log[-1])
        assert said["learnt"] == record["learnt"][name]
        assert said["metrics"] == record["metrics"]  # the dealer is told them


@pytest.mark.slow
def test_the_model_is_that_of_the_twin(good: tuple[Path, dict[str, Any], str]) -> None:
    _, record, _ = good
    assert record["max_weight_difference"] < 2e-3
    for name, value in record["metrics"].items():
        assert value == pytest.approx(record["twin_metrics"][name], abs=0.041)
    module = torch.nn.Linear(2, 1)
    module.load_state_dict(safetensors.torch.load_file(record["model"]))
    manifest = json.loads(Path(record["model"]).with_name("manifest.json").read_text())
    assert manifest["metrics"] == record["metrics"]


@pytest.mark.slow
def test_no_key_and_no_value_is_left_in_the_run(good: tuple[Path, dict[str, Any], str]) -> None:
    folder, record, err = good
    assert not list(folder.rglob("*.identity"))
    assert not list(folder.rglob("*.tmp"))
    texts = [err, json.dumps(record)]
    texts += [path.read_text() for path in folder.rglob("*.log")]
    texts += [path.read_text() for path in (folder / "run").rglob("*.toml")]
    assert len(texts) > 10
    for owner in ROWS:
        lines = (folder / "data" / f"{owner}.csv").read_text().splitlines()[1:]
        cells = {cell for line in lines for cell in line.split(",") if len(cell) > 9}
        assert len(cells) > ROWS[owner]
        for cell in cells:
            assert not any(cell in text for text in texts)


@pytest.mark.slow  # the same way out as in test_faults.py, with more nodes
@pytest.mark.slow
def test_a_bad_cell_is_one_error_and_stops_everybody(tmp_path: Path) -> None:
    job = study(tmp_path, bob="12.125,NaN,1")
    process = launch(job)
    record, err = ended(process)
    assert process.returncode == 4
    assert record["status"] == "DataError"
    assert record["message"].startswith("bob: ")
    assert "bob.csv: line 4: column 'dose'" in record["message"]
    assert "12.125" not in err
    logs = tmp_path / "run" / "logs"
    for node in ("ann", "cleo", "registry", "coordinator"):
        text = (logs / f"{node}.stderr.log").read_text()
        assert text.startswith("error: ")
        assert "bob" in text
        assert "dose" not in text
    assert not list(tmp_path.rglob("*.safetensors"))


def long_study(folder: Path) -> Path:
    job = study(folder)
    job.write_text(job.read_text().replace("epochs = 4", "epochs = 20000"))
    return job


def training(process: "subprocess.Popen[str]", folder: Path) -> list[psutil.Process]:
    """Wait until steps are made; return the nodes' processes."""
    log = folder / "run" / "logs" / "coordinator.stdout.log"

    def trains() -> bool:
        assert process.poll() is None
        return log.exists() and '"step"' in log.read_text()

    wait_until(trains, "the first step")
    return psutil.Process(process.pid).children(recursive=True)


def gone(nodes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(nodes, timeout=PATIENCE_S)
    return not alive


@pytest.mark.slow
@pytest.mark.slow
def test_a_node_that_dies_is_named(tmp_path: Path) -> None:
    process = launch(long_study(tmp_path))
    nodes = training(process, tmp_path)
    victim = next(node for node in nodes if "cleo/party.toml" in " ".join(node.cmdline()))
    victim.kill()
    record, _ = ended(process)
    assert process.returncode == 8
    assert record["status"] == "PeerLostError"
    assert "cleo" in record["message"]
    assert gone(nodes)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
@pytest.mark.slow
@pytest.mark.slow
def test_nothing_outlives_the_run(tmp_path: Path, number: signal.Signals) -> None:
    process = launch(long_study(tmp_path))
    nodes = training(process, tmp_path)
    assert len(nodes) == 5
    for node in nodes:
        # Nothing of ours in arguments and environment but where things are.
        added = {key: value for key, value in node.environ().items() if key not in os.environ}
        assert set(added) <= {"PYTHONPATH", PARENT_FD, "COLUMNS", "LINES"}
        words = [word for word in node.cmdline() if not word.startswith(("-", "/"))]
        assert all(word in VERBS or word.isdigit() for word in words), words
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert gone(nodes)
    assert not list(tmp_path.rglob("*.safetensors"))


class Machines:
    """`examples/three_machines` in a directory of its own, on ports that are free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "three_machines"
        (folder / "breast_cancer").mkdir()
        for name in ("job.toml", "make_data.py"):
            text = (ROOT / "examples" / "breast_cancer" / name).read_text()
            if name == "job.toml":
                text = text.replace("epochs = 20", "epochs = 1")
            (folder / "breast_cancer" / name).write_text(text)
        ports = {}
        for number in range(7700, 7704):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports[str(number)] = str(probe.getsockname()[1])
        self.folder.mkdir()
        digest = load_job(folder / "breast_cancer" / "job.toml").digest().hex()
        for path in (ROOT / "examples" / "three_machines").glob("*.toml"):
            text = re.sub(r"77\d\d", lambda match: ports[match[0]], path.read_text())
            # Nobody is there to be asked: each is told the digest, as the README says.
            text = text.replace("[rules]\n", f'[rules]\njobs = ["{digest}"]\n')
            (self.folder / path.name).write_text(text)
        (self.folder / "passphrase").write_text("a passphrase for tests\n")
        (self.folder / "passphrase").chmod(0o600)
        readme = (ROOT / "examples" / "three_machines" / "README.md").read_text()
        lines = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
        self.commands = [line for line in lines if line.startswith(("mpc-train", "python"))]

    def start(self, command: str) -> "subprocess.Popen[str]":
        program = shlex.quote(sys.executable)
        words = command.split()
        asks = words[:3] == ["mpc-train", "identity", "new"] or words[1] in (
            "party",
            "dealer",
            "coordinator",
            "open",
        )
        line = re.sub(r"^mpc-train", f"{program} -m mpc_train", command)
        line = re.sub(r"^python", program, line)
        if asks:
            line += " --passphrase-file passphrase"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(  # noqa: S602 - the README's own lines, as a shell reads them
            line,
            shell=True,
            cwd=self.folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, command: str) -> str:
        process = self.start(command)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, f"{command}: {err}"
        return out

    def prepare(self) -> None:
        """Steps 1 to 3 of the README."""
        for command in self.commands:
            if command.split()[1] not in ("party", "dealer", "coordinator", "open", "model"):
                self.run(command)

    def nodes(self) -> dict[str, "subprocess.Popen[str]"]:
        return {
            command.split()[-1].removesuffix(".toml"): self.start(command)
            for command in self.commands
            if command.split()[1] in ("party", "dealer", "coordinator")
        }


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    made = Machines(tmp_path_factory.mktemp("machines"))
    made.prepare()
    return made


@pytest.mark.slow
@pytest.mark.slow
def test_the_commands_for_three_machines(machines: Machines) -> None:
    nodes = machines.nodes()
    assert len(nodes) == 5
    said = {name: process.communicate(timeout=PATIENCE_S) for name, process in nodes.items()}
    assert {name: process.returncode for name, process in nodes.items()} == dict.fromkeys(nodes, 0)
    for name in ("hospital-a", "hospital-b", "hospital-c", "registry-office"):
        assert "together with any one of them" in said[name][1]
        assert "revealed   the model" in said[name][1]
    for command in machines.commands:
        if command.split()[1] == "open":
            assert "Signed and sealed by hospital-a, hospital-b, hospital-c" in machines.run(
                command
            )
        if command.split()[1] == "model":
            assert "signed by hospital-a, hospital-b, hospital-c" in machines.run(command)
    models = list(machines.folder.rglob("model.safetensors"))
    assert len(models) == 2
    assert models[0].read_bytes()[-124:] == models[1].read_bytes()[-124:]


@pytest.mark.slow  # the same way out as of an altered job, which is tested in test_faults.py
@pytest.mark.slow
def test_a_job_against_the_rules_is_refused_everywhere(machines: Machines) -> None:
    rules = machines.folder / "hospital-b.toml"
    before = rules.read_text()
    rules.write_text(before.replace('["hospital-a", "study-office"]', '["hospital-a"]'))
    nodes = machines.nodes()
    said = {name: process.communicate(timeout=PATIENCE_S)[1] for name, process in nodes.items()}
    rules.write_text(before)
    assert nodes["hospital-b"].returncode == 6
    assert "study-office would receive results" in said["hospital-b"]
    for name in set(nodes) - {"hospital-b"}:
        assert nodes[name].returncode == 8
        assert "aborted by hospital-b: policy" in said[name]
