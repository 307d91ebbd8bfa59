"""The model over shares: `crypten.nn` modules on `MaskedTensor` parameters.

The initial weights are public: every node derives the same integers from the job's seed. The
first forward pass therefore multiplies with public weights; from the first update on they are
masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import isqrt, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols.crypten_backend import MaskedTensor, crypten, runtime
from protocols.masked import public

if TYPE_CHECKING:
    from mpc_train.job import Job

Words = NDArray[np.int64]


class Linear(crypten.nn.Module):
    """x Wᵀ + b as one autograd node, with names and shapes as in torch.nn.Linear."""

    def __init__(self, weight: MaskedTensor, bias: MaskedTensor) -> None:
        super().__init__()
        self.encrypted = True
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)

    def forward(self, x: MaskedTensor) -> MaskedTensor:
        return x.linear(self.weight, self.bias)


def shared_model(widths: tuple[int, ...], weights: Mapping[str, Words]) -> crypten.nn.Sequential:
    """Linear layers of these widths with ReLU between them.

    weights: int64 at the attached scale, named as in `Job.shapes` ("weight", "bias" for a single
    layer, "0.weight", "0.bias", "2.weight", … for several).
    """
    layers = []
    several = len(widths) > 2
    for index in range(len(widths) - 1):
        prefix = f"{2 * index}." if several else ""
        parts = [_parameter(weights[f"{prefix}{name}"]) for name in ("weight", "bias")]
        layers.append(Linear(*parts))
        if index < len(widths) - 2:
            relu = crypten.nn.ReLU()
            relu.encrypted = True
            layers.append(relu)
    model = crypten.nn.Sequential(*layers)
    model.encrypted = True
    return model


def parameters(model: crypten.nn.Sequential, widths: tuple[int, ...]) -> dict[str, MaskedTensor]:
    """The model's parameters under the names of `Job.shapes`."""
    named = dict(model.named_parameters())
    return named if len(widths) > 2 else {name.split(".")[-1]: p for name, p in named.items()}


def _parameter(words: Words) -> MaskedTensor:
    return MaskedTensor(public(runtime().role, words), requires_grad=True)


def initial_weights(job: Job) -> dict[str, Words]:
    """The first weights of a job, int64 at scale 2^f, the same at every node and machine.

    Uniform in ±1/sqrt(inputs), as torch.nn.Linear starts, from SHAKE-256 of seed and name by
    integer arithmetic alone.
    """
    return {
        name: uniform_words(
            shape, isqrt((1 << 2 * job.fraction_bits) // _inputs(job, name)), job.train.seed, name
        )
        for name, shape in job.shapes.items()
    }


def _inputs(job: Job, name: str) -> int:
    return job.shapes[name.replace("bias", "weight")][1]


def uniform_words(shape: tuple[int, ...], bound: int, seed: int, name: str) -> Words:
    """Integers uniform in [−bound, bound], bound < 2^31, from a public seed."""
    label = f"mpc-train/v1/initial/{seed}/{name}".encode()
    raw = np.frombuffer(hashlib.shake_256(label).digest(4 * prod(shape)), "<u4")
    wide = raw.astype(np.uint64) * np.uint64(2 * bound + 1)
    words: Words = (wide >> np.uint64(32)).astype(np.int64) - bound
    return words.reshape(shape)


def loss_function(kind: str) -> crypten.nn.Module:
    """The loss of a model kind: only its gradient is computed."""
    if kind == "linear":
        return HalfSquaredError()
    if kind == "logistic":
        return crypten.nn.BCEWithLogitsLoss(skip_forward=True)
    return crypten.nn.CrossEntropyLoss(skip_forward=True)


class HalfSquaredError:
    """Half the mean squared error: its gradient is (prediction − label) / rows."""

    def __call__(self, prediction: MaskedTensor, target: MaskedTensor) -> MaskedTensor:
        return prediction.mse_loss(target).mul(0.5)
