"""Means and deviations from noisy sums, over shares: those of the formulas, whatever noise does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.applied import applied
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import Local, local_terms, sums
from mpc_train.preparation import noisy
from mpc_train.preparation.noisy import Sums, noisy_parameters, noisy_sums, sums_shape
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.preparation.sealed import BITS, opened_parameters, remarks
from mpc_train.preparation.sharing import with_coarse
from mpc_train.privacy.statistics import StatisticsPlan
from protocols.arrays import Reals, Words
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import DEALER, combine_masked, secret, shares_of
from tests.support.noisy_case import (
    by_hand,
    exact_sums,
    noisy_job,
    plan_of,
    sums_of,
    words_of,
)
from tests.support.preparation_case import pooled, tables

F = 20


def from_sums(job: Job, plan: StatisticsPlan, words: list[Words]) -> dict[str, Reals]:
    """The opened parameters from `Sums` of these words."""

    def program(role: Role) -> Any:
        parts = (secret(role, part) for part in words)
        found = noisy_parameters(job.pipeline, Sums(*parts), plan, F)
        return {name: shares_of(value) for name, value in found.sealed.items()}

    results = run_lockstep(program, 2)
    sealed = {
        name: np.ldexp(combine_masked([result[name] for result in results]), -BITS[name])
        for name in results[0]
    }
    assert not sealed.get("prepare.beyond", np.zeros(1)).any()
    return opened_parameters(job.pipeline, sealed)


def test_without_noise_they_are_those_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what owners bring to inputs: noise is taken away here, and nothing else."""
    job = noisy_job(tmp_path)
    training, _ = split(job)
    whole, plan = local_terms(job.pipeline, pooled(tables())), plan_of(len(training))
    monkeypatch.setattr(noisy, "noisy", lambda z, variance: z)
    statistics = sums_of(job, plan)
    features, f = with_coarse(job, whole.values), job.fraction_bits
    fine = halves(cells(job.pipeline, whole.values), WORD_BITS)[1]

    def program(role: Role) -> Any:
        brought = [secret(role, encode(one, 0), n % 2) for n, one in enumerate(statistics)]
        drawn = noisy_sums(job.pipeline, brought, plan).together()
        again = Sums.apart(job.pipeline, drawn)
        assert drawn.shape == sums_shape(job.pipeline)
        found = noisy_parameters(job.pipeline, again, plan, f)
        assert found.some is None
        rows = Rows(
            secret(role, encode(features, f)),
            secret(role, encode(fine, 0)),
            secret(role, whole.present.astype(np.int64)),
        )
        inputs = prepared(job.pipeline, rows, found, f)
        named = {name: shares_of(value) for name, value in found.sealed.items()}
        return named, shares_of(inputs)

    results = run_lockstep(program, 2)
    sealed = {
        name: np.ldexp(combine_masked([result[0][name] for result in results]), -BITS[name])
        for name in results[0][0]
    }
    found = opened_parameters(job.pipeline, sealed)
    expected = by_hand(job.pipeline, plan, *exact_sums(job.pipeline, whole, training))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-9, atol=2**-13, err_msg=name)
    inputs = decode(combine_masked([result[1] for result in results]), f)
    np.testing.assert_allclose(
        inputs, applied(job.pipeline, whole, found), rtol=2**-15, atol=2**-15
    )


@pytest.mark.parametrize(
    ("number", "first", "square"),
    [
        (50.0, 10.0, 40.0),  # as rows may have it
        (-80.0, -300.0, -500.0),  # fewer than none, and beyond any mean
        (900.0, 900.0, 900.0),
        (0.0, 3.0, 0.0),  # a variance below 0
        (100.0, 0.0, 100.0),  # the largest
        (30.0, 15.0, 7.5001),  # of nearly equal cells
    ],
)
def test_whatever_noise_does_parameters_are_in_their_range(
    tmp_path: Path, number: float, first: float, square: float
) -> None:
    job, plan = noisy_job(tmp_path), plan_of(100)
    pipeline = job.pipeline
    drawn = [
        np.full(len(pipeline.filled), number),
        np.full(len(pipeline.secret), first),
        np.full(len(pipeline.scaled), square),
    ]
    found = from_sums(
        job, plan, [words_of(x.tolist(), b) for x, b in zip(drawn, (16, 16, 32), strict=True)]
    )
    expected = by_hand(pipeline, plan, drawn[0], drawn[1], drawn[2])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-14, atol=2**-20, err_msg=name)
    narrow = remarks(pipeline, found, float(plan.least_deviation)).get("narrow", [])
    assert bool(narrow) == (square in (-500.0, 900.0, 0.0, 7.5001)) and not remarks(pipeline, found)
    reach = np.array([2.0 ** pipeline.terms[place].reach for place in pipeline.scaled])
    assert (abs(found["prepare.center"]) <= reach * (1 + 2**-20)).all()
    assert (found["prepare.inverse"] * reach <= 32 * (1 + 2**-14)).all()


def test_cells_that_are_only_filled(tmp_path: Path) -> None:
    job, plan = noisy_job(tmp_path, "missing = 'mean'"), plan_of(100)
    pipeline = job.pipeline
    assert pipeline.filled and not pipeline.scaled
    drawn = [np.full(len(pipeline.filled), 40.0), np.full(len(pipeline.secret), -10.0)]
    found = from_sums(job, plan, [words_of(x.tolist(), 16) for x in drawn] + [words_of([], 32)])
    expected = by_hand(pipeline, plan, drawn[0], drawn[1], np.zeros(0))
    np.testing.assert_allclose(found["prepare.fill"], expected["prepare.fill"], rtol=2**-20)


def test_cells_beyond_their_range_count_as_its_end(tmp_path: Path) -> None:
    """Whatever its owner has read: the bound of a row is one of its words."""
    job = noisy_job(tmp_path)
    plan = plan_of(4)
    values = np.full((4, len(job.pipeline.terms)), -1e9)
    values[3] = 1e9
    local = Local(values, np.ones((4, len(job.pipeline.filled))))
    count, first, high, low = sums(job.pipeline, local, np.arange(4), plan.bits)
    assert (count == 4).all() and (first == -2 * 2**16).all()
    assert (high * 2**28 + low == 4 * 2**32).all()


def trace(job: Job, values: int) -> tuple[int, int, int]:
    """Rounds, and bytes that one evaluator has sent the other, and the dealer both."""
    plan = plan_of(378)

    def program(role: Role) -> int:
        brought = [secret(role, np.full((4, len(job.pipeline.secret)), values, np.int64))]
        role.finish()
        before = role.rounds
        found = noisy_parameters(job.pipeline, noisy_sums(job.pipeline, brought, plan), plan, F)
        role.finish()
        assert set(found.sealed)
        return role.rounds - before

    net = LockstepLoopback()
    rounds = run_lockstep(program, 2, net=net)
    sent = {
        pair: sum(len(payload) for _, payload in frames) for pair, frames in net.transcript.items()
    }
    dealt = sum(size for (sender, _), size in sent.items() if sender == DEALER)
    return max(rounds), sent["p0", "p1"], dealt


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        ("scale = 'standard'", (48, 1672, 4376)),
        ("missing = 'mean'", (31, 1440, 3888)),
        ("scale = 'standard'\nmissing = 'mean'", (66, 2912, 7584)),
    ],
)
def test_the_transcript_does_not_depend_on_the_rows(
    tmp_path: Path, prepare: str, expected: tuple[int, int, int]
) -> None:
    job = noisy_job(tmp_path, prepare)
    found = trace(job, 7)
    assert found == trace(job, 300)
    assert found == expected
