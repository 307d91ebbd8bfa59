"""Jobs with `[privacy]` whose rows could exceed their norm, or get no noise, are refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from mpc_train.admission import noise
from mpc_train.errors import JobError
from mpc_train.privacy import newton
from mpc_train.privacy.clip_plan import clip_plan, grid_bits
from mpc_train.training.rates import MIN_RATE_BITS, rate_bits
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip": "1"}, "above 1 for each row"),
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


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (noise, "LEAST_BITS", 20, "fractional bits beside so much noise"),
        (noise, "LEAST_DEVIATION", 1 << 60, "steps of the fixed point"),
        (noise, "COEFFICIENT_BITS", 60, "out of the ring"),
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
