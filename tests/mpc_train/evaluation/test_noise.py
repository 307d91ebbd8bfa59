"""Noise on revealed counts: its distribution, and that it reaches what is revealed."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.evaluation import noise
from mpc_train.evaluation.noise import discrete_laplace
from mpc_train.twin.metrics import twin_metric
from tests.mpc_train.evaluation.test_metrics import drawn, over_shares
from tests.support.jobs import replaced, write_job


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1), Fraction(10, 3)])
def test_the_distribution_is_discrete_laplace(scale: Fraction) -> None:
    count, reach = 6_000, 12
    found = Counter(discrete_laplace(scale) for _ in range(count))
    ratio = float(np.exp(-1 / float(scale)))
    mass = np.array([(1 - ratio) / (1 + ratio) * ratio ** abs(k) for k in range(-reach, reach + 1)])
    seen = np.array([found[k] for k in range(-reach, reach + 1)], float)
    likely = mass * count >= 5
    rest = count - seen[likely].sum(), count * (1 - mass[likely].sum())
    # One in a million runs fails by chance.
    observed, expected = np.append(seen[likely], rest[0]), np.append(mass[likely] * count, rest[1])
    kept = expected > 0.5
    assert (
        chisquare(observed[kept], expected[kept] * observed[kept].sum() / expected[kept].sum())[1]
        > 1e-6
    )


def test_counts_are_revealed_with_noise(tmp_path: Path) -> None:
    more = '"accuracy", "confusion"]\nnoise = { epsilon = 1 }\n'
    job = load_job(write_job(tmp_path, replaced('"accuracy", "auc"]', more)))
    outputs, labels, matrix = drawn(job, "logistic", 600)
    first, second = (over_shares(job, outputs, matrix, 3) for _ in range(2))
    exact = np.array(twin_metric("confusion", job, outputs, labels))
    tables = [np.array(found["confusion"]) for found in (first, second)]
    assert not np.array_equal(tables[0], tables[1])
    for table in tables:
        np.testing.assert_array_equal(table, np.round(table))
        # Three evaluators' noise, of standard deviation sqrt(2) · 2 each.
        assert 0 < np.abs(table - exact).max() < 12 * np.sqrt(6) * 2
    assert abs(first["accuracy"] * 600 - round(first["accuracy"] * 600)) < 1e-6  # type: ignore[operator,arg-type]


@pytest.mark.parametrize("evaluators", [2, 3])
def test_every_evaluator_puts_noise_in(
    tmp_path: Path, evaluators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one alone to draw it, that one would know the exact count."""
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 1)
    more = '"accuracy", "confusion"]\nnoise = { epsilon = 1 }\n'
    job = load_job(write_job(tmp_path, replaced('"accuracy", "auc"]', more)))
    outputs, labels, matrix = drawn(job, "logistic", 100)
    found = over_shares(job, outputs, matrix, evaluators)
    exact = np.array(twin_metric("confusion", job, outputs, labels))
    np.testing.assert_array_equal(np.array(found["confusion"]) - exact, evaluators)
    right = twin_metric("accuracy", job, outputs, labels)
    assert found["accuracy"] * 100 == pytest.approx(right * 100 + evaluators)  # type: ignore[operator]


def test_groups_are_judged_with_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a group is too small is told: of the exact counts that would be exact."""
    more = '"accuracy", "confusion"]\nnoise = { epsilon = 1 }\n'
    job = load_job(write_job(tmp_path, replaced('"accuracy", "auc"]', more)))
    outputs, labels, matrix = drawn(job, "logistic", 100)
    exact = np.array(twin_metric("confusion", job, outputs, labels))
    least = int(min(exact.sum(axis=0).min(), exact.sum(axis=1).min()))
    assert least >= job.reveal.least_group
    # A group is two cells, and each has the noise of two evaluators.
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: -((least - 5) // 4))
    assert over_shares(job, outputs, matrix)["confusion"] is None


def test_a_mean_is_revealed_with_noise(tmp_path: Path) -> None:
    more = '"accuracy"]\nnoise = { epsilon = 0.01 }\n'
    job = load_job(write_job(tmp_path, replaced('"accuracy", "auc"]', more)))
    outputs, _, matrix = drawn(job, "logistic", 600)
    found = {over_shares(job, outputs, matrix)["accuracy"] for _ in range(4)}
    # Of a standard deviation of 200 rows: that four agree is less likely than 10^-8.
    assert len(found) > 1


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ('"auc"]\nnoise = { epsilon = 1 }', "remove auc"),
        ('"accuracy"]\nnoise = { epsilon = 0 }', "between 0.01 and 100"),
    ],
)
def test_contradictions(tmp_path: Path, new: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job(write_job(tmp_path, replaced('"accuracy", "auc"]', new)))
