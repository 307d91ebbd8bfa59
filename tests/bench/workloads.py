"""What the steps of the benchmarks compute: operations and trainings by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

BATCH = 128
NET_A = (784, 128, 128, 10)
WIDTHS = {
    **dict.fromkeys(("lr784", "lr784_private", "lr784_banded"), (784, 1)),
    **dict.fromkeys(("net_a", "net_a_private", "net_a_banded", "mlp_adam"), NET_A),
}
BANDS = 16
"""Of the workloads whose noise depends on steps before."""
MAPS = {"maxpool": (16, 128, 24, 24), "conv": (16, 128, 12, 12)}
WORKLOADS = (
    *("lr784", "lr784_private", "lr784_banded", "net_a", "net_a_private", "net_a_banded"),
    *("mlp_adam", "lenet"),
    *("relu", "matmul", "softmax", "maxpool", "conv"),
)
STEPS = {
    "lr784": 200,
    "lr784_private": 200,
    "lr784_banded": 200,
    "net_a": 40,
    "net_a_private": 40,
    "net_a_banded": 40,
    "mlp_adam": 20,
    "lenet": 10,
    "relu": 40,
    "matmul": 60,
    "softmax": 60,
    "maxpool": 10,
    "conv": 40,
}
RATE = Fraction(1, 10)
FRACTION_BITS = 20


def operation(workload: str, rng: Any) -> Callable[[], Any]:
    """The step of a workload; every node draws the same test values and the owners use theirs."""
    import numpy as np
    import torch

    from mpc_train.networks.network import Network
    from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy
    from mpc_train.training.optimizers.adaptive import Adaptive
    from mpc_train.training.optimizers.moments import Moments
    from mpc_train.training.optimizers.sgd import SGD, Optimizer
    from mpc_train.training.trainer import Trainer
    from protocols.crypten_tensor import dispatch  # noqa: F401  registers the functions
    from protocols.crypten_tensor.layers.window import Window
    from protocols.crypten_tensor.tensor import MaskedTensor

    def shared(values: Any, src: int) -> MaskedTensor:
        return MaskedTensor(torch.from_numpy(values), src=src)

    if workload == "relu":
        x = shared(rng.uniform(-8, 8, 100_000), 0)
        return lambda: x.relu()
    if workload == "softmax":
        x = shared(rng.uniform(-4, 4, (BATCH, 10)), 0)
        return lambda: x.softmax(-1)
    a = rng.uniform(0, 1, (BATCH, 784))
    if workload == "matmul":
        x, y = shared(a, 0), shared(rng.uniform(-1, 1, (784, 128)), 1)
        return lambda: x.matmul(y).masked()
    if workload in MAPS:
        maps = shared(rng.uniform(-1, 1, MAPS[workload]), 0)
        if workload == "maxpool":
            pool = Window((2, 2), (2, 2), (0, 0), (1, 1))
            return lambda: maps.max_pool(pool)
        weight = shared(rng.uniform(-0.1, 0.1, (16, 16, 5, 5)), 1)
        window = Window((5, 5), (1, 1), (0, 0), (1, 1))
        return lambda: maps.convolve(weight, None, window, 1).masked()
    model = Network(*(lenet() if workload == "lenet" else linear_layers(WIDTHS[workload])))
    binary = workload.startswith("lr784")
    named = model.parameters
    optimizer: Optimizer = SGD(named)
    rate = RATE
    if workload == "mlp_adam":
        moments = Moments(Fraction(9, 10), Fraction(999, 1000), Fraction(1, 100_000))
        optimizer = Adaptive(
            named, moments, fraction_bits=FRACTION_BITS, gradient_limit=Fraction(8)
        )
        rate = Fraction(1, 1000)
    loss = BinaryCrossEntropy() if binary else CrossEntropy()
    trainer = Trainer(model, loss, named, optimizer)
    if workload.endswith(("_private", "_banded")):
        trainer = replace(trainer, take=private_sums(workload, named))
    if binary:
        labels = (rng.uniform(-1, 1, (BATCH, 1)) > 0).astype(np.float64)
    else:
        labels = np.eye(10)[rng.integers(0, 10, BATCH)]
    rows, targets = shared(a, 0), shared(labels, 0)
    return lambda: trainer.step(rows, targets, rate)


def private_sums(workload: str, named: Any) -> Any:
    """Sums over rows that are clipped by their owners (`lr784`) or over shares to a norm of 1, with
    noise of five times the norm; over BANDS bands if the workload says so."""
    from mpc_train.privacy.clip_plan import Layer, make_plan
    from mpc_train.training.optimizers.row_clipping import ClippedSums, Noise, NoisySums
    from protocols.noise.banded import spread

    deviation, bands = Fraction(5), BANDS if workload.endswith("_banded") else 1
    if workload.startswith("lr784"):
        return NoisySums(Noise(deviation, bands))
    for tensor in named.values():
        tensor.keeps_rows = True
    plan = make_plan(
        [Layer(inputs, outputs, True) for inputs, outputs in pairwise(WIDTHS[workload])],
        fraction_bits=FRACTION_BITS,
        clip=Fraction(1),
        input_square=Fraction(785),
        sum_limit=BATCH + 50 * deviation * spread(bands),
        rate=RATE / BATCH,
    )
    return ClippedSums(plan, Noise(deviation, bands), Fraction(1, BATCH))


def linear_layers(widths: tuple[int, ...]) -> tuple[Any, Any]:
    """Linear layers with ReLU between them as a graph, and first weights from a fixed seed."""
    from mpc_train.networks.graph import layers_of
    from mpc_train.training.first_weights import uniform_words

    weights = {}
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        prefix = f"{2 * index}." if len(widths) > 2 else ""
        bound = round((1 << FRACTION_BITS) / inputs**0.5)
        weights[f"{prefix}weight"] = uniform_words((outputs, inputs), bound, index, "weight")
        weights[f"{prefix}bias"] = uniform_words((outputs,), bound, index, "bias")
    return layers_of(widths), weights


def lenet_module() -> Any:
    """The convolutional network, for images of 28 by 28 pixels."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def lenet() -> tuple[Any, Any]:
    """`lenet_module` as a graph, and its first weights from a fixed seed."""
    import torch

    from mpc_train.networks.convert import convert
    from mpc_train.networks.graph import WEIGHT_BITS

    torch.manual_seed(1)
    found = convert(lenet_module(), (1, 28, 28))
    shift = WEIGHT_BITS - FRACTION_BITS
    return found.graph, {name: words >> shift for name, words in found.initial.items()}
