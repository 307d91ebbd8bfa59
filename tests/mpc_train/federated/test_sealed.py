"""Updates as sealed messages: the mean of what opens, and nothing of what does not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mpc_train.errors import DataError
from mpc_train.federated.limits import Limits
from mpc_train.federated.sealed import SealedRound, sealed_update
from protocols.canonical import pack

LIMITS = Limits(Fraction(1), 6)


def updates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {name: 0.2 * rng.normal(size=6) for name in ("a", "b", "c")}


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_mean_of_messages(evaluators: int) -> None:
    given, house = updates(), SealedRound(evaluators)
    rows = {"a": 3, "b": 1, "c": 6}
    said = {n: sealed_update(one, LIMITS, 4, n, house.public) for n, one in given.items()}
    found, refused = house.mean(said, rows, LIMITS, 4)
    expected = sum(rows[name] * one for name, one in given.items()) / 10
    assert not refused and found.rows == 10
    assert np.abs(found.value.numpy() - expected).max() < 2.0**-23
    one = torch.tensor(given["a"])
    assert len(sealed_update(one, LIMITS, 4, "a", house.public)) == len(said["a"])


def test_a_message_opens_for_its_round_and_sender_only() -> None:
    given, house = updates(), SealedRound()
    whole = sealed_update(given["a"], LIMITS, 1, "a", house.public)
    altered = bytearray(whole)
    altered[-1] ^= 1
    said = {
        "a": whole,
        "b": whole,
        "c": sealed_update(given["c"], LIMITS, 2, "c", house.public),
        "d": bytes(altered),
        "e": pack(b"x", b"y"),
        "f": b"",
    }
    found, refused = house.mean(said, dict.fromkeys(said, 1), LIMITS, 1)
    assert set(refused) == {"b", "c", "d", "e", "f"} and found.rows == 1
    with pytest.raises(DataError, match="no update of round 3 opens"):
        house.mean(said, dict.fromkeys(said, 1), LIMITS, 3)


def test_an_update_that_is_not_clipped_is_left_out() -> None:
    given, house = updates(), SealedRound()
    # The limits that a hostile client uses differ only in what it clips to.
    rounded = Limits.rounded

    class Hostile(Limits):
        def rounded(self, update: np.ndarray, what: str = "") -> tuple[np.ndarray, float]:
            return 1000 * rounded(self, update / np.linalg.norm(update))[0], 1.0

    said = {
        "a": sealed_update(given["a"], LIMITS, 1, "a", house.public),
        "b": sealed_update(given["b"], Hostile(Fraction(1), 6), 1, "b", house.public),
    }
    found, refused = house.mean(said, {"a": 1, "b": 9}, LIMITS, 1)
    assert refused == {"b": "its norm is beyond the clip"}
    assert np.abs(found.value.numpy() - given["a"]).max() < 2.0**-23
