"""Every metric over shares is what the twin computes from the same outputs and labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from mpc_train.errors import JobError
from mpc_train.evaluation.metrics import revealed
from mpc_train.jobs.job import Job, load_job
from mpc_train.jobs.job_reveal import METRICS
from mpc_train.jobs.reading import Reading
from mpc_train.twin.reference_metrics import guesses, twin_metric
from protocols.crypten_backend import MaskedTensor, attach, detach
from protocols.reveal import Output, RevealGate
from protocols.role import Role
from tests.mpc_train.helpers import JOB, write_job
from tests.support.lockstep import run_lockstep

Reals = NDArray[np.float64]

KINDS = ("linear", "logistic", "softmax")


def job_of(folder: Path, kind: str, metrics: Sequence[str], more: str = "") -> Job:
    text = JOB.replace('kind = "logistic"', f'kind = "{kind}"')
    if kind == "softmax":
        text = text.replace(f'kind = "{kind}"', f'kind = "{kind}"\nclasses = 4')
    listed = ", ".join(f'"{metric}"' for metric in metrics)
    return load_job(write_job(folder, text.replace('"accuracy", "auc"', listed) + more))


def over_shares(job: Job, outputs: Reals, labels: Reals, evaluators: int = 2) -> dict[str, Reading]:
    """The metrics as two evaluators and a dealer compute and reveal them."""

    def program(role: Role) -> dict[str, Reading]:
        attach(role, job.fraction_bits)
        np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
        try:
            mine = role.index == 0
            z, y = (
                MaskedTensor(values if mine else None, src=0, shape=values.shape)
                for values in (outputs, labels)
            )
            gate = RevealGate(frozenset(Output(name, 1) for name in job.reveal.metrics))
            return revealed(job, gate, 1, job.reveal.metrics, z, y)
        finally:
            detach()

    *found, dealer = run_lockstep(program, evaluators)
    assert all(one == found[0] for one in found)
    assert dealer == {}
    return dict(found[0])


def drawn(job: Job, kind: str, rows: int) -> tuple[Reals, Reals, Reals]:
    """Outputs, labels [rows], and labels in the shape of the outputs."""
    generator = np.random.default_rng(rows)
    outputs = generator.normal(0, 2, (rows, job.outputs))
    if kind == "linear":
        labels = (outputs + generator.normal(0, 1, outputs.shape))[:, 0]
    elif kind == "logistic":
        labels = (outputs[:, 0] + generator.normal(0, 2, rows) > 0.5).astype(np.float64)
        labels[:2] = 0, 1
    else:
        noisy = outputs + generator.normal(0, 2, outputs.shape)
        labels = noisy.argmax(axis=1).astype(np.float64)
        return outputs, labels, np.eye(4)[labels.astype(np.int64)]
    return outputs, labels, labels[:, None]


def same(found: Reading, expected: Reading, bound: float) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        pairs = zip(found, expected, strict=True)
        return all(same(one, other, bound) for one, other in pairs)
    if found is None or expected is None:
        return found is expected
    assert isinstance(found, float | int) and isinstance(expected, float | int)
    return bool(abs(found - expected) <= bound)


@pytest.mark.parametrize("rows", [15, 142, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_twin(tmp_path: Path, kind: str, rows: int) -> None:
    job = job_of(tmp_path, kind, METRICS[kind])
    outputs, labels, matrix = drawn(job, kind, rows)
    found = over_shares(job, outputs, matrix)
    assert set(found) == set(METRICS[kind])
    for name, value in found.items():
        # A quotient is good to 2^-16 of itself, a mean to a few units of 2^-20 a row, a logarithm
        # of the spline to 2^-12.
        bound = 2**-10 if name == "log_loss" else 2**-13
        expected = twin_metric(name, job, outputs, labels)
        assert same(value, expected, bound), (name, value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_is_scikit_learn(tmp_path: Path, kind: str) -> None:
    job = job_of(tmp_path, kind, METRICS[kind])
    z, y, _ = drawn(job, kind, 600)
    called = guesses(job, z) if kind != "linear" else z[:, 0]
    odds = 1 / (1 + np.exp(-z[:, 0])) if kind == "logistic" else softmax(z, axis=1)
    one = {"average": "macro"} if kind == "softmax" else {}
    expected: dict[str, object] = {
        "mse": lambda: sklearn.mean_squared_error(y, called),
        "mae": lambda: sklearn.mean_absolute_error(y, called),
        "r2": lambda: sklearn.r2_score(y, called),
        "accuracy": lambda: sklearn.accuracy_score(y, called),
        "auc": lambda: sklearn.roc_auc_score(y, z[:, 0]),
        "log_loss": lambda: sklearn.log_loss(y, odds),
        "precision": lambda: sklearn.precision_score(y, called, **one),
        "recall": lambda: sklearn.recall_score(y, called, **one),
        "f1": lambda: sklearn.f1_score(y, called, **one),
        "confusion": lambda: sklearn.confusion_matrix(y, called).tolist(),
    }
    for name in METRICS[kind]:
        found = twin_metric(name, job, z, y)
        if name == "calibration":
            shares, means = calibration_curve(y, odds, n_bins=10)
            assert isinstance(found, list)
            np.testing.assert_allclose([one for one in found if one], np.c_[means, shares])
        else:
            assert same(found, expected[name](), 1e-12), name  # type: ignore[operator]


def test_auc_of_many_rows_by_levels(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["auc"])
    outputs, labels, matrix = drawn(job, "logistic", 6000)
    found = over_shares(job, outputs, matrix)["auc"]
    assert same(found, twin_metric("auc", job, outputs, labels), 2e-4)


@pytest.mark.parametrize("decimals", [0, 2, 4])
def test_rounding_comes_before_the_reveal(tmp_path: Path, decimals: int) -> None:
    job = job_of(tmp_path, "logistic", METRICS["logistic"], f"decimals = {decimals}\n")
    outputs, labels, matrix = drawn(job, "logistic", 142)
    for name, value in over_shares(job, outputs, matrix).items():
        expected = twin_metric(name, job, outputs, labels)
        # At the edge between two steps either may come out.
        assert same(value, expected, 1.001 * 10**-decimals if decimals == 4 else 1e-9), name


def test_labels_that_do_not_vary_have_no_r2(tmp_path: Path) -> None:
    job = job_of(tmp_path, "linear", ("mse", "r2"))
    outputs = np.random.default_rng(1).normal(size=(40, 1))
    labels = np.full(40, 0.75)
    found = over_shares(job, outputs, labels[:, None])
    assert found["r2"] is None and twin_metric("r2", job, outputs, labels) is None
    assert found["mse"] == pytest.approx(np.mean((outputs[:, 0] - labels) ** 2), abs=2**-14)


def test_small_groups_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", METRICS["logistic"], "least_group = 12\n")
    outputs, labels, matrix = drawn(job, "logistic", 142)
    labels[:] = 0
    labels[:11] = 1
    matrix[:] = labels[:, None]
    found = over_shares(job, outputs, matrix, 3)
    for name in ("auc", "recall", "f1", "confusion"):
        assert found[name] is None, name
    assert found["accuracy"] is not None and found["precision"] is not None
    bins = found["calibration"]
    assert isinstance(bins, list)
    expected = twin_metric("calibration", job, outputs, labels)
    assert isinstance(expected, list)
    assert [one is None for one in bins] == [one is None for one in expected]
    assert None in bins and any(bins)


def test_a_single_class_has_no_auc(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["auc"])
    outputs = np.random.default_rng(1).normal(0, 1, (40, 1))
    for label in (0.0, 1.0):
        labels = np.full((40, 1), label)
        assert over_shares(job, outputs, labels) == {"auc": None}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("least_group = 0", "between 1 and"),
        ("decimals = 5", "between 0 and 4"),
        ("bins = 1", "between 2 and 50"),
        ('per_party = ["mse"]', "'mse' does not suit"),
        ('per_party = ["auc"]\nleast_test_rows = 21', "reveal.least_test_rows"),
    ],
)
def test_contradictions_name_the_key(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_of(tmp_path, "logistic", ["accuracy"], more + "\n")
