"""What travels depends on the program alone: labels, sizes and rounds are pinned.

The pins are in tests/vectors/transcripts.json. A change that means to send something else makes
them anew (`python -m tests.vectors.make_transcripts`) and shows the difference in its commit.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.transcripts import PROGRAM_TRAFFIC, SHAPE, TRAFFIC, summary, traffic

PINS = json.loads(
    (Path(__file__).resolve().parents[1] / "vectors" / "transcripts.json").read_text()
)
ALL = (*TRAFFIC, *PROGRAM_TRAFFIC)
DATA = {
    "zeros": np.zeros(SHAPE, np.int64),
    "ones": np.full(SHAPE, 1 << 20),
    "mixed": np.random.default_rng(1).integers(-(2**22), 2**22, SHAPE),
    "equal rows": np.tile(np.array([5 << 20, -1, 3, -(2**40)]), (SHAPE[0], 1)),
}


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("name", ALL)
def test_pinned(name: str, evaluators: int) -> None:
    """The pins are of zeros, so that other data show whether anything depends on them."""
    found = summary(*traffic(name, evaluators, DATA["mixed"]))
    assert found == PINS[f"{name}, {evaluators} evaluators"]


@pytest.mark.parametrize("evaluators", [2, 3, 4, 5])
@pytest.mark.parametrize("name", TRAFFIC)
def test_equal_for_different_data(name: str, evaluators: int) -> None:
    """Every label, the checksum of the program included, and every size."""
    first = traffic(name, evaluators, DATA["zeros"])
    for other in ("ones", "mixed", "equal rows"):
        assert traffic(name, evaluators, DATA[other]) == first


def test_every_program_is_pinned() -> None:
    assert set(PINS) == {f"{name}, {n} evaluators" for name in ALL for n in (2, 3)}


def test_rounds() -> None:
    """The rounds that the docstrings state: products 1, truncations 2, signs 3 and one to open."""
    rounds = {name: PINS[f"{name}, 2 evaluators"]["rounds"] for name in ALL}
    assert rounds["input"] == 0
    assert rounds["multiply"] == rounds["matmul"] == rounds["remask"] == 1
    assert rounds["truncate"] == 2
    assert rounds["negative"] == 4
    assert rounds["negative after truncation"] <= 5
    assert rounds["relu"] <= 5
    assert rounds == {name: PINS[f"{name}, 3 evaluators"]["rounds"] for name in ALL}
