"""A small network trained over shares in one process, and the same in PyTorch beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.training.first_weights import uniform_words
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached

BITS = 20
UNIT = 2.0**-BITS
WIDTHS = (6, 8, 3)
BATCH = 16
STEPS = 20

Shared = Callable[[dict[str, MaskedTensor]], Any]
Gradient = Callable[[MaskedTensor, MaskedTensor], MaskedTensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Weights (words), inputs [steps, batch, features] and labels in the model's shape."""

    widths: tuple[int, ...]
    weights: Mapping[str, np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray


def problem(
    widths: tuple[int, ...] = WIDTHS, label: str = "one-hot", seed: int = 1, steps: int = STEPS
) -> Problem:
    """Rows of a task that a linear rule solves for the most part."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(steps, BATCH, widths[0]))
    rule = generator.normal(size=(widths[0], widths[-1]))
    scores = inputs @ rule + 0.2 * generator.normal(size=(steps, BATCH, widths[-1]))
    if label == "one-hot":
        labels = np.eye(widths[-1])[scores.argmax(-1)]
    elif label == "binary":
        labels = (scores > 0).astype(np.float64)
    elif label == "count":
        labels = generator.poisson(np.exp(np.clip(scores / 3, -2, 1.5))).astype(np.float64)
    else:
        labels = scores / np.abs(scores).max()
    weights = {}
    several = len(widths) > 2
    for index, (ins, outs) in enumerate(pairwise(widths)):
        prefix = f"{2 * index}." if several else ""
        bound = round((1 << BITS) / ins**0.5)
        weights[f"{prefix}weight"] = uniform_words((outs, ins), bound, seed, f"w{index}")
        weights[f"{prefix}bias"] = uniform_words((outs,), bound, seed, f"b{index}")
    rounded = np.rint(inputs * 2.0**BITS) / 2.0**BITS
    return Problem(widths, weights, rounded, labels)


def over_shares(
    task: Problem,
    make: Shared,
    gradient: Gradient,
    rates: list[Fraction],
    evaluators: int,
    observe: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, np.ndarray]:
    """The weights after a step for each batch. make: an optimizer of parameters.

    gradient: the loss's gradient at the model's output, as a tensor to go back from.
    """

    def program(role: Role) -> dict[str, Any]:
        with attached(role, BITS):
            model = Network(layers_of(task.widths), task.weights)
            named = model.parameters
            optimizer = make(named)
            rounds = []
            for number, rate in enumerate(rates):
                role.begin_step(number + 1)
                before = role.rounds
                x, y = (
                    MaskedTensor(torch.from_numpy(values[number]), src=0)
                    for values in (task.inputs, task.labels)
                )
                outputs = model(x)
                outputs.backward(gradient(outputs, y))
                optimizer.step(rate)
                role.finish()
                rounds.append(role.rounds - before)
            if observe is not None:
                observe({"role": role, "rounds": rounds, "optimizer": optimizer})
            return {name: shares_of(p.masked()) for name, p in named.items()}

    results = run_lockstep(program, evaluators)
    return {
        name: decode(combine_masked([result[name] for result in results]), BITS)
        for name in results[0]
    }


def in_the_clear(
    task: Problem,
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    loss: Loss,
    rates: list[Fraction],
    clip: Callable[[list[torch.nn.Parameter]], object] | None = None,
) -> dict[str, np.ndarray]:
    layers: list[torch.nn.Module] = []
    for ins, outs in pairwise(task.widths):
        layers += [torch.nn.Linear(ins, outs), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1]) if len(task.widths) > 2 else layers[0]
    module = module.double()
    module.load_state_dict({n: torch.from_numpy(w * UNIT) for n, w in task.weights.items()})
    optimizer = make(list(module.parameters()))
    for number, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        inputs, labels = (torch.from_numpy(values[number]) for values in (task.inputs, task.labels))
        loss(module(inputs), labels).backward()
        if clip is not None:
            clip(list(module.parameters()))
        optimizer.step()
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def softmax_gradient(outputs: MaskedTensor, labels: MaskedTensor) -> MaskedTensor:
    """The gradient of mean cross-entropy with one-hot labels."""
    return outputs.softmax(-1).sub(labels).mul(Fraction(1, labels.shape[0]))


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, labels)


def worst(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
