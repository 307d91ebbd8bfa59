"""Optimizers over shares: every public factor is folded into one truncation per parameter.

A gradient arrives as summands with more bits than a weight and with a public factor (the mean over
the batch). Learning rate and factor become one integer mantissa and one shift; momentum and weight
decay enter the same sum. Small parameters with one scale are updated as one vector, and the updates
of all parameters are sent together: two rounds per step, shared with the last backward products.

This module has SGD; rules that divide by the root of a mean square are in `adaptive`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from mpc_train.training.optimizers.folding import coefficients
from mpc_train.training.optimizers.gradients import (
    Gradients,
    Seen,
    Take,
    bundles,
    exact_limit,
    shapes_of,
    shown,
    take_gradients,
    taken_apart,
    together,
    unseen,
)
from protocols.arrays import Shape
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares import arithmetic
from protocols.shares.masked import Masked

Clip = Callable[[Gradients], Gradients]


class Optimizer(Protocol):
    """What the training loop needs of a rule."""

    def step(self, rate: Fraction, clip: Clip | None = None, take: Take = take_gradients) -> None:
        """Update every parameter from its gradient, as `take` gives it, and drop the gradient."""

    def state(self) -> dict[str, Masked]:
        """The shared state by name, for checkpoints."""

    def numbers(self) -> dict[str, Fraction]:
        """The public part of the state by name, the same at every node."""

    def restore(self, state: Mapping[str, Masked], numbers: Mapping[str, Fraction]) -> None:
        """Continue from the results of `state` and `numbers`, with the tensors under fresh
        masks."""


class SGD:
    """w ← w − rate · u with v ← momentum · v + gradient + decay · w, as in torch.optim.SGD.

    u is v, with Nesterov's look-ahead gradient + decay · w + momentum · v. The state kept for a
    parameter is rate · v at the scale of the weights; when the rate changes, it is rescaled along
    with the momentum. Nesterov truncates state and update, in the same rounds with twice the bytes.
    seen: called with what a step rounds.
    """

    def __init__(
        self,
        parameters: Mapping[str, MaskedTensor],
        *,
        momentum: Fraction = Fraction(0),
        weight_decay: Fraction = Fraction(0),
        nesterov: bool = False,
        seen: Seen = unseen,
    ) -> None:
        self._parameters = dict(parameters)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._nesterov = nesterov and momentum > 0
        self._seen = seen
        self._velocity: dict[str, Masked] = {}
        self._rate = Fraction(0)

    def step(self, rate: Fraction, clip: Clip | None = None, take: Take = take_gradients) -> None:
        """Update every parameter from its gradient, as `take` gives it, and drop the gradient."""
        gradients = take(self._parameters)
        if clip is not None:
            gradients = clip(gradients)
        for bundle in bundles(gradients):
            change = self._change(bundle, gradients, rate)
            for name, mine in taken_apart(change, self._shapes(bundle)).items():
                parameter = self._parameters[name]
                parameter.copy_(parameter.with_value(parameter.masked() - mine))
        self._rate = rate

    def state(self) -> dict[str, Masked]:
        """rate · v of each parameter, at the scale of the weights; empty without momentum."""
        return dict(self._velocity)

    def numbers(self) -> dict[str, Fraction]:
        """The learning rate by which the state is multiplied."""
        return {"rate": self._rate}

    def restore(self, state: Mapping[str, Masked], numbers: Mapping[str, Fraction]) -> None:
        self._velocity, self._rate = dict(state), numbers["rate"]

    def _shapes(self, names: Sequence[str]) -> dict[str, Shape]:
        return shapes_of({name: self._parameters[name] for name in names})

    def _change(self, names: Sequence[str], gradients: Gradients, rate: Fraction) -> Masked:
        """rate · u of a bundle as a masked value at scale 2^f."""
        momentum = self._momentum
        velocity = change = self._sum(names, gradients, rate, Fraction(1), momentum)
        if self._nesterov:
            change = self._sum(names, gradients, rate, 1 + momentum, momentum * momentum)
        if momentum:
            self._velocity.update(taken_apart(velocity, self._shapes(names)))
        return change

    def _sum(
        self,
        names: Sequence[str],
        gradients: Gradients,
        rate: Fraction,
        weight: Fraction,
        kept: Fraction,
    ) -> Masked:
        """rate · (weight · (gradient + decay · w) + kept · v)."""
        first, parameter = gradients[names[0]], self._parameters[names[0]]
        previous = kept / self._rate if names[0] in self._velocity else Fraction(0)
        whole, shift, decay, carried = coefficients(
            rate, weight, first.factor, first.bits - parameter.bits, self._weight_decay, previous
        )
        mine = {name: gradients[name] for name in names}
        shown(self._seen, mine, [whole] * len(mine), 1 << arithmetic.HEADROOM_BITS)
        total = together([gradient.summands for gradient in mine.values()]).scale(whole)
        if carried:
            state = together([self._velocity[name].shares() for name in names])
            total = total + state.scale(carried)
        if decay:
            values = together([self._parameters[name].masked().shares() for name in names])
            total = total + values.scale(decay)
        rounded = arithmetic.truncate(total, shift)
        self._seen(rounded, exact_limit(shift))
        return rounded
