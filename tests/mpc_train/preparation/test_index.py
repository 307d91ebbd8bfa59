"""A category as the number of its level: what owners, the twin and the manifest make of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from sklearn.preprocessing import OrdinalEncoder

import mpc_train
from mpc_train.admission.load import load_job
from mpc_train.admission.ranges import check_ranges
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.networks import carried
from mpc_train.owners.local import local_terms
from mpc_train.results.recipe import recipe
from mpc_train.twin.preparation import raw_inputs, raw_terms
from tests.support.preparation_case import JOB, SCHEMA, pooled, tables, with_gaps

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, rows=5, take=lambda x: x[:, 4].long()):
        super().__init__()
        self.region, self.head, self.take = nn.Embedding(rows, 2), nn.Linear(6, 1), take

    def forward(self, x):
        return self.head(torch.cat([x[:, :4], self.region(self.take(x))], 1))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(x)


class Smoker(nn.Module):
    def __init__(self):
        super().__init__()
        self.smoker, self.region = nn.Embedding(2, 2), nn.Embedding(5, 2)

    def forward(self, x):
        return (self.smoker(x[:, 3].long()) * self.region(x[:, 4].long())).sum(1, keepdim=True)


class Levels(Net):
    def forward(self, x):
        return self.head(torch.cat([x[:, :4], self.region(self.take(x))], 1)) + x[:, 7:]


def Short(): return Net(4)
def Computed(): return Net(5, lambda x: (x[:, 4] * 2).long())
"""
OWN = '[prepare.columns.region]\nencoding = "index"\nmissing = "mean"'
INDEX = 'missing = "mean"\n[prepare.columns.region]\nencoding = "index"'
FEATURES = """
features = [
    { name = "age", center = 50, scale = 30 },
    { name = "income", center = 500000, scale = 500000 },
    { name = "visits", center = 30, scale = 30 },
    "smoker",
    "region",
]
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "index_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "index_nets", raising=False)
    carried._made.cache_clear()
    return tmp_path


def job_of(folder: Path, net: str = "Net", prepare: str = INDEX) -> Job:
    (folder / "schema.toml").write_text(SCHEMA)
    module = f'kind = "logistic"\nmodule = "index_nets:{net}"' if net else 'kind = "logistic"'
    text = JOB.replace('kind = "logistic"', module).replace("PREPARE", prepare)
    text = text.replace('label = "ill"', f'label = "ill"{FEATURES}')
    (folder / "job.toml").write_text(text)
    return load_job(folder / "job.toml")


def ordinal(values: np.ndarray) -> np.ndarray:
    """scikit-learn's numbers: levels in their order, what is none of them, what is missing."""
    names = np.array(["north", "south", "east", "west", "nowhere"], object)
    column = np.where(np.isnan(values), 4, values).astype(int)
    encoder = OrdinalEncoder(
        categories=[["north", "south", "east", "other", "nowhere"]],
    ).fit([["north"], ["other"], ["nowhere"]])
    cells = np.where(names[column] == "west", "other", names[column])
    found: np.ndarray = encoder.transform(cells.reshape(-1, 1))[:, 0]
    return found


def test_an_index_is_that_of_the_levels_in_order(nets: Path) -> None:
    job, whole = job_of(nets), pooled(tables())
    expected = ordinal(with_gaps(whole, "region"))
    assert set(expected) == {0, 1, 2, 3, 4}
    assert job.pipeline.names == ("age", "income", "visits", "smoker", "region")
    raw, _ = raw_inputs(job, raw_terms(job.pipeline, whole), split(job)[0])
    np.testing.assert_array_equal(raw[:, 4], expected)
    brought = local_terms(job.pipeline, pooled(tables()))
    np.testing.assert_array_equal(brought.values[:, 4], expected)
    check_ranges(job)


def test_the_page_of_plain_pytorch_reads_an_index(nets: Path) -> None:
    job = job_of(nets)
    page = (Path(mpc_train.__path__[0]) / "docs" / "opened-model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    function = code[code.index("def prepared(") : code.index("table = ")]
    steps: dict[str, Any] = recipe(job)
    steps["terms"] = [term for term in steps["terms"] if term["name"] == "region"]
    space: dict[str, Any] = {"np": np, "polars": polars, "steps": steps | {"interactions": []}}
    exec(function, space)  # noqa: S102 - the page's own lines
    cells = ["east", "north", None, "Mars", "south"]
    found = space["prepared"](polars.DataFrame({"region": cells}))
    np.testing.assert_array_equal(found[:, 0], [2, 0, 4, 3, 1])


@pytest.mark.parametrize(
    ("net", "prepare", "said"),
    [
        (
            "Short",
            INDEX,
            r"column 'region' has the numbers 0 to 4, .*rows 0 to 3: write Embedding\(5",
        ),
        ("Bare", INDEX, "head: takes 'region', the number of a level: look it up in an Embedding"),
        ("Computed", INDEX, "takes 'region', the number of a level"),
        ("", INDEX, "prepare.columns.region.encoding: the number of a level means nothing"),
        ("Net", 'encoding = "index"\ninteractions = [["region", "age"]]', "nothing is multiplied"),
        (
            "Net",
            '[prepare.columns.age]\nencoding = "index"',
            "is for categories; 'age' is a number",
        ),
        ("Net", '[prepare.columns.region]\nencoding = "ordinal"', "Invalid enum value 'ordinal'"),
        ("Net", INDEX + "\nscale = 'standard'", "is for numbers; this column is a category"),
    ],
)
def test_what_an_index_is_not_for(nets: Path, net: str, prepare: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        check_ranges(job_of(nets, net, prepare))


def test_levels_are_no_index_and_say_how_to_be_one(nets: Path) -> None:
    said = r"'region=north' is one input a level: write encoding = \"index\" under \[prepare.col"
    with pytest.raises(JobError, match=said):
        check_ranges(job_of(nets, "Levels", 'missing = "mean"'))


def test_only_as_many_rows_as_there_are_numbers(nets: Path) -> None:
    """Without missing cells there is no number for them."""
    job = job_of(nets, "Short", '[prepare.columns.region]\nencoding = "index"')
    assert job.pipeline.terms[4].last == 3
    check_ranges(job)
    check_ranges(job_of(nets, "Smoker", OWN))
