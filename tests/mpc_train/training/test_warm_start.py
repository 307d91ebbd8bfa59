"""Training from a public or a private state_dict, with tensors that stay as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mpc_train.admission.load import load_job
from mpc_train.errors import DataError, JobError
from mpc_train.jobs.job import Job
from mpc_train.owners.table import load_table
from mpc_train.tables.source import Source
from mpc_train.training.warm_start import load_start, start_words
from mpc_train.twin.training import max_weight_difference, train_twin
from tests.runs.test_watch import run, study, weights_of

SHAPES = {"0.weight": (6, 3), "0.bias": (6,), "2.weight": (2, 6), "2.bias": (2,)}


def state(seed: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def start_file(folder: Path, tensors: dict[str, np.ndarray]) -> tuple[Path, str]:
    path = folder / "start.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def warm_study(folder: Path, source: str, extra: str = "", owners: str = '["ann", "bob"]') -> Path:
    train = "optimizer = { learning_rate = 0.25 }\n"
    train += f'warm_start = {{ source = "{source}"{extra} }}'
    path = study(folder, "mlp", train, epochs=2)
    text = path.read_text().replace('kind = "mlp"', 'kind = "mlp"\nclasses = 2\nhidden = [6]')
    text = text.replace('owners = ["ann", "bob"]', f"owners = {owners}")
    path.write_text(text)
    return path


def trained_and_twin(path: Path, folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    shown = run(path, folder)
    assert shown.exit_code == 0, shown.stderr
    record = json.loads(shown.stdout.splitlines()[-1])
    job = load_job(path)
    tables = [
        load_table(Source(str(path.parent / "data" / f"{owner}.csv")), job, owner)
        for owner in job.owners
    ]
    initial = start_words(job, load_start(path.parent / "start.safetensors", job))
    return weights_of(record), train_twin(job, tables, initial).state


def test_a_public_start_with_a_frozen_layer(tmp_path: Path) -> None:
    tensors = state()
    _, digest = start_file(tmp_path, tensors)
    path = warm_study(tmp_path, "public", f', sha256 = "{digest}", frozen = ["0."]')
    weights, twin = trained_and_twin(path, tmp_path / "run")
    assert max_weight_difference(weights, twin) < 1e-3
    for name in ("0.weight", "0.bias"):
        np.testing.assert_allclose(weights[name], tensors[name], rtol=0, atol=2**-20)
    assert np.abs(weights["2.weight"] - tensors["2.weight"]).max() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("source", ["bob", "registry", "farm"])
def test_a_private_start(source: str, tmp_path: Path) -> None:
    """bob evaluates, the registry deals, the farm only brings data."""
    start_file(tmp_path, state())
    owners = '["ann", "bob", "farm"]' if source == "farm" else '["ann", "bob"]'
    path = warm_study(tmp_path, source, owners=owners)
    if source == "farm":
        text = path.read_text().replace("bob = 70 }", "bob = 70, farm = 70 }")
        path.write_text(text.replace("[data]", "[data]\nsplit_seed = 3", 1))
        path.write_text(
            path.read_text().replace("dealer = ", 'evaluators = ["ann", "bob"]\ndealer = ', 1)
        )
        (tmp_path / "data" / "farm.csv").write_text((tmp_path / "data" / "bob.csv").read_text())
    weights, twin = trained_and_twin(path, tmp_path / "run")
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
