"""Local steps are those of torch.optim."""

from __future__ import annotations

import pytest
import torch

from mpc_train.federated.steps import steps_of


@pytest.mark.parametrize("name, momentum", [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_steps_are_those_of_torch(name: str, momentum: float) -> None:
    torch.manual_seed(1)
    mine = [torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)]
    theirs = [one.detach().clone().requires_grad_() for one in mine]
    unused = torch.randn(2, requires_grad=True)
    steps = steps_of(name, [*mine, unused], 0.1, momentum)
    optimizer: torch.optim.Optimizer
    if name == "adam":
        optimizer = torch.optim.Adam(theirs, lr=0.1)
    else:
        optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=momentum)
    before = unused.detach().clone()
    for _ in range(7):
        rows = torch.randn(5, 4)
        for weights, bias in (mine, theirs):
            (torch.tanh(rows @ weights + bias) ** 2).sum().backward()
        steps.step()
        optimizer.step()
        optimizer.zero_grad()
        assert all(one.grad is None for one in mine)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    assert torch.equal(unused, before)
