"""A whole run of a recurrent network with an embedded category: the twin's weights, a module's own
state_dict, and predictions from raw records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import safetensors.torch
import torch

from mpc_train.results.predicting import predict
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"ann": 40, "bob": 30, "cleo": 30}
LEVELS = ["north", "south", "east"]
NETS = """
import torch
from torch import nn


class Ward(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.region = nn.Embedding(4, 2)
        self.act = nn.ELU()
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        out, h = self.gru(x[:, 1:].reshape(x.size(0), 3, 2))
        region = self.region(x[:, 0].long())
        return self.head(self.act(torch.cat([out[:, -1], region], 1)))
"""
SCHEMA = """
[[columns]]
name = "region"
kind = "category"
levels = ["north", "south", "east"]
missing = [""]
""" + "".join(
    f'\n[[columns]]\nname = "{name}{day}"\nkind = "number"\nrange = [-4, 4]\n'
    for day in (1, 2, 3)
    for name in ("pulse", "dose")
)
LABEL = '\n[[columns]]\nname = "ill"\nkind = "boolean"\n'
JOB = """
[job]
name = "ward"
owners = ["ann", "bob", "cleo"]
dealer = "registry"
recipients = ["ann"]
[data]
schema = "schema.toml"
label = "ill"
test_fraction = 0.25
rows = { ann = 40, bob = 30, cleo = 30 }
[prepare.columns.region]
encoding = "index"
missing = "mean"
[model]
kind = "logistic"
graph = "model.json"
[train]
epochs = 4
batch_size = 15
optimizer = { learning_rate = 0.5 }
[reveal]
metrics = ["accuracy"]
least_group = 1
[fixed_point]
fraction_bits = 20
"""


def drawn(rows: int, seed: int) -> dict[str, list[Any]]:
    generator = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {
        "region": [(*LEVELS, None)[k] for k in generator.integers(0, 4, rows)]
    }
    numbers = generator.normal(0, 1, (rows, 6)).clip(-4, 4).round(4)
    for column, name in enumerate(f"{n}{d}" for d in (1, 2, 3) for n in ("pulse", "dose")):
        found[name] = numbers[:, column].tolist()
    high = np.array([region == "south" for region in found["region"]])
    found["ill"] = np.where(numbers[:, 4] + 2 * high > 0.5, "true", "false").tolist()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ward")
    (folder / "data").mkdir()
    (folder / "ward_nets.py").write_text(NETS)
    (folder / "schema.toml").write_text(SCHEMA + LABEL)
    (folder / "job.toml").write_text(JOB)
    for seed, (owner, rows) in enumerate(ROWS.items()):
        polars.DataFrame(drawn(rows, seed)).write_csv(folder / "data" / f"{owner}.csv")
    export = ["model", "export", "ward_nets:Ward", "--input-shape", "7"]
    shown = subprocess.run(
        [sys.executable, "-m", "mpc_train", *export],
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    (folder / "model.json").write_text(shown.stdout)
    launch = [sys.executable, str(ROOT / "launch.py"), str(folder / "job.toml"), "--compare"]
    launch += ["--format", "json", "--run-dir", str(folder / "run")]
    ended = subprocess.run(
        launch, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_model_is_that_of_the_twin(run: tuple[Path, dict[str, Any]]) -> None:
    _, record = run
    assert record["status"] == "ok"
    assert record["max_weight_difference"] < 2.0**-9
    assert record["metrics"]["accuracy"] == record["twin_metrics"]["accuracy"]


@pytest.mark.slow
def test_the_model_loads_into_the_module_and_predicts(run: tuple[Path, dict[str, Any]]) -> None:
    _, record = run
    space: dict[str, Any] = {}
    exec(NETS, space)  # noqa: S102 - the researcher's own code
    module = space["Ward"]().double()
    module.load_state_dict(safetensors.torch.load_file(record["model"]), strict=True)
    records = polars.DataFrame(drawn(20, 7)).drop("ill")
    place = {level: number for number, level in enumerate((*LEVELS, None))}
    index = np.array([place[region] for region in records["region"]], float)
    x = np.column_stack([index, records.drop("region").to_numpy()])
    with torch.no_grad():
        expected = torch.sigmoid(module(torch.from_numpy(x))[:, 0]).numpy()
    found = predict(Path(record["model"]).parent, records)
    np.testing.assert_allclose(found[found.columns[-1]].to_numpy(), expected, atol=1e-6)
