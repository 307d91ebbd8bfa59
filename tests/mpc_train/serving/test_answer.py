"""What leaves a service, from outputs in shares: numbers, probabilities, classes, rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.errors import QueryError
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.serving.answer import answer, answer_width, rounded, values
from mpc_train.training.limits import most_of_ring
from protocols.arrays import Reals, Words
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from tests.support.jobs import job_toml, loaded
from tests.support.lockstep import LockstepLoopback, compute, run_lockstep
from tests.support.loopback import secret, shares_of

F = 20
UNIT = 2.0**-F
TOLERANCE = 2**-10
RNG = np.random.default_rng(13)
LOGITS = np.concatenate([RNG.normal(0, 3, 60), [0, UNIT, -UNIT, 12, -12, 400, -400]])[:, None]
SCORES = np.concatenate([RNG.normal(0, 3, (20, 4)), [[0] * 4, [1, 2, 2, 0], [-9, 60, 60, 60]]])


def served(folder: Path, kind: str, classes: int = 0, **says: Any) -> Job:
    model = f"classes = {classes}" if classes else ""
    job = loaded(folder, job_toml(["a", "b"], kind, model=model))
    return msgspec.structs.replace(job, serve=Serve(("clinic",), **says))


def answered(job: Job, outputs: Reals, evaluators: int = 2) -> Reals:
    """What a client has in the end."""
    words = encode(outputs, F)
    found = compute(lambda role: answer(job, secret(role, words)), evaluators)
    assert found.shape == (len(outputs), answer_width(job))
    return values(job, found)


def chances(outputs: Reals) -> Reals:
    """Of the class 1 of one logit, or of each class."""
    if outputs.shape[1] == 1:
        return 1 / (1 + np.exp(-outputs))
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_number_is_the_output_itself(tmp_path: Path) -> None:
    found = answered(served(tmp_path, "linear"), LOGITS)
    np.testing.assert_array_equal(found, np.rint(LOGITS / UNIT) * UNIT)
    scores = answered(served(tmp_path, "softmax", 4), SCORES)
    np.testing.assert_array_equal(scores, np.rint(SCORES / UNIT) * UNIT)


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize(
    ("kind", "classes", "outputs"), [("logistic", 0, LOGITS), ("softmax", 4, SCORES)]
)
def test_a_probability_is_that_of_numpy(
    tmp_path: Path, kind: str, classes: int, outputs: Reals, evaluators: int
) -> None:
    job = served(tmp_path, kind, classes, answer="probability")
    found = answered(job, outputs, evaluators)
    np.testing.assert_allclose(found, chances(outputs), atol=TOLERANCE)
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_class_is_that_of_numpy(tmp_path: Path, evaluators: int) -> None:
    """Of equal scores the first; a logit of 0 is of class 1, as for an opened model."""
    job = served(tmp_path, "logistic", answer="class")
    two = answered(job, LOGITS, evaluators)
    np.testing.assert_array_equal(two[:, 0], LOGITS[:, 0] >= 0)
    job = served(tmp_path, "softmax", 4, answer="class")
    several = answered(job, SCORES, evaluators)
    np.testing.assert_array_equal(several[:, 0], SCORES.argmax(axis=1))


def expected_words(words: Words, decimals: int) -> list[int]:
    return [(int(word) * 10**decimals + (1 << (F - 1))) >> F for word in words.reshape(-1)]


@pytest.mark.parametrize("decimals", [0, 1, 3, 6])
def test_numbers_are_rounded_exactly(tmp_path: Path, decimals: int) -> None:
    """Halves go up, what is a unit less goes down, and the ends of the range fit."""
    job = served(tmp_path, "linear", decimals=decimals)
    halves = [(k << F) // (2 * 10**decimals) for k in range(-9, 10)]
    edges = [half + unit for half in halves for unit in (-1, 0, 1)]
    most = most_of_ring(job) << F
    drawn = np.random.default_rng(decimals).integers(-most, most, 40)
    words = np.array([*edges, most, -most, *drawn], np.int64)[:, None]
    found = compute(lambda role: answer(job, secret(role, words)), 3)
    assert found.reshape(-1).tolist() == expected_words(words, decimals)
    np.testing.assert_array_equal(values(job, found), found / 10**decimals)


@pytest.mark.parametrize(
    ("kind", "classes", "outputs"), [("logistic", 0, LOGITS), ("softmax", 4, SCORES)]
)
def test_a_probability_leaves_as_the_rounding_of_what_was_computed(
    tmp_path: Path, kind: str, classes: int, outputs: Reals
) -> None:
    whole = served(tmp_path, kind, classes, answer="probability")
    job = served(tmp_path, kind, classes, answer="probability", decimals=2)
    words = encode(outputs, F)

    def program(role: Role) -> Any:
        fine = answer(whole, secret(role, words))
        return shares_of(fine), shares_of(rounded(fine, F, 2))

    results = run_lockstep(program, 2)
    fine, coarse = (
        results[0][which][0] - sum(result[which][1] for result in results[:-1])
        for which in range(2)
    )
    assert coarse.reshape(-1).tolist() == expected_words(fine, 2)
    found = answered(job, outputs)
    np.testing.assert_array_equal(found, np.rint(found * 100) / 100)
    np.testing.assert_allclose(found, chances(outputs), atol=0.005 + TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "says", "words"),
    [
        ("linear", {}, [[0], [1 << 62], [0]]),
        ("linear", {"decimals": 2}, [[0], [1 << 40], [0]]),
        ("logistic", {"answer": "probability"}, [[0], [(1 << F) + (1 << 13)], [1 << F]]),
        ("logistic", {"answer": "probability", "decimals": 1}, [[0], [12], [10]]),
        ("logistic", {"answer": "class"}, [[0], [2], [1]]),
        ("logistic", {"answer": "class"}, [[0], [-1], [1]]),
    ],
)
def test_an_impossible_answer_is_none(
    tmp_path: Path, kind: str, says: dict[str, Any], words: list[list[int]]
) -> None:
    job = served(tmp_path, kind, **says)
    with pytest.raises(QueryError, match="no answer to row 2 of the question"):
        values(job, np.array(words, np.int64))
    values(job, np.array([words[0], words[2]], np.int64))


COSTS: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "number": ({}, 0, 0, 32),
    "number, 2 decimals": ({"decimals": 2}, 6, 144, 208),
    "probability": ({"answer": "probability"}, 6, 344, 784),
    "probability, 2 decimals": ({"answer": "probability", "decimals": 2}, 12, 488, 928),
    "class": ({"answer": "class"}, 4, 120, 384),
}
"""Of a row of one logit: rounds, bytes that an evaluator sends, and the dealer to both."""


@pytest.mark.parametrize("name", COSTS)
def test_rounds_and_bytes_of_a_row(tmp_path: Path, name: str) -> None:
    says, *expected = COSTS[name]
    job, net = served(tmp_path, "logistic", **says), LockstepLoopback()

    def program(role: Role) -> int:
        x = secret(role, np.array([[1 << F]]), owner=0)
        role.finish()
        before = role.rounds
        shares_of(answer(job, x))
        role.finish()
        return role.rounds - before

    def sent(sender: str, *receivers: str) -> int:
        frames = [frame for to in receivers for frame in net.transcript.get((sender, to), [])]
        return sum(len(label) + len(payload) for label, payload in frames)

    rounds, same, _ = run_lockstep(program, 2, net=net)
    assert rounds == same
    assert [rounds, sent("p1", "p0"), sent("dealer", "p0", "p1")] == expected
