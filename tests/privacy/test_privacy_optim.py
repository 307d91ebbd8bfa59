"""What corrupted evaluators see of adaptive and clipped steps is the same for all data."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.training.first_weights import uniform_words
from mpc_train.training.losses import Huber
from mpc_train.training.optimizers.adaptive import Adaptive
from mpc_train.training.optimizers.clipping import ClipNorm, ClipValue
from mpc_train.training.optimizers.gradients import Gradients
from mpc_train.training.optimizers.moments import Moments
from mpc_train.training.trainer import Trainer
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

BITS, LIMIT, STEPS = 20, Fraction(8), 2
WIDTHS = (3, 2)


@pytest.mark.parametrize(("evaluators", "corrupted"), [(2, (0,)), (2, (1,)), (3, (0, 2))])
def test_steps_look_the_same_for_all_data(evaluators: int, corrupted: tuple[int, ...]) -> None:
    weights = {
        "weight": uniform_words((2, 3), 1 << BITS, 1, "w"),
        "bias": uniform_words((2,), 1 << BITS, 1, "b"),
    }
    owner = next(i for i in range(evaluators) if i not in corrupted)
    views, found = [], []
    for coins in range(3):
        generator = np.random.default_rng(coins)
        rows, labels = (generator.uniform(-2, 2, (4, width)) * 10.0**-coins for width in WIDTHS)

        def program(role: Role, rows: Any = rows, labels: Any = labels) -> Any:
            with attached(role, BITS):
                model = Network(layers_of(WIDTHS), weights)
                settings: dict[str, Any] = {"fraction_bits": BITS, "gradient_limit": LIMIT}
                moments = Moments(Fraction(9, 10), Fraction(99, 100), Fraction(1, 100_000))
                optimizer = Adaptive(model.parameters, moments, **settings)
                norm = ClipNorm(Fraction(1), **settings)
                value = ClipValue(Fraction(1, 4), **settings)

                def clip(gradients: Gradients) -> Gradients:
                    return value(norm(gradients))

                trainer = Trainer(model, Huber(Fraction(1, 2)), model.parameters, optimizer, clip)
                x = MaskedTensor(torch.from_numpy(rows), src=owner)
                y = MaskedTensor(torch.from_numpy(labels), src=owner)
                for number in range(STEPS):
                    role.begin_step(number + 1)
                    trainer.step(x, y, Fraction(1, 100))
                    role.finish()
                return [shares_of(p.masked()) for p in model.parameters.values()]

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        views.append(view)
        found.append(
            np.concatenate([combine_masked(p).ravel() for p in zip(*results, strict=True)])
        )
    for first, second in pairwise(views):
        assert [kind for kind, _ in first] == [kind for kind, _ in second]
        assert first == second
    start = np.concatenate([words.ravel() for words in weights.values()])
    for words in found:
        moved = np.abs(words - start) / 2.0**BITS
        assert (moved < 0.03).all() and moved.max() > 0.009
    assert not np.array_equal(found[0], found[1])
