"""What a row changes in the sums of `[prepare]`, and what their noise costs beside a training."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import exp, prod, sqrt
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split_sizes, total_steps
from mpc_train.owners.local import Local, sums
from mpc_train.privacy import accounting, costs
from mpc_train.privacy.accounting import (
    GRID_PART,
    budget,
    epsilon_of_statistics,
    epsilon_of_training,
    noise_multiplier,
    statistics_multiplier,
)
from mpc_train.privacy.library import epsilon_of_gaussian
from mpc_train.privacy.statistics import (
    SUM_BITS,
    square_of_row,
    statistics_bits,
    statistics_plan,
    statistics_square,
)
from mpc_train.privacy.words import noise_line, table
from tests.support.noisy_case import noisy_job

BOTH = "scale = 'standard'\nmissing = 'mean'"


def changing(job: Job, **more: object) -> Job:
    assert job.privacy
    return msgspec.structs.replace(job, privacy=msgspec.structs.replace(job.privacy, **more))


@pytest.mark.parametrize("neighbours", ["zeroed", "replaced"])
@pytest.mark.parametrize("prepare", [BOTH, "scale = 'standard'", "missing = 'mean'"])
def test_no_row_changes_more_than_is_counted(tmp_path: Path, prepare: str, neighbours: str) -> None:
    """Every pair of cells, by what owners bring; and some pair changes so much."""
    job = changing(noisy_job(tmp_path, prepare), neighbours=neighbours)
    pipeline, bits = job.pipeline, 8
    cells = [*np.linspace(-1, 1, 21), 1e6, None]
    reaches = [2.0**term.reach for term in pipeline.terms]

    def brought(cell: float | None) -> np.ndarray:
        values = np.array([[0.0 if cell is None else cell * reach for reach in reaches]])
        present = np.full((1, len(pipeline.filled)), float(cell is not None))
        count, first, high, low = sums(pipeline, Local(values, present), np.arange(1), bits)
        at = [pipeline.secret.index(place) for place in pipeline.filled]
        of = [pipeline.secret.index(place) for place in pipeline.scaled]
        squares = (high * 2**28 + low)[of] / 4.0**bits
        return np.concatenate([count[at], first / 2.0**bits, squares])

    gone = np.zeros_like(brought(0.0))
    pairs = [(brought(a), gone) for a in cells]
    if neighbours == "replaced":
        pairs = [(brought(a), brought(b)) for a, b in product(cells, cells)]
    most = max(float(((a - b) ** 2).sum()) for a, b in pairs)
    assert most == pytest.approx(square_of_row(job), abs=1e-9)


def test_statistics_and_training_cost_the_budget_together(tmp_path: Path) -> None:
    """Nothing more, and nearly all of it; by the library's formula for one mechanism."""
    job = noisy_job(tmp_path)
    assert job.privacy
    _, delta = budget(job.privacy)
    counted = float(1 - GRID_PART)
    for share in ("0.01", "0.1", "0.5", "0.99"):
        settings = msgspec.structs.replace(job.privacy.of_statistics, share=Fraction(share))
        one = changing(job, statistics=settings)
        parts = (
            1 / (counted * float(statistics_multiplier(one)) ** 2),
            one.train.epochs / (counted * float(noise_multiplier(one)) ** 2),
        )
        together = epsilon_of_gaussian(Fraction(1), Fraction(sum(parts)), delta)
        assert 3 * (1 - 1e-3) < together <= 3
        assert epsilon_of_training(one) == pytest.approx(together, rel=1e-9)
        assert parts[0] / sum(parts) == pytest.approx(float(share), rel=2e-3)
        assert epsilon_of_statistics(one) < together
    # Without statistics all of it is the training's.
    alone = msgspec.structs.replace(job, prepare=type(job.prepare)())
    assert noise_multiplier(alone) < noise_multiplier(job)


def test_all_rows_of_a_unit_count(tmp_path: Path) -> None:
    job = noisy_job(tmp_path)
    units = changing(job, unit="patient", most_rows=3)
    assert statistics_square(units) == 9 * statistics_square(job)
    assert statistics_square(job) == statistics_multiplier(job) ** 2 * square_of_row(job)
    plan = statistics_plan(job)
    assert plan.variance(3) == 64 * plan.square == 64 * statistics_square(job)
    assert (plan.rows, plan.least) == (split_sizes(job)[0], job.reveal.least_group)
    replaced = changing(job, neighbours="replaced")
    assert square_of_row(replaced) > square_of_row(job)


def test_numbers_of_statistics_are_drawn_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be a little off the exact law, which counts towards δ."""
    job = noisy_job(tmp_path)
    assert job.privacy
    weights = sum(prod(shape) for shape in job.shapes.values())
    numbers = weights * total_steps(job) + 3 * len(job.pipeline.secret)
    numbers *= len(job.evaluators) + 1
    most = Fraction(job.privacy.small_delta) * accounting.DELTA_MARGIN / 2 / Fraction(1 + exp(3))
    monkeypatch.setattr(accounting, "SAMPLER_DISTANCE", most / numbers)
    assert accounting.sampler_fits(job)
    monkeypatch.setattr(accounting, "SAMPLER_DISTANCE", most / (numbers - 1))
    assert not accounting.sampler_fits(job)


@pytest.mark.parametrize("rows", [1, 100, 10**6, 10**8])
def test_sums_fit(rows: int) -> None:
    assert rows << 2 * statistics_bits(rows) <= 1 << SUM_BITS
    assert 15 <= statistics_bits(rows) <= 16


def test_the_table_says_what_statistics_cost(tmp_path: Path) -> None:
    job = noisy_job(tmp_path)
    (row,) = (line for line in table(job) if line.startswith("statistics"))
    assert "in model" in row and "0.1 of what noise may cost" in row
    (cost,) = (one for one in costs.costs(job) if one.name == costs.STATISTICS)
    assert {"prepare.center", "prepare.fill"} <= set(cost.outputs)
    assert costs.total(job).training == 3
    deviation = sqrt(statistics_plan(job).square)
    said = " ".join(noise_line(job))
    assert f"means and deviations is {deviation:.4g} rows" in said
    assert "these alone would cost" in said
