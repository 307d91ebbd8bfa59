"""By how many bits the steps of an optimizer round, without running them: bytes follow from that.

An opened value that is rounded off by s bits costs by its s. In an optimizer's step that is decided
by public numbers alone: the learning rate and, in an adaptive rule, the running sums of its
weights, which change from step to step. The numbers here are those of the real optimizer; what a
step's gradients have is noted while a step is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mpc_train.training.optimizers.folding import brought_together, coefficients
from mpc_train.training.optimizers.moments import (
    SQUARE_SHIFT,
    Moments,
    Numbers,
    extra_bits,
    root_numbers,
    stepped,
)
from mpc_train.training.setup import gradient_limit, moments
from protocols.functions.inverse_root import folded
from protocols.ring.rational import HEADROOM_BITS, root

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.training.optimizers.sgd import Optimizer

Rounding = tuple[object, ...]
"""What decides how many bytes a step's optimizer sends."""
Limits = tuple[int, ...]
"""With what the range guard will compare gradients, which no two steps of an adaptive rule have in
common."""
Running = dict[str, Fraction]
"""The public state of an optimizer, as it has it."""
Step = tuple[Rounding, Limits, Running]
"""What a step has, and the optimizer's numbers after it."""
Call = tuple[Fraction, Fraction, int, Fraction, Fraction]
"""What `coefficients` is called with besides the rate; the last one is multiplied by the rate of
the step before."""


class Roundings:
    """Those of one optimizer at one node."""

    def __init__(self, job: Job, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._noted: list[Any] = []
        self._after: Callable[[tuple[Any, ...], Running, Fraction], Step]
        self._after = _after_sgd
        self._settings: tuple[Any, ...] = ()
        if job.train.optimizer.name != "sgd":
            self._after = _after_adaptive
            self._settings = moments(job), gradient_limit(job), job.fraction_bits

    def begin_step(self) -> None:
        """A step is run: what it notes replaces what the last one did."""
        self._noted = []

    def note(self, *call: Any) -> None:
        """What a rounding of a step that is run depends on, besides the rate."""
        self._noted.append(call)

    @property
    def rate(self) -> Fraction:
        """That of the last step."""
        return self._optimizer.numbers()["rate"]

    def next(self, rates: Sequence[Fraction]) -> list[Rounding]:
        """Those of the next steps, which have these rates; nothing before a step was run."""
        found, numbers = [], self._optimizer.numbers()
        for rate in rates:
            rounding, _, numbers = self._step(numbers, rate)
            found.append(rounding)
        return found

    def limits(self, most: int, rate: Fraction) -> list[Limits]:
        """Those of the next steps that have the first one's rounding, of at most so many; at least
        one. Steps that are like the last of the list are left out."""
        first, limits, numbers = self._step(self._optimizer.numbers(), rate)
        found = [limits]
        while len(found) < most:
            before = numbers
            rounding, limits, numbers = self._step(numbers, rate)
            if rounding != first:
                break
            found.append(limits)
            if numbers == before:
                return found + [limits] * (most - len(found))
        return found

    def skip(self, count: int, rate: Fraction) -> None:
        """Go on as after these steps."""
        numbers = self._optimizer.numbers()
        for _ in range(count):
            before = numbers
            numbers = self._step(numbers, rate)[-1]
            if numbers == before:
                break
        self._optimizer.restore(self._optimizer.state(), numbers)

    def _step(self, numbers: Running, rate: Fraction) -> Step:
        if not self._noted:
            return (), (), numbers
        return self._after((*self._settings, tuple(self._noted)), numbers, rate)


def _after_sgd(settings: tuple[Any, ...], numbers: Running, rate: Fraction) -> Step:
    return *_sgd(settings[0], numbers["rate"], rate), {"rate": rate}


@lru_cache(4096)
def _sgd(calls: tuple[Call, ...], before: Fraction, rate: Fraction) -> tuple[Rounding, Limits]:
    """As `SGD.step`."""
    found, limits = [], []
    for weight, factor, excess_bits, decay, kept in calls:
        whole, shift, *others = coefficients(
            rate, weight, factor, excess_bits, decay, kept / before
        )
        found.append((shift, *map(bool, (whole, *others))))
        limits.append((1 << HEADROOM_BITS) // abs(whole) if whole else 0)
    return tuple(found), tuple(limits)


def _after_adaptive(settings: tuple[Any, ...], numbers: Running, rate: Fraction) -> Step:
    rounding, limits, found = _adaptive(*settings, Numbers(**numbers), rate)
    return (
        rounding,
        limits,
        {
            "square_scale": found.square_scale,
            "square_sum": found.square_sum,
            "mean_sum": found.mean_sum,
            "mean_scale": found.mean_scale,
            "rate": found.rate,
        },
    )


@lru_cache(1 << 16)
def _adaptive(
    rule: Moments,
    limit: Fraction,
    fraction_bits: int,
    calls: tuple[tuple[Sequence[Fraction], int], ...],
    numbers: Numbers,
    rate: Fraction,
) -> tuple[Rounding, Limits, Numbers]:
    """As `Adaptive.step`."""
    following, halvings = stepped(numbers, rule, limit)
    scale = root(following.square_scale * (1 << SQUARE_SHIFT))
    following = following.at(rate, numbers.mean_scale if rule.first else scale)
    mean_sum = following.mean_sum if rule.corrected else Fraction(1)
    mean_square, _, where = root_numbers(rule, following, limit)
    extra = extra_bits(rule, rate, fraction_bits)
    wanted = rate * root(mean_square) * (1 << (fraction_bits + extra))
    moved = folded(wanted / (following.mean_scale * mean_sum), where)[1]
    shifts, limits = [], []
    for finenesses, result_bits in calls:
        wholes, shift = brought_together(finenesses, scale, limit)
        most = 1 << min(HEADROOM_BITS, result_bits + shift)
        shifts.append(shift)
        limits += [most // whole for whole in wholes]
    return (halvings, *shifts, where, moved, extra), tuple(limits), following
