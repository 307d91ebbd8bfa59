"""Optimizers over shares against torch.optim: twenty steps of a small network."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.training.optimizers.adaptive import Adaptive
from mpc_train.training.optimizers.moments import Moments, check_adaptive, least_rate
from mpc_train.training.optimizers.sgd import SGD
from mpc_train.twin.optim import RootAdaptive
from protocols.errors import RangeError
from tests.support.shared_training import (
    BITS,
    STEPS,
    UNIT,
    cross_entropy,
    in_the_clear,
    over_shares,
    problem,
    softmax_gradient,
    worst,
)

LIMIT = Fraction(8)
EPSILON = Fraction(1, 100_000)


def adaptive(named: Any, **changes: Any) -> Adaptive:
    settings: dict[str, Any] = {
        "first": Fraction(9, 10),
        "second": Fraction(999, 1000),
        "epsilon": EPSILON,
    }
    moments = Moments(**(settings | changes))
    return Adaptive(named, moments, fraction_bits=BITS, gradient_limit=LIMIT)


ADAPTIVE: dict[str, tuple[dict[str, Any], Any]] = {
    "adam": ({}, torch.optim.Adam),
    "adam, decay": (
        {"weight_decay": Fraction(1, 10)},
        partial(torch.optim.Adam, weight_decay=0.1),
    ),
    "adam, short memory": (
        {"first": Fraction(1, 2), "second": Fraction(4, 5)},
        partial(torch.optim.Adam, betas=(0.5, 0.8)),
    ),
    "adamw": (
        {"weight_decay": Fraction(1, 2), "decoupled": True},
        partial(torch.optim.AdamW, weight_decay=0.5),
    ),
    "rmsprop": (
        {"first": Fraction(0), "second": Fraction(99, 100), "corrected": False},
        torch.optim.RMSprop,
    ),
    "rmsprop, momentum": (
        {
            "first": Fraction(0),
            "second": Fraction(9, 10),
            "corrected": False,
            "momentum": Fraction(1, 2),
        },
        partial(torch.optim.RMSprop, alpha=0.9, momentum=0.5),
    ),
}

RATES = [Fraction(1, 100)] * 12 + [Fraction(1, 200)] * (STEPS - 12)


def in_floats(changes: dict[str, Any], epsilon: float) -> dict[str, Any]:
    settings = {"first": Fraction(9, 10), "second": Fraction(999, 1000)} | changes
    return {
        name: value if isinstance(value, bool) else float(value) for name, value in settings.items()
    } | {"epsilon": epsilon}


def tolerance(changes: dict[str, Any]) -> float:
    """How far rounding may carry a weight in all steps.

    The quotient by the root is off by 2^-10.8 and v's rounding of 2^-11 at most, of a step that
    is as long as the rate (Adam) or as 1 / sqrt(1 − α) of it (RMSprop, at its first step), and the
    update by a unit. What that does to later gradients is of the same size: twice.
    """
    reach = 1.0
    if not changes.get("corrected", True):
        reach = float(1 - changes["second"]) ** -0.5 / float(1 - changes.get("momentum", 0))
    return 2 * (float(sum(RATES)) * reach * (2**-10.8 + 2**-11) + STEPS * UNIT)


FAST = {("adam", 2), ("adamw", 3), ("rmsprop, momentum", 2)}


@pytest.mark.parametrize(
    ("name", "evaluators"),
    [
        pytest.param(name, n, marks=[] if (name, n) in FAST else pytest.mark.slow)
        for name in ADAPTIVE
        for n in (2, 3)
    ],
)
def test_adaptive_rules_against_their_twins_and_torch(name: str, evaluators: int) -> None:
    changes, plain = ADAPTIVE[name]
    task = problem(seed=2)
    found = over_shares(
        task, lambda named: adaptive(named, **changes), softmax_gradient, RATES, evaluators
    )

    def twin(**others: Any) -> dict[str, np.ndarray]:
        settings = in_floats(changes | others, float(EPSILON))
        return in_the_clear(task, lambda p: RootAdaptive(p, 0.01, **settings), cross_entropy, RATES)

    allowed = tolerance(changes)
    assert worst(found, twin()) <= allowed
    # PyTorch adds ε to the root: the same for Adam, whose mean squares are far above ε² here.
    if changes.get("corrected", True):
        assert worst(found, in_the_clear(task, plain, cross_entropy, RATES)) <= allowed
    # Had one of the settings been ignored, the difference would show.
    for key in ("weight_decay", "momentum"):
        if changes.get(key):
            assert worst(twin(**{key: Fraction(0)}), twin()) > 3 * allowed


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_twin_is_torch_but_for_epsilon(name: str) -> None:
    changes, plain = ADAPTIVE[name]
    task = problem(seed=2)
    settings = in_floats(changes, 1e-12)
    mine = in_the_clear(task, lambda p: RootAdaptive(p, 0.01, **settings), cross_entropy, RATES)
    theirs = in_the_clear(task, lambda p: plain(p, eps=1e-12), cross_entropy, RATES)
    assert worst(mine, theirs) < 1e-7


@pytest.mark.parametrize("evaluators", [2, 3])
def test_sgd_with_nesterov(evaluators: int) -> None:
    task = problem((6, 3), seed=2)
    rates = [Fraction(1, 8)] * 12 + [Fraction(1, 16)] * (STEPS - 12)
    settings: dict[str, Any] = {"momentum": Fraction(3, 4), "weight_decay": Fraction(1, 50)}
    found = over_shares(
        task,
        lambda named: SGD(named, nesterov=True, **settings),
        softmax_gradient,
        rates,
        evaluators,
    )

    def plain(nesterov: bool) -> dict[str, np.ndarray]:
        floats: dict[str, Any] = {name: float(value) for name, value in settings.items()}
        return in_the_clear(
            task,
            lambda p: torch.optim.SGD(p, lr=0.25, nesterov=nesterov, **floats),
            cross_entropy,
            rates,
        )

    # Softmax within 2^-12 and a few units, through inputs up to 4, and momentum 4 in all.
    allowed = float(sum(rates)) * 4 * (2**-12 + 8 * UNIT) + 4 * STEPS * 2 * UNIT
    assert worst(found, plain(True)) <= allowed
    assert worst(plain(False), plain(True)) > 3 * allowed


def test_rounds_do_not_depend_on_tensors_and_the_state_goes_on_elsewhere() -> None:
    seen: list[dict[str, Any]] = []

    def observe(found: dict[str, Any]) -> None:
        if not found["role"].is_dealer:
            seen.append(found)

    narrow, deep = problem((6, 3), seed=2, steps=2), problem((6, 8, 8, 3), seed=2, steps=2)
    for task in (narrow, deep):
        for make in (adaptive, SGD):
            over_shares(task, make, softmax_gradient, RATES[:2], 2, observe)
    extra = [seen[at]["rounds"][1] - seen[at + 2]["rounds"][1] for at in (0, 4)]
    assert extra == [12, 12]
    state = seen[4]["optimizer"].state()
    weights = 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert {name: value.shape for name, value in state.items()} == {
        "square": (weights,),
        "mean": (weights,),
    }
    assert "Masked(shape=" in repr(state)


@pytest.mark.parametrize(
    ("changes", "rate", "word"),
    [
        ({"epsilon": Fraction(1, 10**8)}, Fraction(1, 100), "epsilon"),
        ({"first": Fraction(99, 100), "second": Fraction(9, 10)}, Fraction(1, 100), "betas"),
        ({}, Fraction(1), "learning rate"),
        (
            {"weight_decay": Fraction(1), "decoupled": True},
            Fraction(1, 20),
            "weight_decay",
        ),
    ],
)
def test_what_the_ring_cannot_hold_is_said_before(
    changes: dict[str, Any], rate: Fraction, word: str
) -> None:
    settings = {
        "first": Fraction(9, 10),
        "second": Fraction(999, 1000),
        "epsilon": EPSILON,
    } | changes
    with pytest.raises(RangeError, match=word):
        check_adaptive(Moments(**settings), rate, BITS, LIMIT)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop, momentum"])
def test_the_least_rate_is_one_that_steps_can_use(name: str) -> None:
    """A schedule that ends in nothing, or a warm-up that begins there, does not end a run."""
    task, changes = problem((6, 3), seed=2, steps=3), ADAPTIVE[name][0]
    settings = {"first": Fraction(9, 10), "second": Fraction(999, 1000), "epsilon": EPSILON}
    least = least_rate(Moments(**(settings | changes)), BITS, LIMIT)
    assert Fraction(1, 1 << BITS + 2) <= least <= Fraction(1, 1 << BITS - 2)
    found = over_shares(
        task, lambda named: adaptive(named, **changes), softmax_gradient, [least] * 3, 2
    )
    start = {name: words * UNIT for name, words in task.weights.items()}
    # Steps of up to 1 / sqrt(1 − α) rates, and a unit of rounding each.
    assert worst(found, start) <= 3 * (float(least) * 32 + UNIT)
    with pytest.raises(RangeError, match="does not change weights"):
        check_adaptive(Moments(**(settings | changes)), Fraction(1, 1 << BITS + 1), BITS, LIMIT)


class Restarted:
    """An optimizer that is thrown away after each step; the next one is given its state."""

    def __init__(self, named: Any, make: Any) -> None:
        self._named, self._make, self._inner = named, make, make(named)

    def step(self, rate: Fraction) -> None:
        self._inner.step(rate)
        state = self._inner.state()
        if isinstance(self._inner, Adaptive):
            after = self._make(self._named)
            after.restore(state, self._inner.numbers())
        else:
            after = self._make(self._named)
            after.restore(state, self._inner.numbers())
        self._inner = after


@pytest.mark.parametrize("name", ["adam", "rmsprop, momentum", "sgd"])
def test_a_state_that_was_saved_goes_on(name: str) -> None:
    task = problem((6, 3), seed=2, steps=3)

    def make(named: Any) -> Any:
        if name == "sgd":
            return SGD(named, momentum=Fraction(3, 4), nesterov=True)
        return adaptive(named, **ADAPTIVE[name][0])

    rates = [Fraction(1, 100), Fraction(1, 100), Fraction(1, 200)]
    whole = over_shares(task, make, softmax_gradient, rates, 2)
    parts = over_shares(task, lambda named: Restarted(named, make), softmax_gradient, rates, 2)
    assert worst(whole, parts) == 0
