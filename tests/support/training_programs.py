"""Losses, optimizers' steps, clips and decisions over one secret vector: for views and traffic.

As `layer_programs`: everything that a program works on is cut out of the vector, so that all of it
is secret. `expected` is the same in PyTorch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpc_train.jobs.audience import RANGE
from mpc_train.jobs.job import Job
from mpc_train.networks.network import Network
from mpc_train.training.losses import SquaredError
from mpc_train.training.optimizers.adaptive import Adaptive
from mpc_train.training.optimizers.clipping import ClipNorm, ClipValue
from mpc_train.training.optimizers.gradients import exact_limit
from mpc_train.training.optimizers.moments import Moments
from mpc_train.training.optimizers.sgd import SGD, Clip
from mpc_train.training.range_guard import RangeGuard, look_at_network
from mpc_train.training.watch import Watch, disclosures
from mpc_train.twin.optim import RootAdaptive
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.errors import DivergedError
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.jobs import job_toml, loaded
from tests.support.layers import UNIT, F
from tests.support.loss_cases import CASES

Cut = dict[str, MaskedTensor]
Numbers = dict[str, torch.Tensor]
Found = Mapping[str, MaskedTensor | Masked]
LIMIT = Fraction(8)


@dataclass(frozen=True, eq=False)
class TrainingProgram:
    """pieces: names and shapes of what is cut out of the vector; bound: of the largest error.

    draw: numbers for a piece, by default uniform in ±2.
    """

    pieces: Mapping[str, tuple[int, ...]]
    run: Callable[[Cut], Found]
    expected: Callable[[Numbers], dict[str, Any]]
    bound: float
    draw: Callable[[str, np.random.Generator, tuple[int, ...]], Reals | None] = lambda *_: None

    @property
    def size(self) -> int:
        return sum(prod(shape) for shape in self.pieces.values())

    def numbers(self, rng: np.random.Generator) -> Reals:
        parts = []
        for name, shape in self.pieces.items():
            drawn = self.draw(name, rng, shape)
            values = rng.uniform(-2, 2, shape) if drawn is None else drawn
            parts.append(np.ravel(values))
        return np.rint(np.concatenate(parts) / UNIT) * UNIT

    def over_shares(self, source: Masked) -> Found:
        """source: int64[size]."""
        attach(source.role, F)
        return self.run(
            {
                name: MaskedTensor(source.select(where).reshape(*shape))
                for name, shape, where in self._places()
            }
        )

    def in_the_clear(self, numbers: Reals) -> dict[str, Reals]:
        cut = {
            name: torch.tensor(numbers[where].reshape(shape))
            for name, shape, where in self._places()
        }
        return {name: np.asarray(value) for name, value in self.expected(cut).items()}

    def _places(self) -> list[tuple[str, tuple[int, ...], slice]]:
        found, start = [], 0
        for name, shape in self.pieces.items():
            found.append((name, shape, slice(start, start + prod(shape))))
            start += prod(shape)
        return found


# Losses


def _labels(kind: str) -> Callable[[str, np.random.Generator, tuple[int, ...]], Reals | None]:
    def draw(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Reals | None:
        if name != "labels" or kind == "real":
            return None
        if kind == "one-hot":
            return np.eye(shape[1])[rng.integers(0, shape[1], shape[0])]
        return rng.integers(0, 2 if kind == "binary" else 4, shape).astype(float)

    return draw


def _loss(name: str) -> TrainingProgram:
    loss, plain, kind, error = CASES[name]
    shape = (4, {"one-hot": 3, "binary": 1, "real": 2, "count": 1}[kind])

    def run(cut: Cut) -> Found:
        value = loss.value(cut["outputs"], cut["labels"])
        gradient = loss.gradient(cut["outputs"], cut["labels"])
        return {"value": value.total, "gradient": gradient}

    def expected(cut: Numbers) -> dict[str, Any]:
        z = cut["outputs"].requires_grad_()
        value = plain(z, cut["labels"])
        value.backward()
        count = shape[0] if kind == "one-hot" else prod(shape)
        return {"value": value.detach() * count, "gradient": z.grad}

    rough = {"real": 2.0**-14, "binary": 2.0**-8, "one-hot": 2.0**-6, "count": 2.0**-6}[kind]
    pieces = {"outputs": shape, "labels": shape}
    return TrainingProgram(pieces, run, expected, max(rough, error), _labels(kind))


LOSSES = {name: _loss(name) for name in CASES}


# Steps of optimizers

SHAPES = {"weight": (2, 3), "bias": (2,)}
STEPS = 2
RATES = (Fraction(1, 64), Fraction(1, 128))


def _step(make: Callable[[Cut], Any], plain: Any, clip: Clip | None, clear: Any) -> TrainingProgram:
    gradients = {
        f"gradient {step} of {name}": shape
        for step in range(STEPS)
        for name, shape in SHAPES.items()
    }

    def run(cut: Cut) -> Found:
        named = {name: cut[name] for name in SHAPES}
        for tensor in named.values():
            tensor.requires_grad = True
        optimizer = make(named)
        for step, rate in enumerate(RATES):
            for name, tensor in named.items():
                # As after a mean over four rows.
                tensor.grad = cut[f"gradient {step} of {name}"].mul(Fraction(1, 4))
            optimizer.step(rate, clip)
        return {name: tensor.detach() for name, tensor in named.items()} | {
            f"{key} of the state": value for key, value in optimizer.state().items()
        }

    def expected(cut: Numbers) -> dict[str, Any]:
        parameters = {name: torch.nn.Parameter(cut[name]) for name in SHAPES}
        optimizer = plain(list(parameters.values()))
        for step, rate in enumerate(RATES):
            for name, parameter in parameters.items():
                parameter.grad = cut[f"gradient {step} of {name}"] / 4
            if clear is not None:
                clear(list(parameters.values()))
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            optimizer.step()
        return {name: parameter.detach() for name, parameter in parameters.items()}

    return TrainingProgram(SHAPES | gradients, run, expected, 2.0**-11)


def _sgd(**settings: Any) -> TrainingProgram:
    floats: dict[str, Any] = {
        name: value if isinstance(value, bool) else float(value) for name, value in settings.items()
    }
    return _step(
        lambda named: SGD(named, **settings),
        lambda parameters: torch.optim.SGD(parameters, lr=1.0, **floats),
        None,
        None,
    )


def _adaptive(**settings: Any) -> TrainingProgram:
    moments = Moments(**{"epsilon": Fraction(1, 100_000), "second": Fraction(99, 100)} | settings)
    names = ("first", "second", "epsilon", "momentum", "weight_decay")
    floats: dict[str, Any] = {name: float(getattr(moments, name)) for name in names}
    floats |= {"corrected": moments.corrected, "decoupled": moments.decoupled}
    return _step(
        lambda named: Adaptive(named, moments, fraction_bits=F, gradient_limit=LIMIT),
        lambda parameters: RootAdaptive(parameters, 1.0, **floats),
        None,
        None,
    )


def _clipped(clip: Clip, clear: Any) -> TrainingProgram:
    return _step(SGD, lambda parameters: torch.optim.SGD(parameters, lr=1.0), clip, clear)


_BOUNDS: dict[str, Any] = {"fraction_bits": F, "gradient_limit": LIMIT}
_NINE_TENTHS = Fraction(9, 10)
OPTIMIZERS = {
    "sgd": _sgd(),
    "sgd, momentum and decay": _sgd(momentum=_NINE_TENTHS, weight_decay=Fraction(1, 10)),
    "sgd, nesterov": _sgd(momentum=_NINE_TENTHS, nesterov=True),
    "adam": _adaptive(first=_NINE_TENTHS),
    "adamw": _adaptive(first=_NINE_TENTHS, weight_decay=Fraction(1, 10), decoupled=True),
    "rmsprop": _adaptive(first=Fraction(0), corrected=False),
    "rmsprop, momentum": _adaptive(first=Fraction(0), corrected=False, momentum=Fraction(1, 2)),
    "clip by value": _clipped(
        ClipValue(Fraction(1, 8), **_BOUNDS),
        lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 0.125),
    ),
    "clip by norm": _clipped(
        ClipNorm(Fraction(1, 2), **_BOUNDS),
        lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 0.5),
    ),
}


# What is decided while a job trains

ROWS = 20
HIDDEN = "hidden = [3]\nclasses = 2"


@cache
def job_of(kind: str = "linear", model: str = "", train: str = "") -> Job:
    text = job_toml(
        ["a", "b"],
        kind,
        rows={"ann": 12, "bob": 8},
        data="test_fraction = 0.2",
        model=model,
        train=f"epochs = 3\nbatch_size = 4\noptimizer = {{ learning_rate = 0.125 }}\n{train}",
        more="[reveal]\nleast_test_rows = 4",
    )
    with tempfile.TemporaryDirectory() as folder:
        return loaded(Path(folder), text)


def _watched(job: Job, cut: Cut, **changed: MaskedTensor) -> tuple[Network, Watch]:
    zeros = {name: np.zeros(shape, np.int64) for name, shape in job.shapes.items()}
    model = Network(job.graph, zeros)
    model.tensors.update({name: cut[name] for name in job.shapes} | changed)
    gate = RevealGate(disclosures(job))
    loss = SquaredError(Fraction(1, 2))
    return model, Watch(job, gate, model, loss, model.secret, cut["rows"], cut["labels"])


def _number(decision: bool) -> float:
    return float(decision)


def _early_stopping(keep_best: bool) -> TrainingProgram:
    """The same weights twice: an improvement on nothing, and then none."""
    settings = "fraction = 0.5, patience = 1, least_improvement = 0.01"
    best = f"keep_best = {str(keep_best).lower()}"
    job = job_of(train=f"early_stopping = {{ {settings}, {best} }}")

    def run(cut: Cut) -> Found:
        model, watch = _watched(job, cut)
        per_epoch = 2
        decided = [watch.after_epoch(epoch, (epoch + 1) * per_epoch) for epoch in range(2)]
        watch.finish()
        one = MaskedTensor(np.array(decided, np.float64))
        return {"decisions": one} | dict(model.tensors)

    def expected(cut: Numbers) -> dict[str, Any]:
        return {"decisions": [0.0, 1.0]} | {name: cut[name] for name in job.shapes}

    pieces = {"rows": (ROWS, 2), "labels": (ROWS, 1), **job.shapes}
    return TrainingProgram(pieces, run, expected, UNIT)


def _fired(decide: Callable[[], object]) -> Found:
    try:
        decide()
    except DivergedError:
        return {"fired": MaskedTensor(np.array([_number(True)]))}
    return {"fired": MaskedTensor(np.array([_number(False)]))}


def _firing(job: Job, run: Callable[[Cut], Found], fires: bool) -> TrainingProgram:
    pieces = {"rows": (ROWS, 2), "labels": (ROWS, 2), **job.shapes}

    def draw(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Reals | None:
        # Every hidden output of some row is beyond 60 + 8, none of the weights is beyond 64.
        return rng.uniform(1, 2, shape) if name in ("0.weight", "0.bias", "rows") else None

    return TrainingProgram(pieces, run, lambda cut: {"fired": [_number(fires)]}, 0.0, draw)


def _guard(fires: bool) -> TrainingProgram:
    """A hidden layer beyond the limit, with weights and outputs within it, or nothing beyond."""
    job = job_of("mlp", HIDDEN, "guard = { every = 1 }")

    def run(cut: Cut) -> Found:
        bias = cut["0.bias"].add(60 if fires else 0)
        weight = cut["2.weight"].mul(Fraction(1, 64))
        model, watch = _watched(job, cut, **{"0.bias": bias, "2.weight": weight})
        return _fired(lambda: watch.after_step(1, model(cut["rows"].mul(4)), cut["labels"]))

    return _firing(job, run, fires)


def _range_guard(fires: bool) -> TrainingProgram:
    """Words of a step, and a model that puts out something beyond the ring, or does not."""
    job = job_of("mlp", HIDDEN)

    def run(cut: Cut) -> Found:
        # A hidden layer of 2^21, which the ring does not hold; its weights are within.
        bias = cut["0.bias"].add(1 << 21 if fires else 0)
        model, _ = _watched(job, cut, **{"0.bias": bias.mul(Fraction(3, 4))})
        model.tensors["0.weight"] = cut["0.weight"].mul(1 << 18 if fires else 1)
        guard = RangeGuard(cut["rows"].masked().role)
        guard.sample(cut["rows"].masked(), exact_limit(F))
        guard.sample(cut["labels"].masked(), exact_limit(30))
        guard.end_step()
        look_at_network(guard, job, model, cut["rows"])
        return _fired(lambda: guard.decide(RevealGate(frozenset({Output(RANGE, 1)})), 1))

    return _firing(job, run, fires)


DECISIONS = {
    "early stopping": _early_stopping(False),
    "early stopping, best model": _early_stopping(True),
    "guard": _guard(False),
    "guard that fires": _guard(True),
    "range guard": _range_guard(False),
    "range guard that fires": _range_guard(True),
}
TRAINING = LOSSES | OPTIMIZERS | DECISIONS
