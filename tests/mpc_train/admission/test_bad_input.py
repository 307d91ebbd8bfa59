"""What `mpc-train job check` refuses, as a user meets it: file, line, key, place in the module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import Result

from tests.support.commands import mpc_train
from tests.support.jobs import job_toml, write_job
from tests.support.modules import export, write_modules

NETS = """
import torch
from torch import nn


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.RReLU(), nn.Linear(8, 8))
        self.act = nn.Mish()
        self.rnn = nn.LSTMCell(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        y = torch.cumsum(self.act(self.body(x)), 1).exp()
        return self.head(self.rnn(torch.linalg.norm(y, dim=1, keepdim=True))[0])


class Head(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.head, self.change = nn.Linear(4, 3), change

    def forward(self, x):
        return self.change(self, x)


def branch(self, x):
    if x.sum() > 0:
        x = x * 2
    return self.head(x)


def loop(self, x):
    while (x > 1).any():
        x = x / 2
    return self.head(x)


def item(self, x):
    return self.head(x * float(x.mean()))


def Branch(): return Head(branch)
def Loop(): return Head(loop)
def Item(): return Head(item)
def Factor(): return Head(lambda self, x: self.head(x) * 1e6)
def Faint(): return Head(lambda self, x: self.head(x) * 1e-9)
def Infinite(): return Head(lambda self, x: self.head(x) * float("inf"))
def Summand(): return Head(lambda self, x: self.head(x) + 65)
def Layers(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(7, 3))
def Images(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
def TwoClasses(): return nn.Linear(4, 2)
def Slope(): return nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(1e-12))
def Steep(): return nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(1e9))
def Wide(): return nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(-1e18, 1e18))
def Many(): return nn.Sequential(nn.Linear(4, 40), nn.Softmax(-1), nn.Linear(40, 3))
def Long(): return Steps(nn.GRU(1, 2, batch_first=True), 1025)
def Cells(): return Steps(nn.LSTM(1, 2, batch_first=True), 600)
def Enlarged(): return Steps(nn.Upsample(scale_factor=500000, mode="linear"), 4)
def Raising(): raise ValueError("no weights here")


def NotFinite():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
        module[1].bias[1] = float("inf")
    return module


def Large():
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight[0, 0] = 1000.0
    return module


class Steps(nn.Module):
    def __init__(self, layer, steps):
        super().__init__()
        self.wide, self.layer, self.head = nn.Linear(4, steps), layer, nn.Linear(2, 3)

    def forward(self, x):
        y = self.wide(x)
        if isinstance(self.layer, nn.Upsample):
            return self.head(self.layer(y.unsqueeze(1))[:, 0, :2])
        return self.head(self.layer(y.unsqueeze(2))[0][:, -1])


class Words(nn.Module):
    def __init__(self, computed=False):
        super().__init__()
        self.table, self.head, self.computed = nn.Embedding(5, 2), nn.Linear(6, 3), computed

    def forward(self, x):
        ids = x[:, 2:4] * 2 if self.computed else x[:, 2:4]
        both = torch.cat([self.table(ids.long()).flatten(1), x[:, 0:2]], 1)
        return self.head(both)


def Computed(): return Words(True)
"""
IDS = '{ name = "c", range = [0, 4] }, { name = "d", range = [0, 4] }'
JOB = job_toml(
    ["a", "b", IDS],
    "softmax",
    model='classes = 3\nmodule = "bad_nets:NAME"',
    more="[fixed_point]\nfraction_bits = 20",
)
MODULE_LINE, RATE_LINE = (
    JOB[: JOB.index(key)].count("\n") + 1 for key in ("module =", "optimizer =")
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worse = "import bad_nets\nraise RuntimeError('half done')\n"
    write_modules(tmp_path, monkeypatch, bad_nets=NETS, worse_nets=worse, worst_nets="def net(:\n")
    return tmp_path


def checked(folder: Path, name: str, *changes: tuple[str, str]) -> Result:
    text = JOB.replace("NAME", name)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return mpc_train("job", "check", write_job(folder, text))


def refused(result: Result, line: int, key: str, *said: str) -> None:
    """One error, nothing else: file, line, key, and what is wrong where."""
    assert result.exit_code == 3, result.output
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert f"job.toml:{line}: {key}" in first
    message = " ".join([first, *rest])
    for words in said:
        assert words in message, result.stderr
    assert "Traceback" not in result.stderr


MODULES: dict[str, tuple[str, ...]] = {
    "Unsupported": (
        "body.1 (RReLU) at ",
        "bad_nets.py:15: is not supported over shares; use LeakyReLU",
        "act (Mish) at ",
        "bad_nets.py:15: is not supported over shares; use SiLU",
        "cumsum(",
        "exp() (exp) at ",
        "bad_nets.py:15: is not supported over shares; use Softplus",
        "linalg_norm(",
        "rnn (LSTMCell) at ",
        "bad_nets.py:16: is not supported over shares; use LSTM",
    ),
    "Branch": ("control flow depends on data", "bad_nets.py", "in branch"),
    "Loop": ("control flow depends on data", "in loop"),
    "Item": ("control flow depends on data", "in item"),
    "Layers": ("shapes do not fit rows of [4]: 2: mat1 and mat2 shapes", "2x8 and 7x3"),
    "Images": ("shapes do not fit rows of [4]: 0: Expected 3D",),
    "TwoClasses": ("outputs [2] for a row", "needs [3]"),
    "NotFinite": ("0.weight: contains a weight that is not finite", "1.bias: contains a weight"),
    "Large": ("weight: contains a weight of 128 or more",),
    "Factor": ("mul (scale): a factor of 1e+06 would overflow",),
    "Faint": ("mul (scale): a factor of 1e-09 rounds to 0 at fraction_bits = 20",),
    "Infinite": (
        "mul() (mul) at ",
        "bad_nets.py:49: inf is not a finite number",
    ),
    "Summand": ("add (shift): a summand of 65 is beyond fixed_point.activation_limit = 64",),
    "Slope": ("_1 (leaky_relu): a slope of 1e-12 needs more than 61 bits",),
    "Steep": ("_1 (leaky_relu): a slope of 1e+09 needs more than 61 bits",),
    "Wide": ("_1 (clamp): limits of -1e+18 and 1e+18",),
    "Long": ("layer.weight_hh_l0: a sequence of 1025 steps; at most 1024",),
    "Computed": ("table: an embedding of computed values",),
    "Raising": ("Raising() fails: no weights here",),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_be_trained(folder: Path, name: str) -> None:
    refused(checked(folder, name), MODULE_LINE, "model.module", *MODULES[name])


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("bad_nets:Nothing", "is not installed here"),
        ("no_such_nets:net", "is not installed here"),
        ("worse_nets:net", "worse_nets cannot be loaded: RuntimeError('half done')"),
        ("worst_nets:net", "worst_nets cannot be loaded: SyntaxError"),
    ],
)
def test_code_that_is_not_there(folder: Path, module: str, said: str) -> None:
    result = checked(folder, "Layers", ("bad_nets:Layers", module))
    refused(result, MODULE_LINE, "model.module", said)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ('"c", "d"', "column 'c' chooses rows 0 to 4 of a table: declare its range = [0, 4]"),
        (IDS.replace('"d", range = [0, 4]', '"d", range = [1, 5]'), "[0, 4], not [1, 5]"),
        (IDS.replace('"d", range', '"d", scale = 0.5, range'), "column 'd' chooses rows 0 to 4"),
    ],
)
def test_an_index_that_may_be_out_of_range(folder: Path, ids: str, said: str) -> None:
    refused(checked(folder, "Words", (IDS, ids)), MODULE_LINE, "model.module: table", said)
    assert checked(folder, "Words").exit_code == 0


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("learning_rate = 1e-9", "only 0 bits of it fit fraction_bits = 20"),
        ('name = "adam", learning_rate = 1e-9', "does not change weights at fraction_bits = 20"),
        ('name = "rmsprop", learning_rate = 1e-9', "does not change weights at fraction_bits = 20"),
        ('name = "adamw", learning_rate = 90', "updates up to 2^-1 fit"),
        ("learning_rate = 1e40", "numbers must lie between 1e-30 and 1e30"),
    ],
)
def test_a_rate_that_the_scale_cannot_represent(folder: Path, optimizer: str, said: str) -> None:
    result = checked(folder, "Words", ("learning_rate = 0.1", optimizer))
    refused(result, RATE_LINE, "", said)


def test_a_table_of_constants_that_would_overflow(folder: Path) -> None:
    finer = ("fraction_bits = 20", "fraction_bits = 26\nactivation_limit = 8\ngradient_limit = 1")
    result = checked(folder, "Many", finer)
    refused(result, MODULE_LINE, "model.module", "_1 (softmax): the table of 1 / x", "use 25")
    assert checked(folder, "Many").exit_code == 0


@pytest.mark.parametrize(
    "factor", ["1e999999999", "1/0", "nan", "9" * 100, "1000000", "0.0000000001"]
)
def test_a_graph_with_such_numbers(folder: Path, factor: str) -> None:
    """The same of a network that comes as data, at once and whatever the number."""
    text = NETS.replace("self.head(x) * 1e6", "self.head(x) * 1e1")
    (folder / "bad_nets.py").write_text(text)
    model = json.loads(export(folder, "bad_nets:Factor", "4"))
    model["graph"]["nodes"][-1]["settings"]["factor"] = factor
    (folder / "model.json").write_text(json.dumps(model))
    result = checked(folder, "", ('module = "bad_nets:"', 'graph = "model.json"'))
    refused(result, MODULE_LINE, "model.graph", "mul")


@pytest.mark.slow
def test_an_lstm_whose_cells_would_overflow(folder: Path) -> None:
    """A cell may grow by one a step, and its square has to fit."""
    assert checked(folder, "Cells").exit_code == 0
    result = checked(folder, "Cells", ("fraction_bits = 20", "fraction_bits = 22"))
    refused(result, MODULE_LINE, "model.module", "the cells of an LSTM may reach 600", "use 21 at")


def test_an_interpolation_that_would_overflow(folder: Path) -> None:
    result = checked(folder, "Enlarged")
    refused(result, MODULE_LINE, "model.module", "interpolation from [1, 4] to [1, 2000000]")
