"""A dry run sends what the real program sends, node by node to the byte, and in as many rounds: for
every kind of layer, loss, optimizer and regression, and what else a job may ask for.

The program runs in one process, with real tables, real vaults and real masks.
`tests/runs/test_estimates.py` has processes.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from mpc_train.estimates.rehearsal import rehearse
from mpc_train.networks import carried
from mpc_train.networks.carried import made_by
from protocols.sealing.record import TAG_BYTES
from tests.support.csv_tables import csv_of, write_tables
from tests.support.jobs import job_toml, write_job
from tests.support.layer_programs import LAYERS, SECRET_DROPOUT, LayerProgram
from tests.support.noisy_newton import noisy_toml
from tests.support.sessions import Rehearsal
from tests.support.shared_models import RANGED, SCALED, TRAIN_ON, first_run, going_on, measuring

NEVER_S = 86_400.0
"""No checkpoint falls due; whether one does is asked all the same."""
ROWS = {"ann": 22, "bob": 18}
THREE = {"ann": 16, "bob": 14, "cleo": 10}
SGD = "optimizer = { learning_rate = 0.125 }"
SHORT = "epochs = 3\nbatch_size = 5\n"
TEST_ROWS = "[reveal]\nleast_test_rows = 4\nleast_group = 1"


def cases(names: Iterable[str], *fast: str) -> list[Any]:
    """All of them; those that are not listed as fast ones are slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def study(
    folder: Path,
    kind: str,
    train: str,
    *,
    model: str = "",
    data: str = "",
    reveal: str = "",
    more: str = "",
    rows: dict[str, int] = ROWS,
    widths: int = 3,
    ids: int = 0,
    evaluators: str = 'evaluators = ["ann", "bob"]',
) -> Rehearsal:
    """A job and its tables. widths: of the features. ids: their values are whole numbers below."""
    rng = np.random.default_rng(3)
    names = [f"x{index}" for index in range(widths)]
    for owner, count in rows.items():
        x = rng.integers(0, ids, (count, widths)) if ids else rng.uniform(-1, 1, (count, widths))
        y = np.arange(count) % 2 + (1 if kind == "gamma" else 0)
        write_tables(folder, {owner: csv_of(**dict(zip(names, x.T, strict=True)), y=y)})
    span = f"[0, {ids - 1}]" if ids else "[-4, 4]"
    ranged = kind in ("linear", "poisson", "gamma")
    text = job_toml(
        [f'{{ name = "{name}", range = {span} }}' for name in names],
        kind,
        label=f'{{ name = "y", range = [{int(kind == "gamma")}, 4] }}' if ranged else "y",
        rows=rows,
        job=evaluators,
        data=f"test_fraction = 0.2\n{data}",
        model=model,
        train=train,
        more=f"{TEST_ROWS}\n{reveal}\n{more}",
    )
    return Rehearsal(write_job(folder, text), NEVER_S)


def check(run: Rehearsal) -> None:
    said = rehearse(run.job)
    summaries = dict(zip(run._order(), run.session(), strict=True))
    for name, node in said.items():
        sent, received = (
            sum(
                len(label) + len(payload) + 2 * TAG_BYTES
                for pair, frames in run.net.transcript.items()
                if pair[place] == name
                for label, payload in frames
            )
            for place in (0, 1)
        )
        rounds = summaries[name].get("rounds", 0)
        found = node.channel.bytes_sent, node.channel.bytes_received, node.rounds
        assert found == (sent, received, rounds), name


OPTIMIZERS = {
    "sgd": SGD,
    "momentum": "optimizer = { learning_rate = 0.125, momentum = 0.9, weight_decay = 0.01 }",
    "nesterov": "optimizer = { learning_rate = 0.125, momentum = 0.9, nesterov = true }",
    "adam": 'optimizer = { name = "adam", learning_rate = 0.01 }',
    "adamw": 'optimizer = { name = "adamw", learning_rate = 0.01, weight_decay = 0.01 }',
    "rmsprop": 'optimizer = { name = "rmsprop", learning_rate = 0.01, momentum = 0.5 }',
    "clip by norm": f"{SGD}\nclip = {{ norm = 0.5 }}",
    "clip by value": f"{SGD}\nclip = {{ value = 0.5 }}",
    "cosine": f'{SGD}\nschedule = {{ name = "cosine", warmup_steps = 3 }}',
    "early stopping": f"{SGD}\nearly_stopping = {{ fraction = 0.25, patience = 9 }}",
}


@pytest.mark.parametrize("name", cases(OPTIMIZERS, "adam", "early stopping"))
def test_optimizers(name: str, tmp_path: Path) -> None:
    check(study(tmp_path, "logistic", SHORT + OPTIMIZERS[name]))


LOSSES = {
    "half_mse": ("linear", SGD),
    "mse": ("linear", f'{SGD}\nloss = {{ name = "mse" }}'),
    "l1": ("linear", f'{SGD}\nloss = {{ name = "l1" }}'),
    "huber": ("linear", f'{SGD}\nloss = {{ name = "huber" }}'),
    "poisson": ("linear", f'{SGD}\nloss = {{ name = "poisson" }}'),
    "bce": ("logistic", f"{SGD}\nloss = {{ positive_weight = 2 }}"),
    "balanced": ("logistic", f"{SGD}\nloss = {{ balanced = true }}"),
    "cross_entropy": ("softmax", SGD),
}


@pytest.mark.parametrize("name", cases(LOSSES, "huber"))
def test_losses(name: str, tmp_path: Path) -> None:
    kind, train = LOSSES[name]
    model = "classes = 2" if kind == "softmax" else ""
    check(
        study(
            tmp_path,
            kind,
            SHORT + train,
            model=model,
            reveal="" if name == "balanced" else "training_loss_every = 4",
        )
    )


NEWTON = {
    "linear": ("linear", "", "statistics = true"),
    "logistic": ("logistic", "", 'statistics = true\nmetrics = ["accuracy"]'),
    "poisson": ("poisson", "", "statistics = true"),
    "gamma": ("gamma", "", "statistics = true"),
    "l1": ("logistic", ', l1 = "0.01"', ""),
    "l2": ("linear", ', l2 = "0.01"', 'metrics = ["mse"]'),
}


@pytest.mark.parametrize("name", cases(NEWTON, "linear"))
def test_regressions(name: str, tmp_path: Path) -> None:
    kind, settings, reveal = NEWTON[name]
    train = f'optimizer = {{ name = "newton"{settings} }}'
    check(study(tmp_path, kind, train, reveal=reveal))


@pytest.mark.parametrize("kind", cases(["linear", "logistic", "poisson"], "linear"))
def test_regressions_with_noise(kind: str, tmp_path: Path) -> None:
    """Of some blocks of rows."""
    x = np.random.default_rng(3).uniform(-1, 1, (3, 1200))
    columns = dict(zip(["x0", "x1", "x2"], x, strict=True))
    write_tables(tmp_path, dict.fromkeys(("ann", "bob"), csv_of(**columns, y=np.arange(1200) % 2)))
    path = write_job(tmp_path, noisy_toml(kind, rows=2400, l2="9", steps=2))
    check(Rehearsal(path, NEVER_S))


NOISY = """[privacy]
epsilon = 8
delta = 0.0001
neighbours = "zeroed"
clip = 3
[fixed_point]
fraction_bits = 20
"""
NOISY_STATISTICS = {
    "clipped by owners": "",
    "scaled": '[prepare]\nscale = "standard"',
    "scaled and filled": '[prepare]\nscale = "standard"\nmissing = "mean"\n'
    "[privacy.statistics]\nshare = 0.2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISY_STATISTICS)
def test_statistics_with_noise(name: str, tmp_path: Path) -> None:
    rows = {"ann": 300, "bob": 260}
    train = f"guard = false\n{SHORT}{SGD}".replace("batch_size = 5", "batch_size = 200")
    check(study(tmp_path, "logistic", train, more=NOISY + NOISY_STATISTICS[name], rows=rows))


METRICS = {
    "logistic": '["accuracy", "auc", "log_loss", "calibration", "confusion"]',
    "linear": '["mse", "mae", "r2"]',
    "softmax": '["accuracy", "confusion"]',
}


@pytest.mark.parametrize("kind", cases(METRICS, "softmax"))
def test_metrics_and_scaling(kind: str, tmp_path: Path) -> None:
    """With three evaluators."""
    model = "classes = 2" if kind == "softmax" else ""
    check(
        study(
            tmp_path,
            kind,
            SHORT + SGD,
            model=model,
            reveal=f"metrics = {METRICS[kind]}",
            more='[prepare]\nscale = "standard"',
            rows=THREE,
            evaluators="",
        )
    )


class _Together(nn.Module):
    """Several layers beside one another, each with its own columns, under one linear head."""

    def __init__(self, programs: list[LayerProgram]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(program.module() for program in programs)
        self.shapes = [program.shape for program in programs]
        self.ids = programs[0].ids
        ends = [program.graph.output_shape for program in programs]
        self.head = nn.Linear(sum(int(np.prod(shape)) for shape in ends), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, start = [], 0
        for layer, shape in zip(self.layers, self.shapes, strict=True):
            width = int(np.prod(shape))
            part = x[:, start : start + width].reshape(x.size(0), *shape)
            found.append(layer(part.long() if self.ids else part).flatten(1))
            start += width
        return self.head(torch.cat(found, 1))


EVERY = LAYERS | SECRET_DROPOUT
GROUPS = {
    "products": ["linear", "convolution, one axis", "convolution, two axes", "sums and slices"],
    "pools": [name for name in EVERY if "pool" in name or name == "bilinear"],
    "norms": [name for name in EVERY if "norm" in name and "evaluated" not in name],
    "attention": [name for name in EVERY if "attention" in name],
    "sequences": ["gru", "gru, reversed too", "lstm", "rnn", "rnn, relu"],
    "embedding": ["embedding"],
    "dropout": [name for name in EVERY if "dropout" in name],
}
GROUPS["activations"] = [
    name
    for name in EVERY
    if not any(name in group for group in GROUPS.values()) and "evaluated" not in name
]


@pytest.mark.parametrize("group", cases(GROUPS, "norms"))
def test_layers(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [EVERY[name] for name in GROUPS[group]]
    width = sum(int(np.prod(program.shape)) for program in programs)
    monkeypatch.setitem(sys.modules, "together", ModuleType("together"))
    monkeypatch.setattr(sys.modules["together"], "net", lambda: _Together(programs), raising=False)
    monkeypatch.setattr(carried, "source_digest", lambda _: "")
    carried._made.cache_clear()
    found = made_by("together:net", (width,), 1)
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(found))
    check(
        study(
            tmp_path,
            "logistic",
            f"epochs = 2\nbatch_size = 8\n{SGD}",
            model='graph = "model.json"',
            widths=width,
            ids=programs[0].ids,
        )
    )


def test_a_training_that_goes_on_from_a_model_in_shares(tmp_path: Path) -> None:
    more = f"{TRAIN_ON}\n{SCALED}"
    first = first_run(tmp_path / "first", more=more, features=RANGED)
    run = going_on(tmp_path / "later", first, ', prepare = "model"', more=more, features=RANGED)
    run.every_s = NEVER_S
    check(run)


def test_a_model_in_shares_that_is_measured(tmp_path: Path) -> None:
    more = f'[serve]\nvalidators = ["dora"]\n{SCALED}'
    first = first_run(tmp_path / "first", "logistic", more, features=RANGED)
    run = measuring(tmp_path / "later", first, ["accuracy", "auc"])
    run.every_s = NEVER_S
    check(run)
