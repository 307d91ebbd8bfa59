"""One fault at any frame of a training of ten steps: the right model, or an error with a name."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.training.optimizers.sgd import SGD
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import ProtocolError
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.faulty_net import DAMAGES, LOSSES, Fault, recorded_uses, train
from tests.support.loopback import combine_masked, shares_of
from tests.support.shared_training import BITS, problem, softmax_gradient
from tests.support.tensors import attached

STEPS = 10
WIDTHS = (4, 3)
RATE = Fraction(1, 4)


def program(role: Role) -> dict[str, Any]:
    """Ten steps of gradient descent on a linear classifier with softmax."""
    task = problem(WIDTHS, steps=STEPS)
    with attached(role, BITS):
        model = Network(layers_of(task.widths), task.weights)
        named = model.parameters
        optimizer = SGD(named)
        for number in range(STEPS):
            role.begin_step(number + 1)
            x, y = (
                MaskedTensor(torch.from_numpy(values[number]), src=0)
                for values in (task.inputs, task.labels)
            )
            outputs = model(x)
            outputs.backward(softmax_gradient(outputs, y))
            optimizer.step(RATE)
            role.finish()
        return {name: shares_of(p.masked()) for name, p in named.items()}


def weights(results: list[Any]) -> dict[str, np.ndarray]:
    return {
        name: decode(combine_masked([result[name] for result in results]), BITS)
        for name in results[0]
    }


@cache
def undisturbed() -> tuple[dict[str, np.ndarray], dict[tuple[str, str], list[bytes]]]:
    """The model, and the labels of all frames by direction."""
    with recorded_uses() as uses:
        results, net = train(program)
    assert len(uses.seen) > 500 and not uses.again
    return weights(results), net.labels


def outcome(fault: Fault) -> str:
    """'model' or the name of the error; asserts that the model is right and no mask came twice."""
    right, _ = undisturbed()
    with recorded_uses() as uses:
        try:
            results, net = train(program, fault)
        except ProtocolError as error:
            assert fault.kind in DAMAGES, f"{fault}: {error}"
            assert fault.sender in str(error), f"{fault}: {error}"
            return type(error).__name__
        finally:
            assert not uses.again, f"{fault}: used twice: {uses.again[:3]}"
    assert net.struck, f"{fault}: there is no such frame"
    found = weights(results)
    for name, value in right.items():
        np.testing.assert_array_equal(found[name], value, err_msg=str(fault))
    return "model"


def cases(every: int) -> list[Fault]:
    """Each kind of fault at every n-th frame of each direction, beginning at another one each."""
    _, labels = undisturbed()
    return [
        Fault(kind, *pair, number)
        for place, kind in enumerate((*LOSSES, *DAMAGES))
        for pair, said in labels.items()
        for number in range(place % every, len(said), every)
    ]


def check(faults: list[Fault]) -> Counter[tuple[str, str]]:
    found = Counter((fault.kind, outcome(fault)) for fault in faults)
    print(f"{len(faults)} cases:")  # what the evidence of a release shows
    for (kind, ended), count in sorted(found.items()):
        print(f"  {kind:10} {ended:20} {count}")
    assert {ended for kind, ended in found if kind in LOSSES} == {"model"}
    assert ("truncate", "AuthenticationError") in found
    return found


def test_one_fault_of_each_kind_leads_to_the_right_model_or_a_named_stop() -> None:
    every = sum(map(len, undisturbed()[1].values())) // 2
    check(cases(max(every, 1)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fault_at_any_frame_leads_to_the_right_model_or_a_named_stop() -> None:
    """Every kind at every frame, that is at every label of ten steps in every direction."""
    check(cases(1))
