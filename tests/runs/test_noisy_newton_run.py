"""Regressions with noise on their sums, in real processes: nodes are killed twice in the middle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.checkpoints.state import State
from mpc_train.errors import ArtifactError
from mpc_train.owners.row_norms import bounded_labels, clipped_rows
from mpc_train.run.phases.shelf import VaultShelf
from mpc_train.twin.private import Curator
from mpc_train.twin.regression import private_fit
from tests.runs.test_kill_matrix import NODES, FiveNodes, kill
from tests.runs.test_resume import await_steps, events
from tests.support.csv_tables import load_tables
from tests.support.recorded import STEP_S
from tests.support.study import csv_text

STEPS = 30
ROWS = {"ann": 1400, "bob": 1100, "office": 600}
"""In several blocks, of 1,024 rows or less."""
SECTIONS = """[data]
features = [
  { name = "age", center = 50, scale = 10, range = [0, 120] },
  { name = "dose", range = [-8, 8] },
]
label = LABEL
rows = { ann = 1400, bob = 1100, office = 600 }
[model]
kind = "KIND"
[train]
guard = false
optimizer = { name = "newton", steps = STEPS, OPTIONS }
[privacy]
epsilon = 20
delta = 0.00001
neighbours = "zeroed"
clip = 3
MORE
"""
RANGED = '{ name = "ill", range = [0, 1] }'
KINDS = {
    "linear": (RANGED, "l2 = 0.2", "clip_label = 1"),
    "logistic": ('"ill"', "l2 = 0.5", ""),
    "poisson": (RANGED, "l2 = 2, log_range = [-3, 1]", "clip_label = 1"),
}
RULES = "\n[rules.privacy]\nbudget_epsilon = 30\nbudget_delta = 0.0001\n"


class NewtonStudy(FiveNodes):
    """The five nodes with more rows, and a regression whose sums have little noise."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder)
        self.kind = kind
        self.rows |= ROWS
        for seed, (owner, rows) in enumerate(ROWS.items()):
            self.csv(owner).write_text(csv_text(rows, seed))
        self.cells = [self.csv(owner).read_text() for owner in ROWS]
        text = self.job.read_text()
        label, options, more = KINDS[kind]
        sections = SECTIONS.replace("KIND", kind).replace("LABEL", label)
        sections = sections.replace("STEPS", str(STEPS)).replace("OPTIONS", options)
        self.job.write_text(text[: text.index("[data]")] + sections.replace("MORE", more))

    def begin(self, name: str) -> None:
        if name == "desk":
            super().begin(name)
        else:
            self.node(name, rules=RULES)

    def kept(self) -> dict[str, np.ndarray]:
        """What the newest checkpoint that both evaluators hold says, by all who may not."""
        job = load_job(self.job)
        shelves = [
            VaultShelf(self.vault(name).opened, job.name, job.digest().hex())
            for name in job.evaluators
        ]
        found: list[dict[str, np.ndarray]] = []

        def held() -> bool:
            common = set.intersection(*(set(shelf.tokens()) for shelf in shelves))
            try:
                one, other = (State.from_bytes(shelf.read(max(common))).parts for shelf in shelves)
            except (ArtifactError, ValueError):  # those that run have newer ones meanwhile
                return False
            found.append({name: one[name] + other[name] for name in one})
            return True

        self.wait_for("a checkpoint of both evaluators", held)
        return found[0]

    def without_noise(self) -> np.ndarray:
        """The coefficients that a trusted curator of all rows would find."""
        job = load_job(self.job)
        tables = load_tables(self.folder, job)
        inputs = np.concatenate([table.features for table in tables])
        labels = np.concatenate([table.labels for table in tables])
        rows = np.arange(job.rows)
        inputs, labels = clipped_rows(job, inputs, rows), bounded_labels(job, labels, rows)
        return private_fit(job, inputs, labels, Curator())


@pytest.fixture
def study(
    tmp_path: Path, homes: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NewtonStudy]:
    monkeypatch.setenv(STEP_S, "0.3")  # otherwise it may be over before somebody is killed
    shutil.copytree(homes, tmp_path / "homes")
    made = NewtonStudy(tmp_path, request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "first", "second"),
    [("linear", "ann", "registry"), ("logistic", "registry", "bob"), ("poisson", "bob", "desk")],
    indirect=["study"],
)
def test_a_noisy_regression_goes_on(study: NewtonStudy, first: str, second: str) -> None:
    for name in NODES:
        study.begin(name)
    kept = []
    for killed, step in ((first, 3), (second, 12)):
        await_steps(study, step)
        kill(study, killed)
        kept.append(study.kept())
        study.begin(killed)
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(NODES, 0), ended
    assert {event["code"] for event in events(study, "suspended")} <= {"lost"}

    # Sums that all steps share have their noise once, in all sessions; of others none is kept.
    shared = {"regression/information", "regression/gradient"}
    assert all(shared & set(each) == (shared if study.kind == "linear" else set()) for each in kept)
    for name in shared & set(kept[0]):
        np.testing.assert_array_equal(kept[0][name], kept[1][name])
    assert study.used_twice() == 0 and study.leaks() == set()

    # Breaks cost nothing: neither accuracy nor budget, also at an owner that does not compute.
    model = study.model()
    found = np.append(model["weight"].reshape(-1), model["bias"])
    print(found, study.without_noise())
    assert np.abs(found - study.without_noise()).max() < 0.05
    for owner in ROWS:
        assert study.spent(owner) == "runs over this table have cost ε = 20, δ = 0.00001"
    manifest = json.loads((study.folder / "opened" / "manifest.json").read_text())
    assert manifest["privacy"]["epsilon"] == "20" and manifest["regression"]["converged"]
