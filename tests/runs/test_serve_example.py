"""The commands of `examples/serve`, from the training to the end of the model, with real processes:
what a clinic gets of a model that nobody opens."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_breast_cancer

from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.commands import last_object
from tests.support.examples import copied_example, make_data
from tests.support.patience import PATIENCE_S, wait_until

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

NAMES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d", "registry-office", "clinic")
PASSPHRASE = "a long passphrase of the tests"


class Example:
    """A copy of the example, with everybody's keys, at a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copied_example("serve", folder)
        make_data(folder)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        for file in folder.glob("*.toml"):
            file.write_text(file.read_text().replace("127.0.0.1:7700", f"127.0.0.1:{port}"))
        (folder / "pass").write_text(PASSPHRASE)
        (folder / "pass").chmod(0o600)
        everybody = (*NAMES, "coordinator")
        for name in everybody:
            FileVault.create(folder / "keys" / name, name, PASSPHRASE.encode())
        cards = [Card.load(folder / "keys" / name / f"{name}.card") for name in everybody]
        for name in everybody:
            Roster.of(cards).save(folder / "keys" / name / "roster")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`mpc-train WORDS`, which asks nobody anything. Its output goes to a file.

        Nodes of a service write what people read, as the README starts them.
        """
        written = () if words[0] == "serve" else ("--format", "json")
        argv = [sys.executable, "-m", "mpc_train", *words, *written]
        if "--config" in words:
            argv += ["--passphrase-file", "pass"]
        log = (self.folder / f"{words[0]}-{len(list(self.folder.glob('*.log')))}.log").open("w+")
        return subprocess.Popen(
            argv, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def done(self, *words: str) -> dict[str, Any]:
        """The record of a command, which must end well."""
        argv = [sys.executable, "-m", "mpc_train", *words, "--format", "json"]
        argv += ["--passphrase-file", "pass"] if "--config" in words else []
        ended = subprocess.run(
            argv, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert ended.returncode == 0, ended.stderr
        return last_object(ended.stdout)

    def allow(self, job: str, *names: str) -> None:
        """Each node's rules name the job, so that nobody is asked."""
        digest = self.done("job", "check", job)["digest"]
        for name in names:
            path = self.folder / f"{name}.toml"
            text = re.sub(r"^jobs = .*\n", "", path.read_text(), flags=re.MULTILINE)
            path.write_text(text.replace("[rules]\n", f'[rules]\njobs = ["{digest}"]\n'))

    def run(self, coordinator: str, *parties: str) -> None:
        """A run with the registry office."""
        nodes = [self.start("party", "--config", f"{name}.toml") for name in parties]
        nodes.append(self.start("dealer", "--config", "registry-office.toml"))
        try:
            self.done("coordinator", "--config", coordinator)
            for node in nodes:
                assert node.wait(PATIENCE_S) == 0
        finally:
            for node in nodes:
                node.kill()

    @contextlib.contextmanager
    def running(self, *commands: tuple[str, ...]) -> Iterator[None]:
        """These commands are there as long as the context lasts."""
        started = [self.start(*words) for words in commands]
        try:
            yield
            for one in started:
                assert one.poll() is None
                one.terminate()
            for one in started:
                one.wait(PATIENCE_S)
        finally:
            for one in started:
                one.kill()

    def said(self, kind: str) -> list[dict[str, Any]]:
        """The objects that processes of a command have printed."""
        logs = sorted(self.folder.glob(f"{kind}-*.log"))
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


def labels(rows: list[list[str]]) -> list[str]:
    """What the data set says of the new patients."""
    bunch = load_breast_cancer()
    known = {
        tuple(map(repr, values[:10].tolist())): "false" if benign else "true"
        for values, benign in zip(bunch.data, bunch.target, strict=True)
    }
    return [known[tuple(row[1:])] for row in rows]


def asked_by_http(url: str, token: str, body: bytes) -> Any:
    link = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    shown = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    link.request("POST", "/v1/models/breast-cancer:predict", body, shown)
    answer = link.getresponse()
    found = json.loads(answer.read())
    assert answer.status == 200, found
    link.close()
    return found["predictions"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_train_serve_ask_measure_and_retire(tmp_path: Path) -> None:
    example = Example(tmp_path)
    example.allow("job.toml", "hospital-a", "hospital-b", "hospital-c", "registry-office")
    example.run("coordinator-training.toml", "hospital-a", "hospital-b", "hospital-c")
    learnt = [said["metrics"] for said in example.said("party") if said.get("metrics")]
    assert len(learnt) >= 2 and all(found["accuracy"] > 0.85 for found in learnt)
    show = ("model", "show", "breast-cancer", "--config", "hospital-a.toml")
    example.done(*show, "--out", "breast-cancer.json")

    serving = [("serve", "--config", f"{name}.toml") for name in ("hospital-a", "hospital-b")]
    serving += [("serve", "--config", "registry-office.toml")]
    with example.running(*serving, ("serve", "--config", "coordinator-serving.toml")):
        query = ("query", "--config", "clinic.toml")
        (offered,) = example.done(*query, "--list")["models"]
        assert (offered["answer"], offered["decimals"]) == ("probability", 2)
        table = ("data/new-patients.csv", "--model", "breast-cancer", "--id", "patient")
        assert example.done(*query, *table, "--out", "predictions.csv")["rows"] == 40
        patients = list(csv.reader((tmp_path / "data" / "new-patients.csv").open()))
        found = list(csv.DictReader((tmp_path / "predictions.csv").open()))
        assert [row["patient"] for row in found] == [row[0] for row in patients[1:]]
        pairs = zip(found, labels(patients[1:]), strict=True)
        assert sum(row["prediction"] == label for row, label in pairs) >= 34
        assert all(re.fullmatch(r"0|1|0\.\d{1,2}", row["p(true)"]) for row in found)

        with example.running(("gateway", "--config", "clinic.toml", "--listen", "127.0.0.1:0")):
            wait_until(lambda: bool(example.said("gateway")), "the gateway")
            (served,) = example.said("gateway")
            token = Path(served["token_file"]).read_text().strip()
            header, *rows = patients
            cells = [dict(zip(header[1:], map(float, row[1:]), strict=True)) for row in rows]
            body = json.dumps({"instances": cells}).encode()
            answers = asked_by_http(served["url"], token, body)
            assert [each["prediction"] for each in answers] == [r["prediction"] for r in found]
            assert [f"{each['p(true)']:.9g}" for each in answers] == [r["p(true)"] for r in found]

    evaluate = ("evaluate", "breast-cancer.json", "--config", "hospital-d.toml")
    said = ("--metrics", "accuracy,auc", "--to", "hospital-d", "--out", "measure.toml")
    assert example.done(*evaluate, *said)["rows"] == 100
    example.allow("measure.toml", "hospital-a", "hospital-b", "hospital-d", "registry-office")
    example.run("coordinator-measuring.toml", "hospital-a", "hospital-b", "hospital-d")
    (sealed,) = tmp_path.glob("runs/hospital-d/*/metrics.sealed")
    opened = ("open", str(sealed), "--home", "keys/hospital-d", "--passphrase-file", "pass")
    assert example.done(*opened)["metrics"]["accuracy"] > 0.85

    for name in ("hospital-a", "hospital-b"):
        config = ("--config", f"{name}.toml")
        example.done("model", "retire", "breast-cancer", "--yes", *config)
        assert not example.done("model", "list", *config)["models"]
