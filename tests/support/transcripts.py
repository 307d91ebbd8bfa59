"""What travels in a computation: labels and sizes of all frames, by sender and receiver.

`TRAFFIC` and `PROGRAM_TRAFFIC` name the programs whose traffic is pinned in
tests/vectors/transcripts.json; make that file anew with `python -m tests.vectors.make_transcripts`
when a change of the protocol is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from protocols.comparison.compare import all_of, argmax, below, maximum, negative, relu
from protocols.functions import splines
from protocols.functions.magnitude import inverse_root, reciprocal
from protocols.functions.scaling import extremes, floor_quotient
from protocols.linkage.shuffle import pick, shuffle
from protocols.roles.role import Role
from protocols.shares.arithmetic import matmul, multiply, remask, select, truncate
from protocols.shares.inputs import from_dealer
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.layer_programs import LAYERS, SECRET_DROPOUT, LayerProgram, run_layer
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import secret, shares_of
from tests.support.magnitudes import shifts
from tests.support.serving_programs import SERVING
from tests.support.training_programs import TRAINING, TrainingProgram

F = 20
SHAPE = (6, 4)

Frames = dict[str, list[tuple[str, int]]]


def fixed(x: Masked) -> Masked:
    return truncate(x.scale(1 << F).shares(), F)


def opened(*values: Masked) -> None:
    for value in values:
        shares_of(value)


def reveal(x: Masked) -> None:
    gate = RevealGate(frozenset({Output("a", 0), Output("b", 0)}))
    gate.to_everybody("a", 0, x)
    gate.for_recipients("b", 0, x)


def shuffled(x: Masked) -> Masked:
    for owner in range(x.role.evaluators):
        x = shuffle(x, owner, x.role.permutation(x.shape[0], owner))
    return pick(x, np.arange(4), 4)


def training(x: Masked) -> None:
    """Three steps of an MLP through the models, optimizer and trainer of `mpc_train`."""
    from fractions import Fraction

    from mpc_train.networks.graph import layers_of
    from mpc_train.networks.network import Network
    from mpc_train.training.first_weights import uniform_words
    from mpc_train.training.losses import CrossEntropy
    from mpc_train.training.optimizers.sgd import SGD
    from mpc_train.training.trainer import Trainer
    from protocols.crypten_tensor import dispatch
    from protocols.crypten_tensor.tensor import MaskedTensor, attach

    dispatch.install()
    attach(x.role, F)
    widths = (4, 5, 3)
    weights = {
        f"{2 * i}.{kind}": uniform_words(
            (widths[i + 1], widths[i])[: 1 if kind == "bias" else 2], 1 << 19, 1, f"{i}{kind}"
        )
        for i in range(2)
        for kind in ("weight", "bias")
    }
    model = Network(layers_of(widths), weights)
    named = model.parameters
    trainer = Trainer(model, CrossEntropy(), named, SGD(named, momentum=Fraction(9, 10)))
    labels = MaskedTensor(x.select((slice(None), slice(0, 3))))
    for step in (1, 2, 3):
        x.role.begin_step(step)
        trainer.step(MaskedTensor(x), labels, Fraction(1, 16))
        x.role.finish()


def layer(program: LayerProgram, x: Masked) -> None:
    """Forward and backward of a layer; its numbers are those of x, again and again."""
    found = run_layer(program, x.reshape(-1).select(np.arange(program.size) % x.size))
    opened(*(tensor.masked() for tensor in found.values()))


def training_part(program: TrainingProgram, x: Masked) -> None:
    """A loss, an optimizer's steps, a decision or an answer, in the same way."""
    found = program.over_shares(x.reshape(-1).select(np.arange(program.size) % x.size))
    opened(*(v if isinstance(v, Masked) else v.masked() for v in found.values()))


PROGRAM_TRAFFIC: dict[str, Callable[[Masked], Any]] = {
    **{f"layer, {key}": partial(layer, one) for key, one in (LAYERS | SECRET_DROPOUT).items()},
    **{f"training, {key}": partial(training_part, one) for key, one in TRAINING.items()},
    **{f"serving, {key}": partial(training_part, one) for key, one in SERVING.items()},
}
TRAFFIC: dict[str, Callable[[Masked], Any]] = {
    "input": lambda x: None,
    "dealer input": lambda x: from_dealer(
        x.role, SHAPE, np.zeros(SHAPE, np.int64) if x.role.is_dealer else None
    ),
    "remask": lambda x: opened(remask(x.shares())),
    "multiply": lambda x: opened(remask(multiply(x, x))),
    "matmul": lambda x: opened(remask(matmul(x, x.transpose()))),
    "truncate": lambda x: opened(truncate(x.shares(), F)),
    "truncate by 9": lambda x: opened(truncate(x.shares(), 9)),
    "negative": lambda x: opened(remask(negative(x).shares())),
    "negative after truncation": lambda x: opened(remask(negative(fixed(x)).shares())),
    "five thresholds": lambda x: opened(remask(below(x, (-2, -1, 0, 1, 2)).shares())),
    "all of six": lambda x: opened(remask(all_of(negative(x)).shares())),
    "select": lambda x: opened(remask(select(negative(x), x))),
    "relu": lambda x: opened(relu(fixed(x))[0]),
    "argmax": lambda x: opened(remask(argmax(x).shares())),
    "maximum": lambda x: opened(maximum(x)[0]),
    "sigmoid": lambda x: opened(splines.sigmoid(fixed(x), F)),
    "tanh": lambda x: opened(splines.tanh(fixed(x), F)),
    "exp": lambda x: opened(splines.exp(fixed(x), F)),
    "softmax": lambda x: opened(splines.softmax(fixed(x), F)),
    "divide": lambda x: opened(splines.divide(x, x, F)),
    "shifted": lambda x: opened(*shifts(x)),
    "mantissa reciprocal": lambda x: opened(reciprocal(x)),
    "mantissa root": lambda x: opened(inverse_root(x)),
    "extremes": lambda x: opened(*extremes(x, x)),
    "floor": lambda x: opened(floor_quotient(x.shares(), F)),
    "shuffle": lambda x: opened(shuffled(x)),
    "reveal": reveal,
    "training": training,
}


def traffic(name: str, evaluators: int, values: np.ndarray) -> tuple[int, Frames]:
    """Rounds, and for each "sender>receiver" the (label in hex, size) of every frame."""
    net = LockstepLoopback()

    def program(role: Role) -> int:
        (TRAFFIC | PROGRAM_TRAFFIC)[name](secret(role, values))
        role.finish()
        return role.rounds

    rounds = run_lockstep(program, evaluators, net=net)
    assert len(set(rounds[:-1])) == 1 and rounds[-1] == 0
    return rounds[0], {
        f"{sender}>{receiver}": [(label.hex(), len(payload)) for label, payload in frames]
        for (sender, receiver), frames in sorted(net.transcript.items())
        if frames
    }


def summary(rounds: int, frames: Frames) -> dict[str, Any]:
    """What is pinned: rounds, and tag and size of every frame."""
    short = {
        way: " ".join(
            f"{bytes.fromhex(label)[:4].decode().strip()}:{size}" for label, size in found
        )
        for way, found in frames.items()
    }
    return {"rounds": rounds, **short}
