"""The bounds that clipping rests on: of residuals, and of sums with their noise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mpc_train.privacy.accounting import noise_multiplier, privacy_of, row_clip, sensitivity
from mpc_train.privacy.clip_plan import (
    clip_plan,
    deviation,
    grid_bits,
    most_residual,
    sum_limit,
    unit_of,
)
from mpc_train.training.optimizers.row_clipping import NoisySums
from mpc_train.training.setup import make_take
from protocols.functions.splines import spline_at
from protocols.noise.summands import largest
from tests.support.jobs import job_toml, loaded
from tests.support.private import PRIVACY, PRIVATE


@pytest.mark.parametrize(
    "fraction_bits", [8, 12, 14, *(pytest.param(f, marks=pytest.mark.slow) for f in (16, 20))]
)
def test_no_residual_of_a_sigmoid_is_larger(fraction_bits: int) -> None:
    """Every word, or every seventh, with either rounding of the square and of the result."""
    spline, one = spline_at("SIGMOID", fraction_bits), 1 << fraction_bits
    z = np.arange(-11 * one, 11 * one, 1 if fraction_bits <= 16 else 7, dtype=np.int64)
    a, b, c = (np.full(len(z), base, np.int64) for base in spline.base)
    for knot, step in zip(spline.knots, spline.steps.T, strict=True):
        under = z < knot
        for word, change in zip((a, b, c), step, strict=True):
            word[under] += change
    least, most = 0.0, 1.0
    for up in (0, 1):
        square = (z * z >> fraction_bits) + up
        total = a + b * z + c * square
        least = min(least, int((total >> fraction_bits).min()) / one)
        most = max(most, int(-(-total >> fraction_bits).max()) / one)
    bound = float(most_residual(fraction_bits))
    assert most <= bound and 1 - least <= bound
    # There is something to bound: without the units the bound would be wrong.
    assert fraction_bits > 8 or max(most, 1 - least) > 1 + 2**-12


@pytest.mark.parametrize("bands", [1, 4])
def test_sums_have_room_for_any_noise(bands: int, tmp_path: Path) -> None:
    """Of the law and the bands that the job's training has."""
    job = loaded(tmp_path, PRIVATE.replace("clip = 2", f"clip = 2\nbands = {bands}"))
    take = make_take(job, {})
    assert isinstance(take, NoisySums)
    assert (take.noise.deviation, take.noise.bands) == (deviation(job), privacy_of(job).bands)
    one = Fraction(2) ** grid_bits(job)
    noise = largest(len(job.evaluators), (deviation(job) * one) ** 2, bands) / one
    rows = row_clip(job) * job.train.batch_size
    assert rows + noise <= sum_limit(job) < rows + noise * Fraction(3, 2)


@pytest.mark.parametrize(("loss", "unit"), [("half_mse", 1), ("mse", 2), ("huber", 1)])
def test_noise_is_in_the_units_of_the_loss(loss: str, unit: int, tmp_path: Path) -> None:
    """A gradient of squared errors is twice the words that are clipped: so is the norm in them."""
    text = job_toml(
        ["age", "dose"],
        "linear",
        train="epochs = 2\nbatch_size = 60\nguard = false\n"
        f'optimizer.learning_rate = 0.1\nloss.name = "{loss}"',
    )
    job = loaded(tmp_path, text + PRIVACY)
    assert unit_of(job) == unit
    assert deviation(job) * unit == noise_multiplier(job) * sensitivity(job)
    assert clip_plan(job).clip * unit == row_clip(job)
