"""Public numbers that the ring cannot hold are named before anybody signs; no step dies of one."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.admission.load import load_job
from mpc_train.admission.network import check_graph_ranges
from mpc_train.base.bounds import norm_bits, norm_range
from mpc_train.errors import JobError, TrainError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import distinct_rates
from mpc_train.networks.carried import Carried
from mpc_train.networks.graph import Node, layers_of
from mpc_train.training.optimizers.folding import RATE_BITS, brought_together, coefficients, fold
from mpc_train.training.rates import rate
from mpc_train.training.trainer import make_trainer
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import RangeError
from protocols.ring.rational import HEADROOM_BITS
from protocols.roles.role import Role
from tests.support.jobs import JOB, replaced, write_job
from tests.support.lockstep import run_lockstep
from tests.support.tensors import attached

SGD = 'optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }'
ADAM = 'optimizer = {{ name = "adam", learning_rate = 0.01, {} }}'


def with_train(optimizer: str = SGD, more: str = "", kind: str = "logistic", tail: str = "") -> str:
    text = replaced(SGD, f"{optimizer}\n{more}").replace('kind = "logistic"', f'kind = "{kind}"')
    if kind != "logistic":
        text = text.replace('metrics = ["accuracy", "auc"]', "metrics = []")
    return f"{text}\n{tail}"


REFUSED: dict[str, tuple[str, str]] = {
    "rate": (with_train("optimizer = { learning_rate = 1e-9 }"), "train.optimizer.learning_rate"),
    "rate at the end of a schedule": (
        with_train(
            "optimizer = { learning_rate = 0.5 }",
            'schedule = { name = "step", every = 2, factor = 1e-5 }',
        ),
        "learning_rate: in epoch 2",
    ),
    "rate at the start of a warm-up": (
        with_train("optimizer = { learning_rate = 1e-4 }", "schedule = { warmup_steps = 10000 }"),
        "learning_rate: in epoch 0",
    ),
    "rate of adam": (
        with_train('optimizer = { name = "adam", learning_rate = 1e-9 }'),
        "does not change weights",
    ),
    "decay": (
        with_train("optimizer = { learning_rate = 0.5, weight_decay = 1e-13 }"),
        "weight_decay: 5e-14 is too small",
    ),
    "decay of adam": (with_train(ADAM.format("weight_decay = 1e-20")), "weight_decay"),
    "decay of adamw": (
        with_train('optimizer = { name = "adamw", learning_rate = 0.01, weight_decay = 1e-14 }'),
        "weight_decay: 1e-16 is too small",
    ),
    "momentum": (
        with_train("optimizer = { learning_rate = 0.5, momentum = 1e-13 }"),
        "momentum: 1e-13",
    ),
    "momentum of rmsprop": (
        with_train('optimizer = { name = "rmsprop", learning_rate = 0.01, momentum = 1e-15 }'),
        "momentum: 1e-15",
    ),
    "the first beta": (
        with_train(ADAM.format("betas = [1e-7, 0.999]")),
        "betas: 1e-07 is too small",
    ),
    "epsilon": (with_train(ADAM.format("epsilon = 1e-9")), "epsilon: at least"),
    "a clip below rounding": (with_train(more="clip = { value = 1e-9 }"), "clip.value: 1e-09"),
    "a clip that clips nothing": (
        with_train(more="clip = { value = 8 }"),
        "clip.value: no gradient",
    ),
    "a norm that clips nothing": (with_train(more="clip = { norm = 14 }"), "clip.norm: no norm"),
    "a norm below rounding": (
        with_train(more="clip = { norm = 1e-6 }"),
        "clip.norm: a norm of 1e-06",
    ),
    "gradients of adam": (
        with_train(
            'optimizer = { name = "rmsprop", learning_rate = 1e-4 }',
            tail="[fixed_point]\nfraction_bits = 26\nactivation_limit = 64\n",
        ).replace("batch_size = 16", "batch_size = 75"),
        "train.optimizer: gradients of this many bits",
    ),
    "a class weight": (
        with_train(more="loss = { class_weights = [1, 1e-5] }", kind='softmax"\nclasses = 2 #'),
        "class_weights: 1e-05 is too small",
    ),
    "a positive weight": (with_train(more="loss = { positive_weight = 1e-5 }"), "positive_weight"),
    "smoothing": (
        with_train(more="loss = { label_smoothing = 1e-10 }", kind='softmax"\nclasses = 2 #'),
        "label_smoothing",
    ),
    "a huber delta": (
        with_train(more='loss = { name = "huber", delta = 1e-7 }', kind="linear"),
        "delta: 1e-07 is too small",
    ),
    "a huber delta that is no bound": (
        with_train(more='loss = { name = "huber", delta = 100 }', kind="linear"),
        "delta: no error is larger",
    ),
    "an improvement": (
        with_train(more="early_stopping = { fraction = 0.4, least_improvement = 1e-8 }").replace(
            "batch_size = 16", "batch_size = 8"
        ),
        "least_improvement: 1e-08 is too small",
    ),
}
NEWTON = """
[model]
kind = "KIND"
[train]
seed = 7
optimizer = { name = "newton", PENALTY }
"""


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_ring_cannot_hold_is_named(tmp_path: Path, name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(JobError) as caught:
        load_job(write_job(tmp_path, text))
    assert said in str(caught.value)
    assert "job.toml:" in str(caught.value)


@pytest.mark.parametrize("penalty", ["l1 = 1e-12", "l2 = 1e-12"])
def test_penalties_that_come_to_nothing_are_named(tmp_path: Path, penalty: str) -> None:
    head, rest = JOB.split("[model]")
    text = head + NEWTON.replace("KIND", "logistic").replace("PENALTY", penalty)
    text += rest[rest.index("[reveal]") :]
    with pytest.raises(JobError, match=f"{penalty[:2]}: .*too small"):
        load_job(write_job(tmp_path, text))
    load_job(write_job(tmp_path, text.replace("1e-12", "1e-3")))


@pytest.mark.parametrize("excess", [0, 1, 6, 20, 26, 40, 58])
@pytest.mark.parametrize("exponent", [-80, -60, -40, -21, -3, -1, 0, 1, 5, 10])
def test_every_rate_folds(excess: int, exponent: int) -> None:
    for mantissa in (1, 3, 4095):
        factor = Fraction(mantissa) * Fraction(2) ** exponent / 4
        if factor >= 1 << RATE_BITS:
            continue
        whole, shift = fold(factor, excess)
        assert 1 <= shift <= HEADROOM_BITS - 2
        held = Fraction(whole * (1 << excess), 1 << shift)
        assert abs(held - factor) <= max(factor / 1000, Fraction(1 << excess, 1 << (shift + 1)))


def test_a_rate_of_one_over_one_row_is_exact() -> None:
    """Its bias has no bits to drop: once that was called too small, at the dealer."""
    whole, shift = fold(Fraction(1), 0)
    assert Fraction(whole, 1 << shift) == 1 and shift >= 1


def test_more_bits_than_the_ring_are_an_error() -> None:
    with pytest.raises(RangeError):
        fold(Fraction(1), HEADROOM_BITS)
    with pytest.raises(RangeError):
        brought_together([Fraction(1 << 60)], Fraction(1), Fraction(1 << 20))


def test_small_rates_leave_momentum_its_bits() -> None:
    args = (Fraction(1, 1 << 30), Fraction(1), Fraction(1, 16), 20, Fraction(0))
    _, shift, _, carried = coefficients(*args, Fraction(9, 10) * (1 << 30))
    assert abs(Fraction(carried, 1 << shift) - Fraction(9, 10)) < Fraction(1, 1000)


@pytest.mark.parametrize("limit", [1, 8, 64, 1000])
@pytest.mark.parametrize("elements", [3, 27, 1000, 10**6])
def test_a_norm_that_is_accepted_has_a_root(elements: int, limit: int) -> None:
    for norm in (Fraction(1, 10), Fraction(1), Fraction(10), Fraction(1000)):
        for bits_of_one in (18, 20, 26):
            try:
                bits = norm_bits(elements, Fraction(limit), norm, bits_of_one)
            except RangeError:
                continue
            assert norm_range(elements, Fraction(limit), norm, bits).top < HEADROOM_BITS
            assert bits < 2 * bits_of_one


def drawn(chance: random.Random) -> str:
    """A job of odd but not absurd numbers."""

    def one(*choices: str) -> str:
        return chance.choice(choices)

    name = one("sgd", "sgd", "adam", "adamw", "rmsprop")
    settings = [f'name = "{name}"', f"learning_rate = {one('1', '3', '7')}e-{chance.randint(0, 6)}"]
    if name == "sgd":
        settings.append(f"momentum = {one('0', '0.9', '1e-3', '0.999999')}")
        settings.append(f"weight_decay = {one('0', '1e-3', '1', '1e-6')}")
    elif name == "rmsprop":
        settings.append(f"alpha = {one('0.5', '0.99', '0.9999')}")
    else:
        settings.append(f"betas = {one('[0, 0.5]', '[0.9, 0.99]', '[0.9, 0.999]')}")
        settings.append(f"weight_decay = {one('0', '1e-3', '0.5')}")
    more = one(
        *("", "", 'schedule = { name = "cosine" }', "schedule = { warmup_steps = 20 }"),
        'schedule = { name = "step", every = 1, factor = 0.1 }',
    )
    more += "\n" + one(
        "", "clip = { value = 1e-3 }", "clip = { norm = 1 }", "clip = { norm = 1e-2 }"
    )
    kind = one("logistic", "linear", 'softmax"\nclasses = 3 #', 'mlp"\nhidden = [4]\nclasses = 3 #')
    loss = {
        "logistic": one("", "positive_weight = 3", "positive_weight = 0"),
        "linear": one('name = "mse"', 'name = "huber"', 'name = "poisson"', 'name = "l1"'),
    }.get(kind, one("", "class_weights = [1, 2, 64]", "label_smoothing = 0.1"))
    more += f"\nloss = {{ {loss} }}" if loss else ""
    bits, limit = one("12", "13", "16", "20", "22", "26"), one("1", "8", "64", "1000")
    tail = f"[fixed_point]\nfraction_bits = {bits}\ngradient_limit = {limit}\n"
    tail += f"activation_limit = {one('1', '64', '512')}\n"
    text = with_train(f"optimizer = {{ {', '.join(settings)} }}", more, kind, tail)
    return text.replace("batch_size = 16", f"batch_size = {one('1', '2', '16', '75')}")


def step_of_each_rate(job: Job, seed: int) -> None:
    """The first step over shares, one in the middle of the schedule, and the last."""
    rates = distinct_rates(job)
    generator = np.random.default_rng(seed)
    rows, outputs = job.train.batch_size, job.outputs
    x = generator.normal(size=(rows, 2)).clip(-4, 4)
    y = generator.integers(0, 2, (rows, 1)).astype(float)
    if outputs > 1:
        y = np.eye(outputs)[generator.integers(0, outputs, rows)]

    def program(role: Role) -> None:
        with attached(role, job.fraction_bits):
            trainer = make_trainer(job)
            for number, place in enumerate((rates[0], rates[len(rates) // 2], rates[-1])):
                role.begin_step(number + 1)
                inputs, labels = (MaskedTensor(torch.from_numpy(v), src=0) for v in (x, y))
                trainer.step(inputs, labels, rate(job, *place))
                role.finish()

    run_lockstep(program, 2)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_that_is_accepted_takes_its_steps(tmp_path: Path, seed: int) -> None:
    """Whatever passes the checks of a job raises nothing in a step, at any rate of its schedule."""
    chance, taken = random.Random(seed), 0
    for number in range(400 if seed > 1 else 60):
        try:
            job = load_job(write_job(tmp_path, drawn(chance)))
        except TrainError:
            continue
        step_of_each_rate(job, number)
        taken += 1
    assert taken > 10


def through(node: Node) -> Job:
    """A job whose network puts its inputs through `node`."""
    job = load_job(write_job(Path(FOLDER.name)))
    graph = layers_of(job.widths)
    linear = msgspec.structs.replace(graph.nodes[0], inputs=("y",))
    graph = msgspec.structs.replace(graph, nodes=(node, linear))
    model = msgspec.structs.replace(job.model, network=Carried(graph))
    return msgspec.structs.replace(job, model=model)


FOLDER = TemporaryDirectory()


@pytest.mark.parametrize(
    ("op", "tight", "loose"),
    [
        ("scale", {"factor": "0.00000000001"}, {"factor": "0.001"}),
        ("shift", {"summand": "0.0000000001"}, {"summand": "-0.001"}),
        ("shift", {"summand": "1000"}, {"summand": "0"}),
        ("clamp", {"low": "0", "high": "0.0000000001"}, {"low": "0", "high": "0.001"}),
        ("batch_norm", {"eps": "0.001", "momentum": "1.5"}, {"eps": "0.001", "momentum": "1"}),
        ("batch_norm", {"eps": "9999999999", "momentum": "0"}, {"eps": "1", "momentum": "0"}),
    ],
)
def test_constants_of_a_graph_are_held(op: str, tight: Any, loose: Any) -> None:
    check_graph_ranges(through(Node("y", op, ("x",), (2,), settings=loose)))
    with pytest.raises(JobError, match=r"y \("):
        check_graph_ranges(through(Node("y", op, ("x",), (2,), settings=tight)))
