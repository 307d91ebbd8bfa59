"""Losses over shares against torch.nn: gradients, values, and twenty steps of training."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.training.optimizers.sgd import SGD
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring.fixed_point import decode
from protocols.ring.rational import exponential
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.loss_cases import CASES
from tests.support.shared_training import (
    BITS,
    STEPS,
    UNIT,
    in_the_clear,
    over_shares,
    problem,
    worst,
)
from tests.support.tensors import attached


def task_of(label: str) -> Any:
    outputs = {"one-hot": 3, "binary": 1, "real": 2, "count": 1}[label]
    return problem((6, outputs), label, seed=3)


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_gradient_and_value(name: str, evaluators: int) -> None:
    loss, plain, label, error = CASES[name]
    labels = task_of(label).labels[:2].reshape(-1, task_of(label).widths[-1])
    generator = np.random.default_rng(7)
    outputs = np.rint(generator.uniform(-2, 2, labels.shape) / UNIT) * UNIT
    if label == "real":
        outputs[0] = np.rint(labels[0] / UNIT) * UNIT  # an error of nothing
    labels = np.rint(labels / UNIT) * UNIT

    def program(role: Role) -> Any:
        with attached(role, BITS):
            z = MaskedTensor(torch.from_numpy(outputs), src=0)
            y = MaskedTensor(torch.from_numpy(labels), src=1)
            gradient, value = loss.gradient(z, y), loss.value(z, y)
            factor = float(gradient.factor)
            return shares_of(gradient.masked()), factor, shares_of(value.total), value.count

    results = run_lockstep(program, evaluators)
    gradient = decode(combine_masked([r[0] for r in results]), BITS) * results[0][1]
    value = decode(combine_masked([r[2] for r in results]), BITS) / results[0][3]

    z = torch.from_numpy(outputs).requires_grad_()
    expected = plain(z, torch.from_numpy(labels))
    expected.backward()
    assert z.grad is not None
    allowed = (error + 4 * UNIT) * results[0][1]
    np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=0, atol=allowed)
    # Values: log and softplus within 2^-10, products of outputs up to 2.
    rough = {"real": 8 * UNIT, "binary": 2**-12, "one-hot": 3 * 2**-10, "count": 4 * error}[label]
    assert value == pytest.approx(float(expected.detach()), abs=rough)


@pytest.mark.parametrize(
    ("name", "evaluators"),
    [
        pytest.param(name, n, marks=[] if (name, n) in {("huber", 2)} else pytest.mark.slow)
        for name in CASES
        for n in (2, 3)
    ],
)
def test_twenty_steps(name: str, evaluators: int) -> None:
    loss, plain, label, error = CASES[name]
    task = task_of(label)
    rates = [Fraction(1, 8)] * STEPS
    found = over_shares(task, SGD, loss.gradient, rates, evaluators)
    twin = in_the_clear(task, lambda p: torch.optim.SGD(p, lr=0.1), plain, rates)
    # The error of a gradient, through inputs up to 4, for all steps, and a few units a step.
    allowed = float(sum(rates)) * 4 * (error + 8 * UNIT) + 4 * STEPS * UNIT
    assert worst(found, twin) <= allowed
    assert worst(twin, {n: w * UNIT for n, w in task.weights.items()}) > 10 * allowed


def test_public_exponentials_are_exact() -> None:
    for value in (Fraction(0), Fraction(3), Fraction(-2), Fraction(17, 2)):
        assert float(exponential(value)) == pytest.approx(np.exp(float(value)), rel=1e-15)
