"""Jobs with `[privacy]` whose rows could exceed their norm, or get no noise, are refused."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from math import isqrt
from pathlib import Path

import msgspec
import pytest

from mpc_train.admission import noise
from mpc_train.errors import JobError
from mpc_train.privacy import newton
from mpc_train.privacy.clip_plan import (
    Layer,
    clip_plan,
    clipped_by_owners,
    grid_bits,
    input_square,
    make_plan,
)
from mpc_train.regression.noise import noise_of, variance_of
from mpc_train.regression.scales import PREDICTOR_BITS
from mpc_train.regression.settings import sizes_of
from mpc_train.training.rates import MIN_RATE_BITS, rate_bits
from protocols.errors import RangeError
from tests.support.jobs import job_toml, loaded
from tests.support.modules import write_modules
from tests.support.noisy_newton import noisy_job

SGD = "optimizer = { learning_rate = 0.1 }"
MLP = "hidden = [4]\nclasses = 3"


def text(
    kind: str = "logistic",
    *,
    clip: str = "2",
    train: str = SGD,
    steps: str = "epochs = 2\nbatch_size = 20\nguard = false",
    model: str = "",
    privacy: str = "",
    more: str = "",
) -> str:
    section = (
        f'[privacy]\nepsilon = 8\ndelta = 0.001\nneighbours = "zeroed"\nclip = {clip}\n{privacy}'
    )
    return job_toml("abc", kind, model=model, train=f"{steps}\n{train}", more=f"{more}\n{section}")


@pytest.mark.parametrize("kind", ["logistic", "linear", "softmax", "mlp"])
def test_jobs_that_fit_have_room_for_their_rate(kind: str, tmp_path: Path) -> None:
    model = {"mlp": MLP, "softmax": "classes = 3"}.get(kind, "")
    job = loaded(tmp_path, text(kind, model=model))
    assert rate_bits(job) >= MIN_RATE_BITS
    assert grid_bits(job) >= 2 * job.fraction_bits
    if kind != "logistic":
        assert clip_plan(job).reached < 2


def test_owners_clip_only_inputs_that_they_know(tmp_path: Path) -> None:
    """A product of two clipped cells may be longer than both, and its norm has its own bound."""
    alone = loaded(tmp_path, text())
    products = loaded(tmp_path, text(more='[prepare]\ninteractions = [["a", "b"]]'))
    assert clipped_by_owners(alone) and not clipped_by_owners(products)
    heavier = loaded(tmp_path, text(train=f"{SGD}\nloss = {{ positive_weight = 4 }}"))
    assert not clipped_by_owners(heavier)  # a residual is up to 4
    data = msgspec.structs.replace(alone.data, partition="columns")
    assert not clipped_by_owners(msgspec.structs.replace(alone, data=data))
    assert clip_plan(products).clip == 2
    assert input_square(alone) == 3 * 16**2 + 1
    assert input_square(products) == 3 * 16**2 + 16**4 + 1


def test_norms_of_inputs_fit_the_ring() -> None:
    """Otherwise that of a long row wraps around, and is taken for a small one."""
    plan = partial(
        make_plan,
        [Layer(1 << 13, 1, True)],
        given="weight",
        fraction_bits=20,
        clip=Fraction(256),
        sum_limit=Fraction(9999),
        rate=Fraction(1, 9),
    )
    assert plan(input_square=Fraction(1 << 21)).input_bits == 21
    with pytest.raises(RangeError, match="do not fit a word"):
        plan(input_square=Fraction((1 << 21) + 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": "1"}, "above 1 for each row"),
        ({"clip": "1.005"}, "above 1 for each row"),  # next to nothing is left for inputs
        (
            {"kind": "linear", "more": "[fixed_point]\nfraction_bits = 26\nactivation_limit = 64"},
            "raise privacy.clip",
        ),
        (
            {"train": "optimizer = { learning_rate = 10, momentum = 0.999 }"},
            "an output leaves the ring",
        ),
        (
            {"train": 'optimizer = { name = "adam", learning_rate = 0.01 }', "clip": "16"},
            "with its noise a mean gradient",
        ),
        (
            {"train": "optimizer = { learning_rate = 2, weight_decay = 0.75 }"},
            "weights grow with every step",
        ),
        (
            {
                "train": f'{SGD}\n[train.warm_start]\nsource = "public"\nsha256 = "{64 * "0"}"',
                "more": "[fixed_point]\nactivation_limit = 1048576",
            },
            "an output leaves the ring",
        ),
    ],
)
def test_jobs_that_do_not_fit_are_refused(
    change: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=said):
        loaded(tmp_path, text(**change))


def test_bands_whose_rounding_is_not_accounted_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job that fits the ring rounds so much today: the bound is moved instead."""
    for kind in ("logistic", "softmax"):
        banded = text(kind, model="classes = 3" if kind == "softmax" else "", privacy="bands = 2")
        loaded(tmp_path, banded)
        with monkeypatch.context() as change:
            change.setattr(noise, "ROUNDED_PART", Fraction(1, 1 << 40))
            with pytest.raises(JobError, match=r"privacy\.bands: .* too coarse"):
                loaded(tmp_path, banded)


DROPPING = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))
"""


def test_networks_whose_rows_are_not_clipped_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(tmp_path, monkeypatch, dropping_net=DROPPING)
    with pytest.raises(JobError, match="rows are not clipped in a network with dropout"):
        loaded(tmp_path, text(model='module = "dropping_net:net"'))


def test_interactions_are_clipped_over_shares(tmp_path: Path) -> None:
    """Their owners clip a row before its products are made, of which they do not know the norm."""
    kind = "logistic"
    assert clipped_by_owners(loaded(tmp_path, text(kind)))
    job = loaded(tmp_path, text(kind, more='[prepare]\ninteractions = [["a", "b"]]'))
    assert not clipped_by_owners(job)
    assert clip_plan(job).given == ""
    assert input_square(job) == 3 * 16**2 + 256**2 + 1


def test_rows_whose_squares_do_not_fit_are_looked_at_over_shares(tmp_path: Path) -> None:
    """64 values of 1024 have a sum of squares of 2^64 words: it would be taken for 0."""
    names = [f"x{place}" for place in range(64)]
    for limit, given in (("64", "weight"), ("1024", "")):
        job = loaded(
            tmp_path,
            job_toml(
                names,
                "linear",
                data=f"limit = {limit}",
                train="epochs = 1\nbatch_size = 8\nguard = false\noptimizer = { learning_rate = "
                "0.0001 }",
                more="[fixed_point]\nfraction_bits = 19\n[privacy]\nepsilon = 8\ndelta = 0.001\n"
                'neighbours = "zeroed"\nclip = 512',
            ),
        )
        assert clip_plan(job).given == given


ORDERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, first=None):
        super().__init__()
        self.out = nn.Linear(4, 1)
        self.hidden = nn.Linear(3, 4)
        self.first = first or nn.Identity()

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.first(x))))

def later():
    return Net()

def squashed():
    return Net(nn.Sigmoid())

def overlapping():
    return nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(9, 1))

def apart():
    return nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 1))
"""


def test_only_inputs_that_owners_bound_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer that a row passes, which need not be the first of the module, and none if
    something is computed before."""
    write_modules(tmp_path, monkeypatch, orders_net=ORDERS)
    for name, given in (("later", "hidden.weight"), ("squashed", ""), ("apart", "0.weight")):
        job = loaded(tmp_path, text(model=f'module = "orders_net:{name}"'))
        assert next(iter(job.shapes)) == ("0.weight" if name == "apart" else "out.weight")
        assert clip_plan(job).given == given
    with pytest.raises(JobError, match="max pool overlap behind a linear layer"):
        loaded(tmp_path, text(model='module = "orders_net:overlapping"'))


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (noise, "LEAST_BITS", 20, "fractional bits beside so much noise"),
        (noise, "LEAST_DEVIATION", 1 << 60, "steps of the fixed point"),
        (noise, "WORD_BITS", 24, "out of the ring"),
        (noise, "WILD_BITS", 120, "out of the ring"),
        (newton, "ROUNDED_PART", Fraction(1, 1 << 40), "rounded too coarsely"),
    ],
)
def test_sums_of_newton_steps_that_are_not_as_accounted_for_are_refused(
    where: object,
    name: str,
    value: object,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each bound is moved: jobs that reach them need millions of rows."""
    noisy_job(tmp_path, rows=4000)
    monkeypatch.setattr(where, name, value)
    with pytest.raises(JobError, match=said):
        noisy_job(tmp_path, rows=4000)


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_the_least_noise_of_newton_steps_is_wide_enough(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a step of the grid: σ/√2 beside the diagonal of H for a linear model, σ of g otherwise."""
    job = noisy_job(tmp_path, kind, rows=4000)
    drawn, sizes = noise_of(job), sizes_of(job)
    assert drawn is not None
    whole = 2 * sizes.input_bits + sizes.weight_bits
    beside = variance_of(drawn.information, whole) / 2
    of_gradient = variance_of(drawn.gradient, sizes.input_bits + PREDICTOR_BITS)
    assert (beside < of_gradient) == (kind == "linear")
    least = isqrt(int(min(beside, of_gradient) / len(job.evaluators)))
    monkeypatch.setattr(noise, "LEAST_DEVIATION", least)
    noisy_job(tmp_path, kind, rows=4000)
    monkeypatch.setattr(noise, "LEAST_DEVIATION", least + 1)
    with pytest.raises(JobError, match="steps of the fixed point"):
        noisy_job(tmp_path, kind, rows=4000)
