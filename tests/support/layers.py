"""Runs of layers over shares, held against torch in float64.

`InsecureRun` puts every tensor of a test into every role's hands and opens what comes out: for
tests of the arithmetic only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from protocols.arrays import Reals
from protocols.crypten_tensor import dispatch  # noqa: F401  registers the functions
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of

F = 20
UNIT = 2.0**-F
Forward = Callable[..., MaskedTensor]


def opened(results: Sequence[Any]) -> Reals:
    """The real numbers of what `part` returned at all roles."""
    return combine_masked(results) * UNIT


def part(tensor: MaskedTensor) -> Any:
    """What this role holds of a tensor, at scale 2^F without a factor."""
    return shares_of(tensor.plain_factor().in_full().masked())


def forward_and_gradients(
    forward: Forward,
    inputs: Mapping[str, Reals],
    upstream: Reals | None = None,
    evaluators: int = 2,
) -> tuple[Reals, dict[str, Reals]]:
    """forward(**inputs) over shares, and the gradients of sum(output · upstream) by input."""

    def program(role: Role) -> Any:
        attach(role, F)
        tensors = {
            name: MaskedTensor(value, src=0, requires_grad=True) for name, value in inputs.items()
        }
        output = forward(**tensors)
        found = [part(output.detach())]
        if upstream is not None:
            output.backward(MaskedTensor(upstream, src=1))
            for name, tensor in tensors.items():
                if tensor.grad is None:
                    raise AssertionError(f"no gradient for {name}")
                found.append(part(tensor.grad))
        return found

    results = run_lockstep(program, evaluators)
    columns = [opened([result[i] for result in results]) for i in range(len(results[0]))]
    return columns[0], dict(zip(inputs, columns[1:], strict=False))


def torch_forward_and_gradients(
    forward: Callable[..., Any], inputs: Mapping[str, Reals], upstream: Reals | None
) -> tuple[Reals, dict[str, Reals]]:
    """The same in float64 PyTorch, on inputs rounded as the shares are."""
    import torch

    tensors = {
        name: torch.tensor(np.rint(value / UNIT) * UNIT, dtype=torch.float64, requires_grad=True)
        for name, value in inputs.items()
    }
    output = forward(**tensors)
    if upstream is None:
        return output.detach().numpy(), {}
    output.backward(torch.tensor(np.rint(upstream / UNIT) * UNIT))
    return output.detach().numpy(), {
        name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None
    }
