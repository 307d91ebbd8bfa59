"""The bounds that clipping by owners rests on."""

from __future__ import annotations

import numpy as np
import pytest

from mpc_train.privacy.clip_plan import most_residual
from protocols.functions.splines import spline_at


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
