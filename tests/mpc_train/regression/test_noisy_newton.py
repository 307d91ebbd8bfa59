"""Regressions whose sums have noise: what they end at, what is said of a matrix without an inverse,
and that noisy sums which all steps share are taken once."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.jobs.job import Job
from mpc_train.jobs.sealed import CHANGE, DEPENDENCE
from mpc_train.regression import noise as noises
from mpc_train.regression.course import GRADIENT, INFORMATION, UNRESOLVED, RegressionCourse
from mpc_train.regression.table import NOT_CONVERGED, results
from mpc_train.twin.private import Curator
from mpc_train.twin.regression import private_fit
from protocols.noise import summands
from protocols.shares.masked import Additive
from tests.support.noisy_newton import Fitted, fitted, noisy_job, noisy_rows, without_noise


def said(job: Job, found: Fitted) -> Any:
    """The table that recipients see."""
    return results(
        job,
        {
            "weight": found.coefficients[:-1].reshape(1, -1),
            "bias": found.coefficients[-1:],
            CHANGE: found.change,
            DEPENDENCE: found.unresolved,
        },
    )


@pytest.mark.parametrize("kind", ["linear", "logistic", "poisson"])
def test_without_noise_the_same_steps_end_where_the_twin_ends(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By exact solutions in float64: the clipped rows, the penalty, the start, and its damping."""
    job = noisy_job(tmp_path, kind, rows=300, steps=3, l2="9")
    inputs, labels = noisy_rows(job)
    without_noise(monkeypatch)
    monkeypatch.setattr(Curator, "drawn", lambda _, job, sigma, count, bits: np.zeros(count))
    found = fitted(job, inputs, labels)
    plain = private_fit(job, inputs, labels, Curator())
    # The logarithm of a mean, at which a Poisson regression begins, is within 2^-9.
    near = 1e-3 if kind == "poisson" else 2e-4
    assert np.abs(found.coefficients - plain).max() < near
    assert np.abs(plain).max() > 0.01
    assert (found.unresolved < 1e-6).all()


def test_noise_of_a_twin_has_the_accounted_deviations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """σ on the diagonal and σ/√2 beside it, from numbers of deviation σ; g, and counts at the
    start."""
    drawn: list[tuple[Fraction, int]] = []

    def numbers(_: Curator, job: Job, sigma: Fraction, count: int, bits: int) -> np.ndarray:
        drawn.append((sigma, count))
        return np.zeros(count)

    monkeypatch.setattr(Curator, "drawn", numbers)
    job = noisy_job(tmp_path, "poisson", steps=2, l2="9", rows=300)
    noise = noises.noise_of(job)
    assert noise is not None
    private_fit(job, *noisy_rows(job), Curator())
    step = [(noise.gradient, 4), (noise.information, 16)]
    assert drawn == [(noise.labels, 1), *step, *step]


def moved(amount: Fraction) -> Any:
    """Stands in for noise on H: so much of its diagonal, in units of the sum."""

    def on_information(self: noises.Noise, blocks: Additive, bits: int) -> Additive:
        words = np.zeros(blocks.shape, np.int64)
        words[0] = np.eye(blocks.shape[-1], dtype=np.int64) * int(amount * (1 << bits))
        return blocks.shift(words)

    return on_information


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_a_matrix_without_an_inverse_is_told_to_recipients(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is only a little below 0, and only in the first of two steps."""
    job = noisy_job(tmp_path, kind, rows=300, steps=2, l2="9")
    inputs, labels = noisy_rows(job)
    inputs[:, 0] = 0  # whose eigenvalue is the ridge's, 2700
    good = said(job, fitted(job, inputs, labels))
    assert not good.unsolved
    assert kind == "linear" or good.converged
    for amount in (-2701, -2720, -2900):
        with monkeypatch.context() as change:
            change.setattr(noises.Noise, "on_information", moved(Fraction(amount)))
            table = said(job, fitted(job, inputs, labels))
        assert "had no inverse" in table.unsolved and not table.converged
        assert table.warnings == (table.unsolved,)
        assert {row.note for row in table.rows} == {NOT_CONVERGED}


def test_a_coefficient_at_its_limit_is_told(tmp_path: Path) -> None:
    job = noisy_job(tmp_path, "logistic", rows=300, l2="9")
    quiet = Fitted(np.array([0.1, 0.2, 0.3, 0.4]), np.ones(4), np.zeros(4), [])
    assert said(job, quiet).converged
    limit = job.fixed_point.activation_limit
    for value in (limit, -limit):
        table = said(job, replace(quiet, coefficients=np.array([0.1, value, 0.3, 0.4])))
        assert "to its limit" in table.unsolved and not table.converged


def test_coefficients_stay_within_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever noise does to a step: residuals are only bounded where predictors are."""
    job = noisy_job(tmp_path, "logistic", rows=300, steps=2, l2="9")
    monkeypatch.setattr(noises.Noise, "on_information", moved(Fraction(-2900)))
    found = fitted(job, *noisy_rows(job))
    assert np.abs(found.coefficients).max() <= job.fixed_point.activation_limit


def test_sums_that_all_steps_share_are_kept_and_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that goes on has the noisy sums of the one before and adds no noise of its own: a
    second version of them would cost the budget again."""
    job = noisy_job(tmp_path, "linear", rows=300, steps=3, l2="9")
    rows = noisy_rows(job)
    kept: dict[Any, RegressionCourse] = {}
    before: dict[Any, dict[str, Any]] = {}

    def first(role: Any) -> RegressionCourse:
        course = kept[role.index] = RegressionCourse(job=job)

        def keep(number: int) -> None:
            if number == 1:
                before[role.index] = dict(course.values)
                assert {name.partition("/")[2] for name in course.tensors()} == {
                    "coefficients", INFORMATION, GRADIENT, UNRESOLVED,
                }  # fmt: skip

        course.keep = keep
        return course

    whole = fitted(job, *rows, course=first)
    assert set(before) == {0, 1, None}

    def not_again(*_: Any) -> Additive:
        raise AssertionError("noise was added a second time")

    monkeypatch.setattr(summands, "noisy_first", not_again)
    monkeypatch.setattr(summands, "noisy_first_symmetric", not_again)

    def second(role: Any) -> RegressionCourse:
        values = {name: replace(x, role=role) for name, x in before[role.index].items()}
        return RegressionCourse(values, begun=1, job=job)

    again = fitted(job, *rows, course=second)
    assert np.abs(again.coefficients - whole.coefficients).max() < 1e-4
    assert (again.unresolved < 1e-6).all()
