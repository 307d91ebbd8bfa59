"""A category that a network receives as the number of its level: `encoding = "index"`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.owners.local import check_cells, local_terms
from mpc_train.results.recipe import recipe
from mpc_train.tables.faults import CellError
from mpc_train.tables.typed import TypedTable
from mpc_train.twin.preparation import raw_inputs, raw_terms
from tests.support.commands import trained
from tests.support.csv_tables import csv_of, write_tables
from tests.support.jobs import SCHEMA_FILE, column, job_toml, loaded, schema_toml, write_job
from tests.support.modules import write_modules

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
HOURS = [f"{name}{hour}" for hour in range(3) for name in ("pulse", "heat")]
INDEX = '[prepare.columns.ward]\nencoding = "index"'
MISSING = 'other = true\nmissing = [""]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_modules(tmp_path, monkeypatch, ward_nets=NETS.replace("ROWS", "3"), bed_nets=BEDS)
    return tmp_path


def ward_job(module: str, features: Sequence[str] = (), data: str = "", more: str = "") -> str:
    return job_toml(
        features,
        label="ill",
        rows={"ann": 60, "bob": 60},
        data=data,
        model=f'module = "{module}"',
        train="epochs = 1\nbatch_size = 8\noptimizer = { learning_rate = 0.5 }",
        more=f'{more}\n[reveal]\nmetrics = ["accuracy"]',
    )


def written(
    folder: Path, name: str = "ward", prepare: str = INDEX, other: str = "", rows: int = 3
) -> Path:
    schema = schema_toml(
        *(column(hour, range=[-3, 3]) for hour in HOURS),
        column("ward", "category", levels=["north", "south", "east"]) + other,
        column("ill", "boolean"),
    )
    (folder / "schema.toml").write_text(schema)
    (folder / "ward_nets.py").write_text(NETS.replace("ROWS", str(rows)))
    return write_job(folder, ward_job(f"ward_nets:{name}", data=SCHEMA_FILE, more=prepare))


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
    for owner in ("ann", "bob"):
        x, ward = rng.uniform(-2, 2, (60, 6)), rng.integers(0, 3, 60)
        ill = x[:, 4] + (ward == 2) > 0.5
        hours = dict(zip(HOURS, x.round(4).T, strict=True))
        names = np.array(["north", "south", "east"])[ward]
        write_tables(folder, {owner: csv_of(**hours, ward=names, ill=ill.astype(int))})
    record = trained(path, "--compare")
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
    beds = '{ name = "beds", center = 1, scale = 0.5, range = [1, 2.5] }'
    job = loaded(folder, ward_job("bed_nets:Beds", (beds, "heat")))
    assert job.looked_up == {"beds"}
    none = np.zeros(4, bool)
    check_cells(job, "beds", np.array([1, 1.5, 2, 2.5]), none)
    check_cells(job, "heat", np.array([0.25, 1, 2, 3]), none)
    with pytest.raises(CellError, match="is not a whole number") as caught:
        check_cells(job, "beds", np.array([1, 1.25, 2, 1.75]), none)
    np.testing.assert_array_equal(caught.value.rows, [1, 3])
