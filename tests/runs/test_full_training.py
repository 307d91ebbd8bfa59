"""A whole training of 8,000 images of 784 pixels in ten classes, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import trained
from tests.support.images import write_images


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_epochs_of_a_network_are_as_good_as_in_the_clear(tmp_path: Path) -> None:
    """784-128-128-10; 2,000 further rows decide how good.

    The rate falls to nothing, so that the end is a place and not a moment: at a rate of 0.1 without
    a schedule, moving the first weights by 2^-19 moves the accuracy by half a point as well.
    """
    path = write_images(tmp_path)
    record = trained(path, "--compare")
    assert record["steps"] == 5 * (8000 // 128)
    accuracy, twin = record["metrics"]["accuracy"], record["twin_metrics"]["accuracy"]
    assert twin > 0.94
    assert abs(accuracy - twin) <= 0.005
    assert record["max_weight_difference"] < 0.15
