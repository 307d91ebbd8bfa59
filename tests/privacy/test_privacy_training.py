"""The view of corrupted evaluators does not depend on the data: whole steps of a network."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.training.first_weights import uniform_words
from mpc_train.training.losses import CrossEntropy
from mpc_train.training.optimizers.sgd import SGD
from mpc_train.training.trainer import Trainer
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from tests.support.loopback import combine_masked, shares_of
from tests.support.privacy import ONE, F, honest_owner, same_views
from tests.support.transcript_first import run_scripted

WIDTHS = (5, 4, 3)


def training_step(role: Role, rows: np.ndarray, labels: np.ndarray, owner: int, steps: int) -> Any:
    """Steps of an MLP with momentum and weight decay, over the CrypTen layer."""
    dispatch.install()
    attach(role, F)
    weights = {
        f"{2 * i}.{kind}": uniform_words(
            (WIDTHS[i + 1], WIDTHS[i])[: 1 if kind == "bias" else 2], ONE // 2, 1, f"{i}{kind}"
        )
        for i in range(2)
        for kind in ("weight", "bias")
    }
    model = Network(layers_of(WIDTHS), weights)
    named = model.parameters
    optimizer = SGD(named, momentum=Fraction(9, 10), weight_decay=Fraction(1, 100))
    trainer = Trainer(model, CrossEntropy(), named, optimizer)
    x = MaskedTensor(rows, src=owner, shape=rows.shape)
    y = MaskedTensor(labels, src=owner, shape=labels.shape)
    for step in range(steps):
        role.begin_step(step + 1)
        trainer.step(x, y, Fraction(1, 10))
        role.finish()
    return [shares_of(parameter.masked()) for parameter in named.values()]


def plain_training(rows: np.ndarray, labels: np.ndarray, steps: int) -> list[np.ndarray]:
    import torch

    layers: list[Any] = []
    for i in range(2):
        layer = torch.nn.Linear(WIDTHS[i], WIDTHS[i + 1], dtype=torch.float64)
        for kind, target in (("weight", layer.weight), ("bias", layer.bias)):
            start = uniform_words(tuple(target.shape), ONE // 2, 1, f"{i}{kind}") / ONE
            target.data = torch.from_numpy(start)
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(rows)), torch.from_numpy(labels)
        )
        loss.backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("evaluators", "corrupted"), [(2, (0,)), (2, (1,)), (3, (1,)), (3, (0, 2))]
)
def test_training_steps(evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Two steps of the MLP: the weights are right and the view is the same for all data."""
    owner = honest_owner(evaluators, corrupted)
    views = []
    for coins in range(3):
        rng = np.random.default_rng(coins)
        rows = rng.uniform(-2, 2, (6, WIDTHS[0]))
        labels = np.eye(WIDTHS[-1])[rng.integers(0, WIDTHS[-1], 6)]

        def program(role: Role, rows: Any = rows, labels: Any = labels) -> Any:
            return training_step(role, rows, labels, owner, 2)

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        for got, expected in zip(
            zip(*results, strict=True), plain_training(rows, labels, 2), strict=True
        ):
            np.testing.assert_allclose(combine_masked(got) / ONE, expected, atol=2**-10)
        views.append(view)
    same_views(views)


def test_encoding_of_the_training_data_is_what_is_shared() -> None:
    """The rows of the training test really enter: other rows, other weights."""
    rows = np.random.default_rng(0).uniform(-2, 2, (6, WIDTHS[0]))
    labels = np.eye(WIDTHS[-1])[[0, 1, 2, 0, 1, 2]]
    assert not np.array_equal(encode(rows, F), encode(-rows, F))
    first, second = plain_training(rows, labels, 2), plain_training(-rows, labels, 2)
    assert not np.allclose(first[0], second[0], atol=2**-8)
