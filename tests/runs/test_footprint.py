"""What `job check` says of memory, against what processes took."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.footprint import memory_needs
from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from tests.support.images import write_images
from tests.support.jobs import JOB, write_job

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("breast_cancer", "digits", "lenet", "hospitals_rows")
TOLERANCE = 0.3
LENET = """
from torch import nn
def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
"""


def peaks(path: Path, run: Path) -> dict[str, float]:
    """Bytes that each node's process held at most, in a run."""
    argv = [sys.executable, str(ROOT / "launch.py"), str(path), "--format", "json"]
    ended = subprocess.run(
        [*argv, "--run-dir", str(run)], capture_output=True, text=True, cwd=path.parent, check=False
    )
    assert ended.returncode == 0, ended.stderr
    record: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {name: 1e6 * megabytes for name, megabytes in record["peak_rss_mb"].items()}


def check(job: Job, found: dict[str, float]) -> None:
    said = memory_needs(job)
    assert set(said) == set(found)
    for name, peak in found.items():
        assert abs(said[name] / peak - 1) < TOLERANCE, (name, said[name] / 1e6, peak / 1e6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_take_what_is_said(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns("data", "runs"))
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, str(folder / "make_data.py")], check=True, env=environment)
    check(load_job(folder / "job.toml"), peaks(folder / "job.toml", tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_regression_of_many_rows_takes_what_is_said(tmp_path: Path) -> None:
    names, rows = [f"x{index}" for index in range(30)], 200_000
    listed = ", ".join(f'{{ name = "{name}", range = [-6, 6] }}' for name in names)
    text = f"""
[job]
name = "many"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann"]
[data]
features = [{listed}]
label = "y"
rows = {{ ann = {rows // 2}, bob = {rows // 2} }}
[prepare]
scale = "standard"
[model]
kind = "logistic"
[train]
optimizer = {{ name = "newton", steps = 3 }}
[reveal]
metrics = ["accuracy", "auc", "log_loss", "calibration"]
"""
    (tmp_path / "data").mkdir()
    generator = np.random.default_rng(1)
    rule = generator.normal(0, 0.5, len(names))
    for owner in ("ann", "bob"):
        x = generator.normal(0, 1, (rows // 2, len(names))).clip(-5, 5)
        y = x @ rule + generator.logistic(0, 1, len(x)) > 0
        np.savetxt(
            tmp_path / "data" / f"{owner}.csv",
            np.column_stack([x, y]),
            fmt=["%.3f"] * len(names) + ["%d"],
            delimiter=",",
            header=",".join([*names, "y"]),
            comments="",
        )
    path = write_job(tmp_path, text)
    check(load_job(path), peaks(path, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_takes_no_more_for_more_held_out_rows(tmp_path: Path) -> None:
    """LeNet on 28 by 28 pixels, 500 and 2,000 rows held out: all at once took 1.0 and 4 GB."""
    found = []
    for held_out in (500, 2000):
        folder = tmp_path / str(held_out)
        folder.mkdir()
        (folder / "net.py").write_text(LENET)
        export = [sys.executable, "-m", "mpc_train", "model", "export", "net:lenet"]
        with (folder / "model.json").open("w") as file:
            subprocess.run(
                [*export, "--input-shape", "1,28,28"],
                stdout=file,
                check=True,
                cwd=folder,
                env={"PYTHONPATH": f"{ROOT}:{folder}", "PATH": ""},
            )
        rows = held_out + 256
        model = 'kind = "softmax"\nclasses = 10\ngraph = "model.json"'
        path = write_images(folder, model, rows)
        text = path.read_text().replace("epochs = 5", "epochs = 1")
        path.write_text(text.replace("fraction = 0.2", f"fraction = {held_out / rows:.6f}"))
        found.append(peaks(path, folder / "run"))
        check(load_job(path), found[-1])
    few, many = found
    shared = 8 * 1500 * (784 + 10)  # the rows themselves, once
    for name, peak in many.items():
        assert peak < few[name] + 6 * shared + 40e6


GRU = """
from torch import nn
class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 64, batch_first=True), nn.Linear(64, 1)
    def forward(self, x):
        return self.head(self.gru(x.reshape(x.size(0), 16, 4))[0][:, -1])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_steps_of_a_sequence_take_what_is_said(tmp_path: Path) -> None:
    """All of a batch are kept for the way back: some 300 MB here."""
    (tmp_path / "net.py").write_text(GRU)
    export = [sys.executable, "-m", "mpc_train", "model", "export", "net:Sequence"]
    with (tmp_path / "model.json").open("w") as file:
        subprocess.run(
            [*export, "--input-shape", "64"],
            stdout=file,
            check=True,
            cwd=tmp_path,
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""},
        )
    names = [f"x{index}" for index in range(64)]
    text = f"""
[job]
name = "sequence"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann"]
[data]
features = {json.dumps(names)}
label = "y"
rows = {{ ann = 128, bob = 128 }}
[model]
kind = "logistic"
graph = "model.json"
[train]
epochs = 1
batch_size = 128
optimizer = {{ learning_rate = 0.1 }}
[fixed_point]
fraction_bits = 20
"""
    (tmp_path / "data").mkdir()
    generator = np.random.default_rng(1)
    for owner in ("ann", "bob"):
        x = generator.normal(0, 1, (128, 64)).clip(-5, 5)
        np.savetxt(
            tmp_path / "data" / f"{owner}.csv",
            np.column_stack([x, x[:, 60] > 0]),
            fmt=["%.3f"] * 64 + ["%d"],
            delimiter=",",
            header=",".join([*names, "y"]),
            comments="",
        )
    path = write_job(tmp_path, text)
    check(load_job(path), peaks(path, tmp_path / "run"))


def test_what_is_said_grows_with_what_a_job_has(tmp_path: Path) -> None:
    def said(text: str) -> dict[str, int]:
        return memory_needs(load_job(write_job(tmp_path, text)))

    plain = said(JOB)
    assert set(plain) == {"ann", "bob", "cleo", "registry"}
    assert plain["registry"] < plain["ann"] < 500e6
    wide = 'kind = "mlp"\nhidden = [60000]\nclasses = 2'
    many = JOB.replace("ann = 40, bob = 30", "ann = 4000000, bob = 30")
    for text in (
        JOB.replace('kind = "logistic"', wide).replace('"accuracy", "auc"', '"accuracy"'),
        many,
    ):
        more = said(text)
        assert all(more[name] > plain[name] + 20e6 for name in plain)
    assert said(many)["ann"] >= said(many)["bob"]
    scaled = said(f'{many}\n[prepare]\nscale = "standard"\n')
    assert scaled["bob"] > said(many)["bob"]
