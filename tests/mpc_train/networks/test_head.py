"""Networks that end in the sigmoid or softmax of their loss are trained on their logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.networks.convert import convert
from mpc_train.networks.graph import GraphError
from mpc_train.networks.head import check_head, head_of, without_head
from mpc_train.networks.plain import PlainGraph, dry_run
from mpc_train.owners.table import Table
from mpc_train.results.predicting import Predictor
from mpc_train.results.report import describe
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import max_weight_difference, train_twin
from tests.support.carried_models import write_carried
from tests.support.jobs import job_toml, loaded
from tests.support.pooled import trained_over_shares


class Net(nn.Module):
    """Two linear layers and what a test puts behind them."""

    def __init__(self, outputs: int, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.end = nn.Linear(3, 4), nn.Linear(4, outputs), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.last(torch.relu(self.first(x))))


SIGMOIDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": functional.sigmoid,
    "x.sigmoid()": lambda z: z.sigmoid(),
    "flattened": lambda z: torch.sigmoid(z).flatten(1),
    "reshaped twice": lambda z: torch.sigmoid(z.unsqueeze(1)).squeeze(1).view(-1, 1),
}
SOFTMAXES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch.softmax": lambda z: torch.softmax(z, 1),
    "F.softmax": lambda z: functional.softmax(z, dim=-1),
    "x.softmax(-1)": lambda z: z.softmax(-1),
    "torch.log_softmax": lambda z: torch.log_softmax(z, 1),
    "F.log_softmax": lambda z: functional.log_softmax(z, dim=1),
    "x.log_softmax(-1)": lambda z: z.log_softmax(-1),
    "flattened": lambda z: functional.log_softmax(z.unsqueeze(1), -1).flatten(1),
}
MODULES: dict[str, tuple[str, nn.Module]] = {
    "Sigmoid": ("logistic", nn.Sigmoid()),
    "Softmax": ("softmax", nn.Softmax(1)),
    "LogSoftmax": ("softmax", nn.LogSoftmax(-1)),
    "LogSoftmax, flattened": ("softmax", nn.Sequential(nn.LogSoftmax(-1), nn.Flatten())),
}
ENDS = [
    *(pytest.param("logistic", end, id=name) for name, end in SIGMOIDS.items()),
    *(pytest.param("softmax", end, id=name) for name, end in SOFTMAXES.items()),
    *(pytest.param(kind, end, id=name) for name, (kind, end) in MODULES.items()),
]


def job_of(folder: Path, kind: str, module: nn.Module, loss: str = "") -> Job:
    write_carried(folder / "model.json", module, (3,))
    metrics = '["mse"]' if kind == "linear" else '["accuracy", "log_loss"]'
    text = job_toml(
        ("a", "b", "c"),
        kind,
        model='graph = "model.json"' + ("\nclasses = 3" if kind == "softmax" else ""),
        train=f"epochs = 3\nbatch_size = 8\noptimizer = {{ learning_rate = 0.5 }}\n{loss}",
        more=f"[reveal]\nleast_test_rows = 10\nmetrics = {metrics}",
    )
    return loaded(folder, text)


def tables(job: Job) -> list[Table]:
    rng = np.random.default_rng(3)
    found = []
    for owner in job.owners:
        x = rng.normal(size=(job.data.rows[owner], 3))
        score = x @ [1.5, -1, 0.5] + rng.normal(0, 0.5, len(x))
        y = np.digitize(score, [-0.7, 0.7]) if job.outputs == 3 else score > 0
        found.append(Table(x, y.astype(np.float64), np.ones((len(x), 0))))
    return found


def outputs(kind: str) -> int:
    return 3 if kind == "softmax" else 1


@pytest.mark.parametrize(("kind", "end"), ENDS)
def test_logits_are_what_the_module_makes_its_outputs_of(kind: str, end: Any) -> None:
    torch.manual_seed(4)
    module = Net(outputs(kind), end)
    graph = convert(module, (3,)).graph
    head, logits = head_of(graph, kind), without_head(graph, kind)
    check_head(graph, kind)
    dry_run(logits)
    assert head in ("sigmoid", "softmax", "log_softmax")
    assert head not in [node.op for node in logits.nodes]
    assert logits.output_shape == graph.output_shape and logits.entries == graph.entries
    plain, x = PlainGraph(logits).eval(), torch.randn(5, 3)
    plain.load_state_dict(module.state_dict())
    expected = module.last(torch.relu(module.first(x))).double()
    torch.testing.assert_close(plain(x.double()), expected, atol=1e-5, rtol=1e-5)
    # A number is a number, whatever it comes from.
    assert head_of(graph, "linear") == "" and without_head(graph, "linear") == graph


@pytest.mark.parametrize(
    ("kind", "end", "loss"),
    [
        ("logistic", torch.sigmoid, ""),
        ("logistic", torch.sigmoid, 'loss = { name = "bce", positive_weight = 2 }'),
        ("logistic", torch.sigmoid, "loss = { balanced = true }"),
        ("softmax", lambda z: torch.softmax(z, 1), ""),
        ("softmax", lambda z: torch.softmax(z, 1), "loss = { class_weights = [1, 2, 0.5] }"),
        ("softmax", lambda z: torch.log_softmax(z, 1), "loss = { label_smoothing = 0.1 }"),
    ],
)
def test_training_is_that_of_the_probabilities_loss(
    kind: str, end: Any, loss: str, tmp_path: Path
) -> None:
    """BCELoss of sigmoids and NLLLoss of log-probabilities, in the twin; logits over shares."""
    torch.manual_seed(5)
    job = job_of(tmp_path, kind, Net(outputs(kind), end), loss)
    rows = tables(job)
    twin = train_twin(job, rows, initial_weights(job))
    assert max_weight_difference(trained_over_shares(job, rows).weights, twin.state) < 2.0**-9
    # The same network without its last layer is the same training.
    torch.manual_seed(5)
    bare = job_of(tmp_path, kind, Net(outputs(kind), nn.Identity()), loss)
    again = train_twin(bare, rows, initial_weights(bare))
    assert max_weight_difference(again.state, twin.state) < 1e-9
    assert again.metrics == pytest.approx(twin.metrics)
    accuracy = twin.metrics["accuracy"]
    assert isinstance(accuracy, float) and accuracy > 0.6


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("softmax", lambda z: -z),
        ("softmax", lambda z: 3 * z),
        ("logistic", lambda z: torch.stack([z, z * z, z], 2).mean(2)),
        ("logistic", lambda z: functional.dropout(z, 0.25)),
        ("linear", lambda z: z / 3),
    ],
    ids=["negative", "multiple", "mean", "dropout", "third"],
)
def test_a_network_that_ends_in_a_public_factor(kind: str, end: Any, tmp_path: Path) -> None:
    """The factor is kept beside the words; losses and metrics read words."""
    torch.manual_seed(5)
    dropout = 'dropout_mask = "public"' if "dropout" in end.__code__.co_names else ""
    job = job_of(tmp_path, kind, Net(outputs(kind), end), dropout)
    rows = tables(job)
    twin = train_twin(job, rows, initial_weights(job))
    assert max_weight_difference(trained_over_shares(job, rows).weights, twin.state) < 2.0**-9


def test_the_job_check_says_so(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", Net(1, torch.sigmoid))
    assert "trained on its logits: the sigmoid at its end is the loss's own" in describe(job)
    bare = job_of(tmp_path, "logistic", Net(1, nn.Identity()))
    assert "logits" not in describe(bare)


def test_a_number_that_ends_in_a_sigmoid_stays_as_it_is(tmp_path: Path) -> None:
    job = job_of(tmp_path, "linear", Net(1, torch.sigmoid), 'loss = { name = "mse" }')
    assert [node.op for node in job.graph.nodes][-1] == "sigmoid"
    rows = tables(job)
    twin = train_twin(job, rows, initial_weights(job))
    assert max_weight_difference(trained_over_shares(job, rows).weights, twin.state) < 2.0**-9
    mse = twin.metrics["mse"]
    assert isinstance(mse, float) and mse < 0.25


def test_a_prediction_is_one_sigmoid_of_the_logit(tmp_path: Path) -> None:
    torch.manual_seed(6)
    module = Net(1, torch.sigmoid)
    job = job_of(tmp_path, "logistic", module)
    plain = PlainGraph(job.graph).eval()
    plain.load_state_dict(module.state_dict())
    x = np.random.default_rng(1).normal(size=(6, 3))
    predictor = Predictor(job, plain, {})
    found = predictor.of_inputs(x)
    expected = module(torch.from_numpy(x).float()).detach().numpy()[:, 0]
    np.testing.assert_allclose([row[2] for row in found], expected, atol=1e-6)


REFUSED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "clamped": ("logistic", nn.Sequential(nn.Sigmoid(), nn.Hardtanh(0.01, 0.99)), "logits"),
    "the other class": ("logistic", lambda z: -torch.sigmoid(z) + 1, "0 and 1"),
    "by tanh": ("logistic", lambda z: (torch.tanh(z) + 1) * 0.5, "0 and 1"),
    "hard": ("logistic", nn.Hardtanh(0.0, 1.0), "logits"),
    "twice": ("logistic", lambda z: torch.sigmoid(torch.sigmoid(z)), "0 and 1"),
    "softmax of one": ("logistic", lambda z: torch.softmax(z, 1), "0 and 1"),
    "a sigmoid a class": ("softmax", torch.sigmoid, "0 and 1"),
    "softmax before log_softmax": (
        "softmax",
        lambda z: torch.log_softmax(torch.softmax(z, 1), 1),
        "0 and 1",
    ),
    "log_softmax for a number": (
        "linear",
        lambda z: torch.log_softmax(z, 1),
        "last layer of a softmax model",
    ),
    "log_softmax inside": (
        "softmax",
        lambda z: torch.relu(torch.log_softmax(z, 1)),
        "last layer of a softmax model",
    ),
    "mixed probabilities": (
        "softmax",
        lambda z: torch.softmax(z, 1) * 0.5 + torch.softmax(z * 2, 1) * 0.5,
        "0 and 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_probabilities_by_another_way_are_refused(name: str, tmp_path: Path) -> None:
    kind, end, message = REFUSED[name]
    with pytest.raises(JobError, match=message) as caught:
        job_of(tmp_path, kind, Net(outputs(kind), end))
    assert "model.graph" in str(caught.value)


ALLOWED: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "tanh": ("logistic", torch.tanh),
    "relu": ("logistic", torch.relu),
    "sigmoid scaled to logits": ("logistic", lambda z: torch.sigmoid(z) * 8 - 4),
    "sigmoid inside": ("logistic", lambda z: torch.sigmoid(z) + z),
    "classes, tanh": ("softmax", torch.tanh),
    "softmax inside": ("softmax", lambda z: torch.softmax(z, 1) * z),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_no_probability_is_trained_as_it_is_written(name: str) -> None:
    kind, end = ALLOWED[name]
    graph = convert(Net(outputs(kind), end), (3,)).graph
    check_head(graph, kind)
    assert head_of(graph, kind) == "" and without_head(graph, kind) == graph


def test_two_softmaxes_side_by_side_are_not_one_over_the_classes() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Softmax(-1), nn.Flatten())
    graph = convert(module, (3,)).graph
    assert head_of(graph, "softmax") == ""
    with pytest.raises(GraphError, match="0 and 1"):
        check_head(graph, "softmax")
