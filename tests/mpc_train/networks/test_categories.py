"""A category that a network receives as the number of its level: `encoding = "index"`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from mpc_train.admission.load import load_job
from mpc_train.cli import app
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.networks import carried
from mpc_train.owners.local import check_cells, local_terms
from mpc_train.results.recipe import recipe
from mpc_train.tables.cells import CellError
from mpc_train.tables.typed import TypedTable
from mpc_train.twin.preparation import raw_inputs, raw_terms

NETS = """
import torch
from torch import nn


class Ward(nn.Module):
    '''A category, and three hours of two measurements.'''

    def __init__(self, wards=ROWS, as_a_number=False):
        super().__init__()
        self.emb = nn.Embedding(wards, 2)
        self.gru = nn.GRU(2, 3, batch_first=True)
        self.head = nn.Linear(5 + as_a_number, 1)
        self.as_a_number = as_a_number

    def forward(self, x):
        out, h = self.gru(x[:, :6].reshape(x.shape[0], 3, 2))
        parts = [self.emb(x[:, 6].long()), out[:, -1]]
        return self.head(torch.cat(parts + [x[:, 6:]] * self.as_a_number, 1))


def ward(): return Ward()
def short(): return Ward(ROWS - 1)
def number(): return Ward(as_a_number=True)
def plain(): return nn.Linear(7, 1)
"""
SCHEMA = """
HOURS
[[columns]]
name = "ward"
kind = "category"
levels = ["north", "south", "east"]
OTHER
[[columns]]
name = "ill"
kind = "boolean"
"""
HOURS = [f"{name}{hour}" for hour in range(3) for name in ("pulse", "heat")]
JOB = """
[job]
name = "wards"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann"]
[data]
schema = "schema.toml"
label = "ill"
rows = { ann = 60, bob = 60 }
PREPARE
[model]
kind = "logistic"
module = "ward_nets:NAME"
[train]
epochs = 1
batch_size = 8
optimizer = { learning_rate = 0.5 }
[reveal]
metrics = ["accuracy"]
"""
INDEX = '[prepare.columns.ward]\nencoding = "index"'
MISSING = 'other = true\nmissing = [""]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "ward_nets", raising=False)
    carried._made.cache_clear()
    return tmp_path


def written(
    folder: Path, name: str = "ward", prepare: str = INDEX, other: str = "", rows: int = 3
) -> Path:
    hours = "".join(
        f'[[columns]]\nname = "{hour}"\nkind = "number"\nrange = [-3, 3]\n' for hour in HOURS
    )
    (folder / "schema.toml").write_text(SCHEMA.replace("HOURS", hours).replace("OTHER", other))
    (folder / "ward_nets.py").write_text(NETS.replace("ROWS", str(rows)))
    path = folder / "job.toml"
    path.write_text(JOB.replace("NAME", name).replace("PREPARE", prepare))
    return path


def job_of(folder: Path, *changes: str, **other: int) -> Job:
    return load_job(written(folder, *changes, **other))  # type: ignore[arg-type]


def test_the_input_is_the_number_of_the_level(folder: Path) -> None:
    job = job_of(folder)
    assert job.pipeline.names == (*HOURS, "ward")
    values = np.zeros((3, 7))
    values[:, 6] = [2, 0, 1]
    table = TypedTable((*HOURS, "ward"), values, np.zeros(values.shape, bool))
    np.testing.assert_array_equal(local_terms(job.pipeline, table).values[:, 6], [2, 0, 1])
    term = recipe(job)["terms"][-1]  # type: ignore[index]
    assert term == {
        "name": "ward",
        "column": "ward",
        "kind": "index",
        "levels": ["north", "south", "east"],
    }
    with pytest.raises(CellError, match="is missing"):
        check_cells(job, "ward", np.zeros(2), np.array([False, True]))


def test_other_and_missing_cells_have_numbers_after_the_levels(folder: Path) -> None:
    prepare = '[prepare]\nmissing = "mean"\n' + INDEX
    job = job_of(folder, "ward", prepare, MISSING, rows=5)
    values, missing = np.zeros((3, 7)), np.zeros((3, 7), bool)
    values[:, 6], missing[1, 6] = [3, 0, 1], True
    table = TypedTable((*HOURS, "ward"), values, missing)
    raw = raw_terms(job.pipeline, table)
    inputs, _ = raw_inputs(job, raw, np.arange(3))
    np.testing.assert_array_equal(inputs[:, 6], [3, 4, 1])
    np.testing.assert_array_equal(local_terms(job.pipeline, table).values[:, 6], [3, 4, 1])
    term = recipe(job)["terms"][-1]  # type: ignore[index]
    assert term["other"] == 3 and term["fill"] == 4
    check_cells(job, "ward", np.zeros(2), np.array([False, True]))


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("short", INDEX, r"emb: column 'ward' contains the numbers 0 to 2, .* make it 3 rows long"),
        ("number", INDEX, "ward.encoding: .* uses it as a quantity"),
        ("plain", INDEX, "ward.encoding: .* uses it as a quantity"),
        ("ward", "", r"a row has 9 features|shapes do not fit|chooses rows of a table"),
    ],
)
def test_what_is_refused(folder: Path, name: str, prepare: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_of(folder, name, prepare)


@pytest.mark.slow
def test_a_run_trains_embedding_and_gru_as_the_twin_does(folder: Path) -> None:
    path = written(folder)
    rng = np.random.default_rng(1)
    (folder / "data").mkdir()
    for owner in ("ann", "bob"):
        x, ward = rng.uniform(-2, 2, (60, 6)), rng.integers(0, 3, 60)
        ill = x[:, 4] + (ward == 2) > 0.5
        rows = [
            ",".join([*(f"{v:.4f}" for v in r), ("north", "south", "east")[w], str(int(k))])
            for r, w, k in zip(x, ward, ill, strict=True)
        ]
        (folder / "data" / f"{owner}.csv").write_text(
            "\n".join([",".join([*HOURS, "ward", "ill"]), *rows])
        )
    run = ["run", str(path), "--format", "json", "--compare", "--run-dir", str(folder / "run")]
    shown = CliRunner().invoke(app, run)
    assert shown.exit_code == 0, shown.stderr
    record = json.loads(shown.stdout.splitlines()[-1])
    # Splines of some 2^-13 in each of the steps, and the rate 1/2.
    assert record["max_weight_difference"] <= record["steps"] * 0.5 * 4 * 2.0**-12
    import ward_nets  # type: ignore[import-not-found]

    module = ward_nets.ward()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = safetensors.torch.load_file(record["model"])
    module.load_state_dict(state, strict=True)
    assert set(before) >= {"emb.weight", "gru.weight_ih_l0", "gru.bias_hh_l0"}


BEDS = """
from torch import nn


class Beds(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(4, 1)

    def forward(self, x):
        return self.emb(x[:, 0].long()) * x[:, 1:2]
"""


def test_a_number_that_chooses_a_row_is_a_whole_one(folder: Path) -> None:
    """Between two rows the nearest would be taken over shares, and the lower one in PyTorch."""
    (folder / "bed_nets.py").write_text(BEDS)
    beds = '{ name = "beds", center = 1, scale = 0.5, range = [1, 2.5] }'
    text = JOB.replace('schema = "schema.toml"', f'features = [{beds}, "heat"]')
    text = text.replace("ward_nets:NAME", "bed_nets:Beds").replace("PREPARE", "")
    (folder / "job.toml").write_text(text)
    job = load_job(folder / "job.toml")
    assert job.looked_up == {"beds"}
    none = np.zeros(4, bool)
    check_cells(job, "beds", np.array([1, 1.5, 2, 2.5]), none)
    check_cells(job, "heat", np.array([0.25, 1, 2, 3]), none)
    with pytest.raises(CellError, match="is not a whole number") as caught:
        check_cells(job, "beds", np.array([1, 1.25, 2, 1.75]), none)
    np.testing.assert_array_equal(caught.value.rows, [1, 3])
