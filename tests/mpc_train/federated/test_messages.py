"""Summands of an update: whatever its size, both ends draw the same words."""

from __future__ import annotations

import numpy as np
import pytest

from mpc_train.federated.rounds.messages import PIECE_WORDS, masked
from protocols.roles.streams import one_time

ROOTS = [bytes([number]) * 32 for number in (1, 2)]


@pytest.mark.parametrize(
    "size", [1, 2047, 2049, PIECE_WORDS, PIECE_WORDS + 1, PIECE_WORDS + 20_000, 3 * PIECE_WORDS]
)
def test_summands_add_up_to_the_update(size: int) -> None:
    words = np.random.default_rng(size).integers(-(1 << 40), 1 << 40, size)
    with np.errstate(over="ignore"):
        under = np.frombuffer(b"".join(masked(words, ROOTS)), "<i8")
        total = under - sum(one_time(root).words(size) for root in ROOTS)
    assert np.array_equal(total, words)
