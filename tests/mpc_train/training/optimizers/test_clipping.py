"""Clipped gradients against PyTorch: twenty steps, some clipped and some not."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from mpc_train.base.bounds import norm_bits
from mpc_train.training.optimizers.adaptive import Adaptive
from mpc_train.training.optimizers.clipping import ClipNorm, ClipValue
from mpc_train.training.optimizers.gradients import take_gradients
from mpc_train.training.optimizers.moments import Moments
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

RATES = [Fraction(1, 4)] * STEPS
LIMIT = Fraction(8)


class Clipped(SGD):
    """SGD whose step has the clip that the training loop would pass."""

    def __init__(self, named: Any, clip: Any) -> None:
        super().__init__(named)
        self._clip = clip

    def step(self, rate: Fraction, clip: Any = None, take: Any = take_gradients) -> None:
        super().step(rate, self._clip, take)


@pytest.mark.parametrize(
    ("kind", "evaluators"),
    [
        *(("value", 2), ("norm", 3)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("value", 3), ("norm", 2))),
    ],
)
def test_twenty_steps(kind: str, evaluators: int) -> None:
    task = problem((6, 3), seed=2)
    make, limit, plain = {
        "value": (
            ClipValue,
            Fraction(1, 20),
            lambda p: torch.nn.utils.clip_grad_value_(p, 0.05),
        ),
        "norm": (ClipNorm, Fraction(1, 3), lambda p: torch.nn.utils.clip_grad_norm_(p, 1 / 3)),
    }[kind]
    clip = make(limit, fraction_bits=BITS, gradient_limit=LIMIT)
    found = over_shares(
        task, lambda named: Clipped(named, clip), softmax_gradient, RATES, evaluators
    )

    def clear(clipping: Any) -> Any:
        return in_the_clear(
            task, lambda p: torch.optim.SGD(p, lr=0.1), cross_entropy, RATES, clipping
        )

    twin = clear(plain)
    # Softmax is off by 2^-12 through inputs up to 4; the norm's factor by 2^-10 of a step.
    factor = 2**-9.8 if kind == "norm" else 0.0
    allowed = float(sum(RATES)) * (4 * 2**-12 + factor * float(limit) + 8 * UNIT)
    assert worst(found, twin) <= allowed
    assert worst(clear(None), twin) > 3 * allowed


@pytest.mark.parametrize("evaluators", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_adam_after_a_clip_by_value(evaluators: int) -> None:
    """Clipped gradients have few bits; what Adam keeps of its mean is exact all the same."""
    task, rates = problem((6, 3), seed=2), [Fraction(1, 100)] * STEPS
    clip = ClipValue(Fraction(1, 20), fraction_bits=BITS, gradient_limit=LIMIT)
    decay = Fraction(1, 10)
    moments = Moments(Fraction(9, 10), Fraction(99, 100), Fraction(1, 100_000), weight_decay=decay)

    class ClippedAdam(Adaptive):
        def step(self, rate: Fraction, _: Any = None, take: Any = take_gradients) -> None:
            super().step(rate, clip, take)

    found = over_shares(
        task,
        lambda named: ClippedAdam(named, moments, fraction_bits=BITS, gradient_limit=LIMIT),
        softmax_gradient,
        rates,
        evaluators,
    )

    def twin(first: float, decay: float) -> Any:
        floats: dict[str, Any] = {
            "first": first,
            "second": 0.99,
            "epsilon": 1e-5,
            "weight_decay": decay,
        }
        return in_the_clear(
            task,
            lambda p: RootAdaptive(p, 0.01, **floats),
            cross_entropy,
            rates,
            lambda p: torch.nn.utils.clip_grad_value_(p, 0.05),
        )

    # As for Adam without a clip; gradients off by 2^-12 where they are of 1/20 at most.
    allowed = 2 * (float(sum(rates)) * (2**-10.8 + 2**-11 + 20 * 2**-12) + STEPS * UNIT)
    assert worst(found, twin(0.9, 0.1)) <= allowed
    assert worst(twin(0.95, 0.1), twin(0.9, 0.1)) > 3 * allowed
    assert worst(twin(0.9, 0.0), twin(0.9, 0.1)) > 3 * allowed


def test_a_norm_below_the_rounding_is_refused() -> None:
    assert norm_bits(100_000, Fraction(8), Fraction(1), 26) >= 30
    with pytest.raises(RangeError, match="norm"):
        norm_bits(10**6, Fraction(1024), Fraction(1, 1000), 26)
