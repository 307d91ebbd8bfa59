"""Programs whose views by corrupted evaluators must not depend on the secrets of the others.

`Case` is a program of one secret tensor and what has to come out of it; `check_case` runs it on six
secrets under one view that was fixed before (`transcript_first`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from protocols.arrays import Words
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from protocols.shares.masked import Masked
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.transcript_first import View, run_scripted

F = 20
ONE = 1 << F
CORRUPTED = [
    (2, (0,)),
    (2, (1,)),
    (3, (0,)),
    (3, (1,)),
    (3, (2,)),
    (3, (0, 1)),
    (3, (0, 2)),
    (3, (1, 2)),
]

Outputs = list[np.ndarray]


def fixed(x: Masked) -> Masked:
    """x as it is straight after a truncation, with its early form."""
    return truncate(x.scale(ONE).shares(), F)


@dataclass(frozen=True)
class Case:
    """A program of one secret tensor, and what has to come out of it."""

    draw: Callable[[np.random.Generator], Words]
    program: Callable[[Masked], Sequence[Masked]]
    check: Callable[[Words, Outputs], None]


def words_in(low: int, high: int, *shape: int) -> Callable[[np.random.Generator], Words]:
    return lambda rng: rng.integers(low, high, shape, np.int64)


def equals(*expected: Callable[[Words], Words]) -> Callable[[Words, Outputs], None]:
    def check(x: Words, outputs: Outputs) -> None:
        for function, output in zip(expected, outputs, strict=True):
            np.testing.assert_array_equal(output, function(x))

    return check


def near(expected: Callable[[np.ndarray], np.ndarray], bound: float) -> Callable[..., None]:
    def check(x: Words, outputs: Outputs) -> None:
        np.testing.assert_allclose(outputs[0] / ONE, expected(x / ONE), atol=bound, rtol=0)

    return check


def one_up(x: Words, outputs: Outputs) -> None:
    assert set(np.unique(outputs[0] - (x >> F))) <= {0, 1}


def secrets_of(case: Case) -> list[Words]:
    """Different secrets of one shape: some at random, and both ends of the range everywhere."""
    drawn = [case.draw(np.random.default_rng(seed)) for seed in range(4)]
    return [*drawn, np.full_like(drawn[0], max(d.max() for d in drawn)), np.sort(drawn[1], -1)]


def honest_owner(evaluators: int, corrupted: Sequence[int]) -> int:
    return next(i for i in range(evaluators) if i not in corrupted)


def same_views(views: Sequence[View]) -> None:
    for first, second in pairwise(views):
        assert [kind for kind, _ in first] == [kind for kind, _ in second]
        assert first == second


def check_case(case: Case, evaluators: int, corrupted: Sequence[int]) -> None:
    """Six secrets under one view; the honest coins that the view leaves free differ too."""
    views = []
    for coins, value in enumerate(secrets_of(case)):

        def program(role: Role, value: Words = value) -> Any:
            x = secret(role, value, honest_owner(evaluators, corrupted))
            return [shares_of(output) for output in case.program(x)]

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        outputs = [combine_masked(parts) for parts in zip(*results, strict=True)]
        case.check(value, outputs)
        views.append(view)
    same_views(views)
