"""Federated rounds as real processes: one owner is killed and comes back, another one cheats.

Two evaluators with rows of their own, a dealer, a coordinator, and two owners that come and go.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mpc_train.admission.load import load_job
from mpc_train.federated.local import Owner
from mpc_train.federated.plain import plain_rounds
from mpc_train.owners.table import load_table
from mpc_train.tables.source import Source
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.runs.test_resume import events, free_address, kill
from tests.support.local_run import ROOT
from tests.support.study import NAMES, PASSPHRASE, Study, csv_text

OWNERS = ("ann", "bob", "eve", "office")
ROUNDS, DEADLINE_S = 12, 12
LIGHT_MB = 300
"""What an owner that comes and goes may take: the size of its process at its largest."""
MODULE = """
import torch


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
"""
JOB = f"""
[job]
name = "study"
owners = ["ann", "bob", "eve", "office"]
evaluators = ["ann", "bob"]
dealer = "registry"
[data]
features = [{{ name = "age", center = 50, scale = 10, range = [0, 120] }}, "dose"]
label = "ill"
test_fraction = 0.2
rows = {{ ann = 40, bob = 30, eve = 50, office = 60 }}
[model]
kind = "logistic"
module = "study_net:network"
[train]
mode = "federated"
seed = 3
[train.federated]
rounds = {ROUNDS}
local_steps = 3
batch_size = 8
learning_rate = 0.1
clip = 1
least_owners = 2
deadline_s = {DEADLINE_S}
"""
RULES = 'disclosures = ["federated"]\nmodules = ["study_net:network"]\nleast_parties = 2'


PRIVACY = """[privacy]
epsilon = 8
delta = 0.00001
neighbours = "zeroed"
unit = "owner"
"""
BUDGET = "\n[rules.privacy]\nbudget_epsilon = 12\nbudget_delta = 0.001\n"


class Rounds(Study):
    """The study with two owners that come and go: office, and eve, who cheats."""

    rules = RULES

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.job.write_text(JOB)
        (folder / "study_net.py").write_text(MODULE)
        self.rows = {"ann": 40, "bob": 30, "eve": 50, "office": 60}
        for seed, (name, rows) in enumerate(self.rows.items()):
            self.csv(name).write_text(csv_text(rows, seed))
            self.paths[name] = folder
        self.paths |= {"registry": folder, "desk": folder}
        FileVault.create(self.homes / "eve", "eve", PASSPHRASE.encode())
        cards = [Card.load(self.homes / name / f"{name}.card") for name in (*NAMES, "eve")]
        for name in (*NAMES, "eve"):
            Roster.of(cards).save(self.homes / name / "roster")

    def owner(self, name: str) -> None:
        """Start an owner that comes and goes."""
        config = self.config(name, rules=self.rules)
        program = ["-m", "mpc_train"]
        if name == "eve":
            program = [str(Path(ROOT) / "tests" / "support" / "hostile_owner.py")]
        words = [*program, "owner", "--config", config, self.job, *self._options()]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}"}
        with self.output(name, "out").open("wb") as out, self.output(name, "err").open("wb") as e:
            self.running[name] = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdout=out,
                stderr=e,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=environment,
            )

    def told(self, name: str) -> list[dict[str, Any]]:
        """What an owner has told of the rounds so far."""
        return events(self, "round", name)


@pytest.fixture
def study(tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rounds]:
    shutil.copytree(homes, tmp_path / "homes")
    made = Rounds(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_an_owner_is_killed_and_comes_back_while_another_one_cheats(study: Rounds) -> None:
    study.coordinator()
    for name in ("ann", "bob", "registry"):
        study.node(name, rules=RULES)
    study.owner("office")
    study.owner("eve")
    study.wait_for("the second round", lambda: len(study.told("office")) >= 2)
    study.running["office"].kill()
    study.running.pop("office").wait()
    study.killed.add("office")
    away = len(study.told("ann"))
    study.wait_for("rounds without it", lambda: len(study.told("ann")) >= away + 2)
    study.owner("office")
    ended = study.ended()
    assert {name: one.status for name, one in ended.items()} == dict.fromkeys(ended, 0), ended

    # Eve was told that none of her updates counts; office, which of its own do.
    cheated, mine = study.told("eve"), study.told("office")
    assert [one["round"] for one in cheated] == [one["round"] for one in mine]
    assert {one["counted"] for one in cheated} <= {False, None} and cheated[1]["counted"] is False
    counted = [one["counted"] for one in mine]
    assert len(counted) == ROUNDS and counted[0] and None in counted and counted[-1]
    assert [one["owners"] for one in mine] == [3 if one else 2 for one in counted]

    # The model is that of plain rounds of those that count, as if Eve had not been there.
    job = load_job(study.job)
    owners = {
        name: Owner(job, name, load_table(Source(str(study.csv(name))), job, name), "cpu")
        for name in OWNERS
    }
    honest = [["ann", "bob", *(["office"] if one else [])] for one in counted]
    weights = plain_rounds(job, owners, honest).weights
    expected = owners["ann"].tensors(weights)
    for name in ("office", "eve"):
        found = load_file(ended[name].record["model"])
        for key, value in expected.items():
            assert np.abs(found[key] - value.numpy()).max() < ROUNDS * 2**-22
    assert ended["office"].record["peak_rss_mb"] < LIGHT_MB


@pytest.mark.slow
def test_a_run_goes_on_after_the_last_opened_round_and_pays_once(study: Rounds) -> None:
    """Evaluators, dealer and coordinator are killed in the middle of rounds. No round is opened
    twice, and budgets pay for one run."""
    text = study.job.read_text()
    for old, new in (
        ('"eve", ', ""),
        ("eve = 50, ", ""),
        ("local_steps = 3", "local_steps = 100"),
        ("[train]", f"{PRIVACY}[train]"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    study.job.write_text(text)
    study.return_s, study.rules, address = study.join_s, RULES + BUDGET, free_address()

    def begin(name: str) -> None:
        if name == "desk":
            study.coordinator(listen=address)
        else:
            study.node(name, rules=study.rules)

    for name in ("desk", "ann", "bob", "registry"):
        begin(name)
    study.owner("office")
    for killed, after in ((["bob"], 3), (["desk", "ann"], 6), (["registry"], 9)):
        study.wait_for(f"round {after}", lambda: len(study.told("office")) >= after)  # noqa: B023
        kill(study, *killed)
        for name in killed:
            begin(name)
    ended = study.ended()
    assert {name: one.status for name, one in ended.items()} == dict.fromkeys(ended, 0), ended
    # An owner that stayed goes on where it was, and all end with the same model.
    assert [one["round"] for one in study.told("office")] == [*range(1, ROUNDS + 1)]
    (other,) = (study.left / "ann").rglob("model.safetensors")
    mine, theirs = load_file(ended["office"].record["model"]), load_file(other)
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine | theirs)
    for name in ("ann", "bob", "office"):
        assert study.spent(name) == "runs over this table have cost ε = 8, δ = 0.00001"
    assert study.used_twice() == 0
