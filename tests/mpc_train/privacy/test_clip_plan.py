"""The bounds that clipping rests on: of residuals, and of sums with their noise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mpc_train.privacy.accounting import privacy_of, row_clip
from mpc_train.privacy.clip_plan import deviation, grid_bits, most_residual, sum_limit
from mpc_train.training.optimizers.row_clipping import NoisySums
from mpc_train.training.setup import make_take
from protocols.functions.splines import spline_at
from protocols.noise.summands import largest
from tests.support.jobs import loaded
from tests.support.private import PRIVATE


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
