"""`module = "package.module:factory"` in real processes, each with its own copy of the code."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.networks import carried
from mpc_train.owners.table import load_table
from mpc_train.tables.source import Source
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import evaluate, max_weight_difference, train_twin
from tests.support.commands import mpc_train
from tests.support.study import Study

PACKAGE = {
    "__init__.py": "",
    "blocks.py": """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(self.norm(x).relu())
""",
    "networks.py": """
from pathlib import Path

from torch import nn

from .blocks import Block


def small():
    Path(__file__).with_name("called").touch()
    return nn.Sequential(nn.Linear(2, 6), Block(6), nn.Linear(6, 1))
""",
}
MODULE = "clinic_nets.networks:small"
COMPUTING = ("ann", "bob", "registry")
ALLOWED = f'modules = ["{MODULE}"]'


@pytest.fixture
def study(tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A study whose job names a factory, with a copy of its package for everybody."""
    shutil.copytree(homes, tmp_path / "homes")
    made = Study(tmp_path, epochs=6)
    made.job.write_text(
        made.job.read_text()
        .replace('kind = "logistic"', f'kind = "logistic"\nmodule = "{MODULE}"')
        .replace("fraction_bits = 24\ngradient_limit = 2", "fraction_bits = 20")
    )
    for name in ("desk", *COMPUTING, "here"):
        made.paths[name] = tmp_path / "code" / name
        package = made.paths[name] / "clinic_nets"
        package.mkdir(parents=True)
        for file, text in PACKAGE.items():
            (package / file).write_text(text)
    monkeypatch.syspath_prepend(str(made.paths["here"]))
    for name in [name for name in sys.modules if name.partition(".")[0] == "clinic_nets"]:
        monkeypatch.delitem(sys.modules, name)
    carried._made.cache_clear()
    try:
        yield made
    finally:
        made.close()


def started(study: Study, **rules: str) -> None:
    study.coordinator()
    for name in COMPUTING:
        study.node(name, rules=rules.get(name, ALLOWED))


def called(study: Study, name: str) -> bool:
    return (study.paths[name] / "clinic_nets" / "called").exists()


def module_here() -> torch.nn.Module:
    from clinic_nets.networks import small  # type: ignore[import-not-found]

    module: torch.nn.Module = small()
    return module


@pytest.mark.slow
def test_a_network_of_code_that_every_node_has(study: Study, tmp_path: Path) -> None:
    started(study)
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert all(called(study, name) for name in ("desk", *COMPUTING))

    (sealed,) = study.left.glob("desk/*/office.sealed")
    out = tmp_path / "out"
    # The recipient opens the model without the code, which the job only names.
    opening = ["open", sealed, "--home", study.homes / "office", "--out", out]
    shown = mpc_train(*opening, "--passphrase-file", study.passphrase)
    assert shown.exit_code == 0, shown.stderr
    state = safetensors.torch.load_file(out / "model.safetensors")
    module = module_here()
    module.load_state_dict(state, strict=True)
    assert state["1.norm.num_batches_tracked"].item() == 6 * (42 // 8)

    job: Job = load_job(study.job)
    tables = [load_table(Source(str(study.csv(owner))), job, owner) for owner in job.owners]
    twin = train_twin(job, tables, initial_weights(job))
    weights = {name: value.double().numpy() for name, value in state.items()}
    assert max_weight_difference(weights, twin.state) < 2.0**-8
    metrics = ended["ann"].record["metrics"]
    assert metrics["accuracy"] == pytest.approx(evaluate(job, weights, tables)["accuracy"])
    assert metrics["accuracy"] == pytest.approx(twin.metrics["accuracy"])
    assert metrics["accuracy"] > 0.8
    assert study.leaks() == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["another source", "missing", "not allowed"])
def test_a_node_without_the_same_code_stops_everybody_before_the_start(
    study: Study, fault: str
) -> None:
    package, rules, said, status = study.paths["bob"] / "clinic_nets", {}, "", 3
    if fault == "another source":
        # In a module that the factory only imports: all of the package counts.
        blocks = package / "blocks.py"
        blocks.write_text(blocks.read_text() + "\n# another version\n")
        said = f"model.module: the source of {MODULE} here differs from the job's"
    elif fault == "missing":
        shutil.rmtree(package)
        said = f"model.module: {MODULE} is not installed here"
    else:
        rules["bob"] = 'modules = ["clinic_nets.networks:other"]'
        said, status = f"{MODULE} would be called but is not listed under modules", 6
    started(study, **rules)
    ended = study.ended()
    shown = {name: (end.status, end.stderr) for name, end in ended.items()}
    assert ended["bob"].status == status, shown
    assert len(ended["bob"].errors) == 1 and said in ended["bob"].errors[0], shown
    for name in ("ann", "registry", "desk"):
        assert ended[name].status == 8, shown
        assert "bob" in ended[name].errors[0], shown
    if fault == "not allowed":
        assert not called(study, "bob"), "nobody runs what its rules do not list"
    assert '"step"' not in study.output("desk", "out").read_text()
    assert not list(study.folder.rglob("*.sealed"))
    assert study.leaks() == set()
