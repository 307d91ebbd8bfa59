"""Every kind of model, trained over shares by real processes, against its twin in the clear.

Between a run and its twin lies rounding and nothing else: they start from the same weights, see
the same rows in the same order, and use the same rounded rates. How far rounding can carry a
weight is bounded from the scale 2^-f and the stated errors of the splines (`tolerance`). That the
bound is no larger than what momentum, weight decay and the schedule change is part of the test.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split_sizes, steps_per_epoch
from mpc_train.owners.table import Table
from mpc_train.results.plain_model import plain_module
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.rates import rate
from mpc_train.twin.training import Twin, evaluate, max_weight_difference, train_twin
from tests.support.commands import trained
from tests.support.csv_tables import csv_of, load_tables, write_tables
from tests.support.jobs import job_toml, write_job

FEATURES = 3
ROWS = (31, 17, 24, 12, 20, 9, 14)
"""Owner by owner: no two bring the same number."""

SPLINE_ERROR = {"linear": 0.0, "logistic": 2.0**-14, "softmax": 2.0**-12, "mlp": 2.0**-12}
"""What `protocols.functions.splines` states for sigmoid and softmax."""

CLASSES = {"linear": 0, "logistic": 2, "softmax": 3, "mlp": 3}
METRICS = {
    "linear": ["mse", "mae", "r2"],
    "logistic": ["accuracy", "auc"],
    "softmax": ["accuracy"],
    "mlp": ["accuracy"],
}


@dataclass(frozen=True)
class Settings:
    """What of a job is varied to see that it matters."""

    momentum: str = "0.5"
    weight_decay: str = "0"
    schedule: str = '{ name = "constant" }'


SETTINGS = {
    "linear": Settings(weight_decay="0.1", schedule='{ name = "step", every = 1, factor = 0.5 }'),
    "logistic": Settings(schedule='{ name = "cosine" }'),
    "softmax": Settings(weight_decay="0.2"),
    "mlp": Settings(schedule='{ name = "step", every = 2, factor = 0.25 }'),
}


@dataclass(frozen=True)
class Roles:
    """Who is what in the study of one kind of model with n evaluators."""

    evaluators: list[str]
    owners: list[str]
    dealer: str
    recipients: list[str]


def roles(kind: str, n: int) -> Roles:
    evaluators = [f"clinic-{index}" for index in range(n)]
    if kind == "linear":  # an owner that deals, and one that only brings rows and gets the model
        return Roles(evaluators, [*evaluators, "clerk", "farm"], "clerk", ["farm"])
    if kind == "logistic":  # a recipient that runs no node; both are needed to open
        return Roles(evaluators, evaluators, "registry", ["clinic-0", "office"])
    if kind == "softmax":  # an evaluator without rows, an owner that does not evaluate
        return Roles(evaluators, ["farm", *evaluators[1:]], "registry", ["office"])
    return Roles(evaluators, [*evaluators, "clerk"], "clerk", evaluators[-1:])


def write_study(folder: Path, kind: str, n: int, settings: Settings) -> Path:
    """A job of this kind with n evaluators and its owners' files; returns the job's path."""
    who = roles(kind, n)
    rows = dict(zip(who.owners, ROWS, strict=False))
    model = {
        "softmax": f"classes = {CLASSES[kind]}",
        "mlp": f"classes = {CLASSES[kind]}\nhidden = [5]",
    }
    text = job_toml(
        [
            "x0",
            '{ name = "x1", center = 5 }',
            '{ name = "x2", scale = 10, range = [-60, 60] }',
        ],
        kind,
        label='{ name = "y", center = 1, scale = 2 }' if kind == "linear" else "y",
        rows=rows,
        dealer=who.dealer,
        recipients=who.recipients,
        job=f"evaluators = {who.evaluators}",
        data="test_fraction = 0.3\nsplit_seed = 4\nlimit = 6",
        model=model.get(kind, ""),
        train=f"""
epochs = 3
batch_size = 12
schedule = {settings.schedule}
seed = 5
[train.optimizer]
learning_rate = 0.2
momentum = {settings.momentum}
weight_decay = {settings.weight_decay}
""",
        more=f"""
[reveal]
metrics = {METRICS[kind]}
least_test_rows = 5
least_group = 5
threshold = {2 if kind == "logistic" else 1}
metrics_to = {["auditor"] if kind == "mlp" else []}
""",
    )
    (folder / "local.toml").write_text("[rules]\nleast_effective_rows = 1\n")
    generator = np.random.default_rng(n)
    for owner, count in rows.items():
        x = generator.normal(size=(count, FEATURES))
        score = x @ [1.5, -1.0, 0.5] + generator.normal(0, 0.3, count)
        cuts = [0.0] if kind == "logistic" else [-0.8, 0.8]
        y = 1 + 2 * score if kind == "linear" else np.digitize(score, cuts)
        x = x * [1, 1, 10] + [0, 5, 0]
        write_tables(folder, {owner: csv_of(x0=x[:, 0], x1=x[:, 1], x2=x[:, 2], y=y)})
    return write_job(folder, text)


def trained_in_the_clear(job: Job, tables: list[Table]) -> Twin:
    return train_twin(job, tables, initial_weights(job))


def tolerance(job: Job, tables: list[Table], twin: Twin) -> float:
    """How far rounding may carry a weight of `job`, in the worst case of every rounding.

    With u = 2^-f: an input is off by u/2, a product or a weight by u each time it is truncated.
    So an output is off by e = (1 + fan-in · (largest weight + largest input) / 2) · u at most for
    each layer, and the prediction by the spline's error besides. A weight's gradient, a mean
    of products of that with an input, is off by largest input · (spline error + e) and half a
    dozen units for the truncations of the update; momentum β makes the sum of all updates
    1 / (1 − β) times as large. Errors of earlier steps shrink, as the loss is convex near the
    optimum; for the network they pass through the second layer's weights besides.
    """
    unit = 2.0**-job.fraction_bits
    inputs = max(float(np.abs(table.features).max()) for table in tables)
    weights = max(float(np.abs(value).max()) for value in twin.state.values())
    layers = len(job.widths) - 1
    output = unit * (1 + max(job.widths) * (weights + inputs) / 2) * layers
    gradient = inputs * (SPLINE_ERROR[job.model.kind] + output) * max(1.0, weights) ** (layers - 1)
    rates = sum(float(rate(job, epoch)) for epoch in range(job.train.epochs))
    steps = steps_per_epoch(job)
    drift = rates * steps * gradient + 6 * unit * steps * job.train.epochs
    return drift / (1 - float(job.train.optimizer.momentum))


EVERY = [(kind, n) for kind in METRICS for n in (2, 3, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n"), EVERY, ids=[f"{kind}-{n}" for kind, n in EVERY])
def test_a_model_is_that_of_its_twin(kind: str, n: int, tmp_path: Path) -> None:
    path = write_study(tmp_path, kind, n, SETTINGS[kind])
    record = trained(path)
    who, job = roles(kind, n), load_job(path)
    assert record["steps"] == 3 * steps_per_epoch(job)
    assert set(record["bytes_sent"]) == {*who.evaluators, *who.owners, who.dealer}
    assert sorted(Path(sealed).stem for sealed in record["sealed"]) == sorted(who.recipients)

    module = plain_module(job)
    module.load_state_dict(safetensors.torch.load_file(record["model"]))
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    tables = load_tables(tmp_path, job)
    twin = trained_in_the_clear(job, tables)
    allowed = tolerance(job, tables, twin)
    assert max_weight_difference(weights, twin.state) <= allowed

    # A run that ignored one of its settings would be further away than that.
    settings = SETTINGS[kind]
    for ignoring in (
        replace(settings, momentum="0"),
        replace(settings, weight_decay="0"),
        replace(settings, schedule=Settings.schedule),
    ):
        if ignoring != settings:
            path.write_text(write_study(tmp_path, kind, n, ignoring).read_text())
            other = trained_in_the_clear(load_job(path), tables)
            assert max_weight_difference(other.state, twin.state) > 3 * allowed, ignoring

    if job.reveal.metrics_to:
        check_only_readers_have_metrics(tmp_path / "run", record)
    held_out = split_sizes(job)[1]
    plain = evaluate(job, weights, tables)
    assert set(record["metrics"]) == set(METRICS[kind])
    for name, value in record["metrics"].items():
        # Of the model that came out, the metric is exact up to a quotient's 2^-16; compared with
        # the twin, one row may lie on the border between two classes.
        assert value == pytest.approx(plain[name], abs=2.0**-14)
        border = 1 / held_out if kind != "linear" else 20 * allowed
        assert value == pytest.approx(twin.metrics[name], abs=border + 2.0**-14)


def check_only_readers_have_metrics(run: Path, record: dict[str, Any]) -> None:
    """Of all that the nodes and the coordinator wrote or printed, only what the reader opened has a
    metric."""
    assert [Path(path).name for path in record["sealed_metrics"]] == ["auditor.metrics.sealed"]
    opened = json.loads((run / "metrics.json").read_text())
    assert opened["metrics"] == record["metrics"] and opened["metrics"]
    assert record["learnt"]["auditor"] == ["range", *opened["metrics"]]
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "metrics.json"]
    texts = {path: path.read_bytes() for path in files}
    assert any(b'"status": "ok"' in text or b'"status":"ok"' in text for text in texts.values())
    for path, text in texts.items():
        for name, value in opened["metrics"].items():
            for sign in (f'"{name}": {value}', f'"{name}":{value}', f"{name} {value:.4f}"):
                assert sign.encode() not in text, path
