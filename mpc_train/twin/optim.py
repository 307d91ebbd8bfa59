"""The adaptive rules of `adaptive` in the clear, with ε² under the root, for the plaintext twin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class RootAdaptive(torch.optim.Optimizer):
    """Adam (`corrected`), AdamW (`decoupled`) and RMSprop (first = 0, not `corrected`)."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        first: float,
        second: float,
        epsilon: float,
        corrected: bool = True,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self._first, self._second, self._epsilon = first, second, epsilon
        self._corrected, self._momentum = corrected, momentum
        self._decay, self._decoupled = weight_decay, decoupled
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, float(group["lr"]))

    def _update(self, parameter: torch.Tensor, rate: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if self._decay and not self._decoupled:
            gradient = gradient + self._decay * parameter
        for name in ("mean", "square", "change"):
            state.setdefault(name, torch.zeros_like(parameter))
        mean, square = state["mean"], state["square"]
        mean.mul_(self._first).add_(gradient, alpha=1 - self._first)
        square.mul_(self._second).add_(gradient**2, alpha=1 - self._second)
        if self._corrected:
            mean = mean / (1 - self._first**self._steps)
            square = square / (1 - self._second**self._steps)
        change = rate * mean / torch.sqrt(square + self._epsilon**2)
        if self._momentum:
            # The state is rate · buffer; a changed rate rescales the buffer's part, as in torch.
            before = state.get("rate", rate)
            change = change + self._momentum * (rate / before) * state["change"]
            state["change"], state["rate"] = change, rate
        if self._decoupled:
            parameter.mul_(1 - rate * self._decay)
        parameter.sub_(change)
