"""What `mpc-train estimate` says beforehand, against what processes sent and took.

`-s` prints the ratios. `tests/mpc_train/estimates` has the tests without processes.
"""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.estimates.estimate import Link, estimate
from mpc_train.estimates.speed import Speed
from tests.support.commands import launched
from tests.support.csv_tables import csv_of, write_tables
from tests.support.examples import copied_example, make_data
from tests.support.images import write_images
from tests.support.jobs import job_toml, write_job
from tests.support.modules import export, write_modules

EXAMPLES = (
    *("breast_cancer", "credit_columns", "diabetes", "diabetes/statistics.toml", "digits"),
    *("hospitals_rows", "lenet"),
)
"""Folders, and jobs besides their job.toml."""
TOLERANCE = 0.25
ANY_LINK, ANY_SPEED = Link(0.0, 1e9), Speed(1e9, 1e9, 1e4)
LENET = """
from torch import nn
def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
"""


def check(path: Path) -> dict[str, float]:
    """A run sends what is said beforehand, to the byte, and takes about as much memory; returns the
    bytes of memory that each node took."""
    record = launched(path)
    said = estimate(load_job(path), ANY_LINK, ANY_SPEED, record.get("joined_rows"))
    sent = {name: node.bytes_sent for name, node in said.nodes.items()}
    took = {name: 1e6 * megabytes for name, megabytes in record["peak_rss_mb"].items()}
    memory = {name: node.memory_bytes / took[name] for name, node in said.nodes.items()}
    for name in took:
        ratio = sent[name] / record["bytes_sent"][name]
        print(f"{path.parent.name} {name}: bytes {ratio:.4f}, memory {memory[name]:.2f}")
    assert said.training_rounds == record["rounds"]
    # A checkpoint that falls due during the run sends a frame of 48 bytes.
    for name, count in record["bytes_sent"].items():
        assert abs(sent[name] - count) <= 1000
    assert all(abs(ratio - 1) < TOLERANCE for ratio in memory.values()), memory
    return took


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_cost_what_is_said(name: str, tmp_path: Path) -> None:
    folder, _, other = name.partition("/")
    path = copied_example(folder, tmp_path)
    make_data(tmp_path)
    check(tmp_path / other if other else path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_regression_of_many_rows_takes_what_is_said(tmp_path: Path) -> None:
    names, rows = [f"x{index}" for index in range(30)], 200_000
    text = job_toml(
        [f'{{ name = "{name}", range = [-6, 6] }}' for name in names],
        rows={"ann": rows // 2, "bob": rows // 2},
        train='optimizer = { name = "newton", steps = 3 }',
        more='[prepare]\nscale = "standard"\n'
        '[reveal]\nmetrics = ["accuracy", "auc", "log_loss", "calibration"]',
    )
    generator = np.random.default_rng(1)
    rule = generator.normal(0, 0.5, len(names))
    for owner in ("ann", "bob"):
        x = generator.normal(0, 1, (rows // 2, len(names))).clip(-5, 5)
        y = x @ rule + generator.logistic(0, 1, len(x)) > 0
        columns = dict(zip(names, x.round(3).T, strict=True))
        write_tables(tmp_path, {owner: csv_of(**columns, y=y.astype(int))})
    path = write_job(tmp_path, text)
    check(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_takes_no_more_for_more_held_out_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeNet on 28 by 28 pixels, 500 and 2,000 rows held out: all at once took 1.0 and 4 GB."""
    found = []
    for held_out in (500, 2000):
        folder = tmp_path / str(held_out)
        folder.mkdir()
        write_modules(folder, monkeypatch, net=LENET)
        export(folder, "net:lenet", "1,28,28")
        rows = held_out + 256
        path = write_images(folder, "softmax", 'classes = 10\ngraph = "model.json"', rows)
        text = path.read_text().replace("epochs = 5", "epochs = 1")
        path.write_text(text.replace("fraction = 0.2", f"fraction = {held_out / rows:.6f}"))
        found.append(check(path))
    few, many = found
    shared = 8 * 1500 * (784 + 10)  # the rows themselves, once
    for name, peak in many.items():
        assert peak < few[name] + 6 * shared + 40e6


NEWTON = 'guard = false\noptimizer = { name = "newton", l2 = 0.2, steps = 4 }'
GRADIENTS = "guard = false\nepochs = 3\nbatch_size = 500\noptimizer = { learning_rate = 0.1 }"
NOISY = {
    "linear": (NEWTON, "clip_label = 1"),
    "logistic": (NEWTON, ""),
    "statistics": (
        GRADIENTS,
        '[privacy.statistics]\nshare = 0.2\n[prepare]\nscale = "standard"\nmissing = "mean"',
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOISY)
def test_jobs_with_noise_take_what_is_said(name: str, tmp_path: Path) -> None:
    """Newton steps over several blocks of rows, and sums of `[prepare]`."""
    train, more = NOISY[name]
    names, rows = [f"x{index}" for index in range(20)], 4000
    text = job_toml(
        [f'{{ name = "{name}", range = [-4, 4] }}' for name in names],
        "linear" if name == "linear" else "logistic",
        label='{ name = "y", range = [0, 1] }' if name == "linear" else "y",
        rows={"ann": rows // 2, "bob": rows // 2},
        train=train,
        more="[fixed_point]\nfraction_bits = 20\n[privacy]\nepsilon = 8\ndelta = 0.00001\n"
        f'neighbours = "zeroed"\nclip = 3\n{more}',
    )
    generator = np.random.default_rng(1)
    for owner in ("ann", "bob"):
        x = generator.normal(0, 1, (rows // 2, len(names))).clip(-4, 4)
        columns = dict(zip(names, x.round(3).T, strict=True))
        write_tables(tmp_path, {owner: csv_of(**columns, y=(x[:, 0] > 0).astype(int))})
    check(write_job(tmp_path, text))


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
def test_the_steps_of_a_sequence_take_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a batch are kept for the way back: some 300 MB here."""
    write_modules(tmp_path, monkeypatch, net=GRU)
    export(tmp_path, "net:Sequence", "64")
    names = [f"x{index}" for index in range(64)]
    text = job_toml(
        names,
        rows={"ann": 128, "bob": 128},
        model='graph = "model.json"',
        train="epochs = 1\nbatch_size = 128\noptimizer = { learning_rate = 0.1 }",
        more="[fixed_point]\nfraction_bits = 20",
    )
    generator = np.random.default_rng(1)
    for owner in ("ann", "bob"):
        x = generator.normal(0, 1, (128, 64)).clip(-5, 5)
        columns = dict(zip(names, x.round(3).T, strict=True))
        write_tables(tmp_path, {owner: csv_of(**columns, y=(x[:, 60] > 0).astype(int))})
    path = write_job(tmp_path, text)
    check(path)
