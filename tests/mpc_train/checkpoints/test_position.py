"""What is public about a checkpoint, as the dealer hears it from others: bounded, or refused."""

from __future__ import annotations

import msgspec
import pytest

from mpc_train.checkpoints.state import Position
from mpc_train.errors import ArtifactError

GOOD = {
    "step": 3,
    "finished": False,
    "entries": [{"name": "tensor/w", "shape": [2, 3]}],
    "numbers": {"rate": "1/10", "square_scale": "36893488147419103232"},
    "drawn": 4,
    "passes": 3,
}


def test_what_was_written_is_read() -> None:
    position = Position.from_bytes(msgspec.json.encode(GOOD))
    assert Position.from_bytes(position.to_bytes()) == position


@pytest.mark.parametrize(
    "ratio", ["1e999999999", "1/0", "1/00", "0.1", "-1", " 1", "1\n", "", "9" * 401, "nan", "1/2/3"]
)
def test_a_number_is_a_ratio_of_bounded_size(ratio: str) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        Position.from_bytes(msgspec.json.encode(GOOD | {"numbers": {"rate": ratio}}))


@pytest.mark.parametrize(
    "wrong", [{"step": -1}, {"drawn": -1}, {"passes": 1 << 62}, {"more": 1}, {"entries": "x"}]
)
def test_anything_else_is_malformed(wrong: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        Position.from_bytes(msgspec.json.encode(GOOD | wrong))


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(ArtifactError):
        Position.from_bytes(b"[" * 100_000)
