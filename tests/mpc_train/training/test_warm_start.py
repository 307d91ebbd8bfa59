"""Training from a public or a private state_dict, with tensors that stay as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mpc_train.admission.load import load_job
from mpc_train.errors import DataError, JobError
from mpc_train.jobs.job import Job
from mpc_train.training.warm_start import load_start, start_words
from mpc_train.twin.training import max_weight_difference, train_twin
from tests.support.commands import trained
from tests.support.csv_tables import load_tables
from tests.support.linear_rule import ROWS, weights_of, write_study

SHAPES = {"0.weight": (6, 3), "0.bias": (6,), "2.weight": (2, 6), "2.bias": (2,)}


def state(seed: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def start_file(folder: Path, tensors: dict[str, np.ndarray]) -> tuple[Path, str]:
    path = folder / "start.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def warm_study(folder: Path, source: str, extra: str = "", farm: bool = False) -> Path:
    """farm: a third owner, which only provides rows."""
    train = "optimizer = { learning_rate = 0.25 }\n"
    train += f'warm_start = {{ source = "{source}"{extra} }}'
    return write_study(
        folder,
        "mlp",
        train,
        epochs=2,
        rows=ROWS | {"farm": 70} if farm else ROWS,
        job='evaluators = ["ann", "bob"]',
        model="classes = 2\nhidden = [6]",
    )


def trained_and_twin(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    record = trained(path)
    job = load_job(path)
    initial = start_words(job, load_start(path.parent / "start.safetensors", job))
    return weights_of(record), train_twin(job, load_tables(path.parent, job), initial).state


@pytest.mark.slow
def test_a_public_start_with_a_frozen_layer(tmp_path: Path) -> None:
    tensors = state()
    _, digest = start_file(tmp_path, tensors)
    path = warm_study(tmp_path, "public", f', sha256 = "{digest}", frozen = ["0."]')
    weights, twin = trained_and_twin(path)
    assert max_weight_difference(weights, twin) < 1e-3
    for name in ("0.weight", "0.bias"):
        np.testing.assert_allclose(weights[name], tensors[name], rtol=0, atol=2**-20)
    assert np.abs(weights["2.weight"] - tensors["2.weight"]).max() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("source", ["bob", "registry", "farm"])
def test_a_private_start(source: str, tmp_path: Path) -> None:
    """bob evaluates, the registry deals, the farm only brings data."""
    start_file(tmp_path, state())
    path = warm_study(tmp_path, source, farm=source == "farm")
    weights, twin = trained_and_twin(path)
    assert max_weight_difference(weights, twin) < 1e-3
    logs = "".join(file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*.log"))
    assert str(float(state()["2.bias"][0]))[:8] not in logs


def job_with(tmp_path: Path, source: str = "ann", extra: str = "") -> Job:
    return load_job(warm_study(tmp_path, source, extra))


@pytest.mark.parametrize(
    ("source", "extra", "key"),
    [
        ("public", "", "train.warm_start.sha256"),
        ("nobody", "", "train.warm_start.source"),
        ("ann", f', sha256 = "{"0" * 64}"', "train.warm_start.sha256"),
        ("ann", ', frozen = ["1."]', "train.warm_start.frozen"),
        ("ann", ', frozen = ["0.", "2."]', "train.warm_start.frozen"),
    ],
)
def test_a_job_says_what_is_wrong(tmp_path: Path, source: str, extra: str, key: str) -> None:
    with pytest.raises(JobError, match=key.replace(".", r"\.")):
        job_with(tmp_path, source, extra)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    job = job_with(tmp_path)
    cases = {
        "2.extra": state() | {"2.extra": np.zeros(1, np.float32)},
        "shape": state() | {"2.bias": np.zeros(3, np.float32)},
        "not finite": state() | {"2.bias": np.array([np.nan, 0], np.float32)},
        "beyond": state() | {"2.bias": np.array([65.0, 0], np.float32)},
    }
    for word, tensors in cases.items():
        path, _ = start_file(tmp_path, tensors)
        with pytest.raises(DataError, match=word):
            load_start(path, job)
    path.write_bytes(b"no tensors")
    with pytest.raises(DataError, match="safetensors"):
        load_start(path, job)
    path, _ = start_file(tmp_path, state())
    other = job_with(tmp_path, "public", f', sha256 = "{"0" * 64}"')
    with pytest.raises(DataError, match="sha256"):
        load_start(path, other)
    with pytest.raises(DataError, match="cannot be read"):
        load_start(tmp_path / "nothing", other)
