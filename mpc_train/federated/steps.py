"""Local steps of SGD and Adam, as torch.optim takes them.

torch.optim loads the compiler of PyTorch with its first step, which takes a process from 250 to 500
MB; an owner's process stays small without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Protocol

import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as torch.optim has them."""


class Steps(Protocol):
    """An optimizer of one round."""

    def step(self) -> None:
        """Move the parameters by their gradients, and forget these."""


class Sgd:
    """torch.optim.SGD without weight decay."""

    def __init__(self, parameters: Sequence[torch.Tensor], rate: float, momentum: float) -> None:
        self._parameters, self._rate, self._momentum = parameters, rate, momentum
        self._moved: list[torch.Tensor | None] = [None] * len(parameters)

    @torch.no_grad()
    def step(self) -> None:
        for place, one in enumerate(self._parameters):
            gradient, one.grad = one.grad, None
            if gradient is None:
                continue
            if self._momentum:
                before = self._moved[place]
                if before is None:
                    before = self._moved[place] = gradient.clone()
                else:
                    before.mul_(self._momentum).add_(gradient)
                gradient = before
            one.add_(gradient, alpha=-self._rate)


class Adam:
    """torch.optim.Adam without weight decay."""

    def __init__(self, parameters: Sequence[torch.Tensor], rate: float) -> None:
        self._parameters, self._rate = parameters, rate
        self._means = [torch.zeros_like(one) for one in parameters]
        self._squares = [torch.zeros_like(one) for one in parameters]
        self._counts = [0] * len(parameters)

    @torch.no_grad()
    def step(self) -> None:
        first, second = BETAS
        for place, one in enumerate(self._parameters):
            gradient, one.grad = one.grad, None
            if gradient is None:
                continue
            self._counts[place] += 1
            count, mean, square = self._counts[place], self._means[place], self._squares[place]
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = square.sqrt().div_(sqrt(1 - second**count)).add_(EPSILON)
            one.addcdiv_(mean, root, value=-self._rate / (1 - first**count))


def steps_of(
    optimizer: str, parameters: Sequence[torch.Tensor], rate: float, momentum: float
) -> Steps:
    """The optimizer of a job, new for a round."""
    return Adam(parameters, rate) if optimizer == "adam" else Sgd(parameters, rate, momentum)
