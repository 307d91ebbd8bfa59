"""The plaintext twin trains what PyTorch and scikit-learn would."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.table import Table
from mpc_train.results.plain_model import plain_module
from mpc_train.twin.training import Twin, evaluate, max_weight_difference, train_twin
from tests.support.jobs import replaced, write_job


def job_for(tmp_path: Path, features: int, rows: int, **changes: tuple[str, str]) -> Job:
    text = replaced(
        "rows = { ann = 40, bob = 30, cleo = 30 }",
        f"rows = {{ ann = 40, bob = 30, cleo = {rows - 70} }}",
    )
    start, end = text.index("features = ["), text.index("label =")
    names = ", ".join(f'"f{index}"' for index in range(features))
    text = text[:start] + f"features = [{names}]\n" + text[end:]
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return load_job(write_job(tmp_path, text))


def tables(inputs: np.ndarray, labels: np.ndarray) -> list[Table]:
    cuts = [0, 40, 70, len(labels)]
    return [Table(inputs[a:b], labels[a:b], np.ones((b - a, 0))) for a, b in pairwise(cuts)]


def zeros(job: Job) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, dtype=np.int64) for name, shape in job.shapes.items()}


def twin_of(job: Job, inputs: np.ndarray, labels: np.ndarray) -> Twin:
    return train_twin(job, tables(inputs, labels.astype(np.float64)), zeros(job))


def test_logistic_is_as_good_as_scikit_learn(tmp_path: Path) -> None:
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    job = job_for(tmp_path, 30, len(labels), epochs=("epochs = 4", "epochs = 20"))
    twin = twin_of(job, inputs, labels)
    training, held_out = split(job)
    theirs = LogisticRegression(max_iter=1000).fit(inputs[training], labels[training])
    assert twin.metrics["accuracy"] >= theirs.score(inputs[held_out], labels[held_out]) - 0.03
    scores = inputs[held_out] @ twin.state["weight"][0] + twin.state["bias"][0]
    assert twin.metrics["auc"] == pytest.approx(roc_auc_score(labels[held_out], scores))


def test_linear_finds_the_least_squares(tmp_path: Path) -> None:
    inputs, labels = load_diabetes(return_X_y=True, scaled=True)
    inputs, labels = inputs * 20, (labels - labels.mean()) / labels.std()
    job = job_for(
        tmp_path,
        10,
        len(labels),
        kind=('"logistic"', '"linear"'),
        epochs=("epochs = 4", "epochs = 300"),
        metrics=('["accuracy", "auc"]', '["mse", "mae", "r2"]'),
        rate=("learning_rate = 0.5", "learning_rate = 0.02"),
        batch=("size = 16", "size = 332"),
    )
    twin = twin_of(job, inputs, labels)
    training, held_out = split(job)
    theirs = LinearRegression().fit(inputs[training], labels[training])
    guess = theirs.predict(inputs[held_out])
    assert twin.metrics["r2"] == pytest.approx(r2_score(labels[held_out], guess), abs=0.02)
    assert twin.metrics["mse"] == pytest.approx(np.mean((guess - labels[held_out]) ** 2), abs=0.02)


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_classifiers_learn(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(1)
    centers = np.array([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.5]])
    labels = generator.integers(0, 3, 300)
    inputs = centers[labels] + generator.normal(0, 0.5, (300, 2))
    model = 'kind = "softmax"\nclasses = 3'
    if kind == "mlp":
        model = 'kind = "mlp"\nhidden = [8]\nclasses = 3'
    job = job_for(
        tmp_path,
        2,
        300,
        kind=('kind = "logistic"', model),
        metrics=('["accuracy", "auc"]', '["accuracy"]'),
        rate=("= 0.5", "= 0.1"),
    )
    initial = {
        name: generator.integers(-(2**19), 2**19, shape) for name, shape in job.shapes.items()
    }
    accuracy = train_twin(job, tables(inputs, labels.astype(float)), initial).metrics["accuracy"]
    assert isinstance(accuracy, float) and accuracy > 0.97


def test_one_step_by_hand(tmp_path: Path) -> None:
    """Momentum, weight decay and the mean gradient, worked out without torch."""
    generator = np.random.default_rng(2)
    inputs, labels = generator.normal(size=(100, 3)), generator.integers(0, 2, 100)
    job = job_for(
        tmp_path,
        3,
        100,
        epochs=("epochs = 4", "epochs = 2"),
        batch=("size = 16", "size = 75"),
        decay=("momentum = 0.9", "momentum = 0.9, weight_decay = 0.01"),
    )
    twin = twin_of(job, inputs, labels)
    training, _ = split(job)
    weight, velocity = np.zeros(4), np.zeros(4)
    rows = np.column_stack([inputs[training], np.ones(75)])
    for _ in range(2):
        error = 1 / (1 + np.exp(-rows @ weight)) - labels[training]
        velocity = 0.9 * velocity + rows.T @ error / 75 + 0.01 * weight
        weight = weight - float(job.train.optimizer.learning_rate) * velocity
    assert np.allclose([*twin.state["weight"][0], twin.state["bias"][0]], weight, atol=1e-12)


def test_names_and_shapes_are_those_of_the_job(tmp_path: Path) -> None:
    job = job_for(
        tmp_path,
        3,
        100,
        kind=('kind = "logistic"', 'kind = "mlp"\nhidden = [5, 4]\nclasses = 2'),
        metrics=('["accuracy", "auc"]', '["accuracy"]'),
    )
    state = plain_module(job).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == job.shapes
    assert list(state) == list(job.shapes)


def test_a_metric_needs_both_classes(tmp_path: Path) -> None:
    job = job_for(tmp_path, 3, 100)
    state = {name: value.astype(float) for name, value in zeros(job).items()}
    found = evaluate(job, state, tables(np.zeros((100, 3)), np.zeros(100)))
    assert found["auc"] is None


def test_weight_differences() -> None:
    one = {"weight": np.array([1.0, 2.0]), "bias": np.array([0.5])}
    other = {"weight": np.array([1.0, 2.25]), "bias": np.array([0.25])}
    assert max_weight_difference(one, other) == 0.25
