"""What privacy costs in accuracy: over shares, at a trusted curator, and with secret sampling.

    .venv/bin/pip install --no-deps opacus==1.6.0 opt_einsum
    .venv/bin/python tests/bench/privacy.py --adult adult.data
    .venv/bin/python tests/bench/privacy.py --study cancer --study newton --study linear --epsilon 3

Studies: `cancer` (scikit-learn's breast cancer, logistic regression in full-batch steps), `newton`
(the same in three Newton steps), `linear` (a linear regression by Newton of the same classes, as -1
and 1), `small` (in steps of eight batches), `adult` (census income, the file `adult.data` of the
UCI archive; logistic regression), `images` (28×28 pixels in ten classes made of scikit-learn's
digits, a network of 784-32-10). For each ε, accuracies on held-out rows:

* `shares`: trainings over shares, in real processes on this machine, with the noise of all nodes.
* `noise`: the twin, in the clear, with noise of that law, over many seeds.
* `curator`: the same mechanism at a trusted curator, who needs half the variance.
* the same three with noise that depends on steps before, over as many bands as an epoch has steps
  (a power of two; empty for full batches).
* `opacus`: DP-SGD at a trusted curator who also hides which rows are in a batch (Poisson sampling,
  whose amplification Opacus counts).
* `none`: the same training without clipping and noise.
* `order`: what a public order costs a curator, `opacus` less `curator`, and what of that is left
  with bands.

Rows' norms, rates and epochs are the same in all columns. After a ± is the standard deviation over
trainings.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np
import torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.row_norms import bounded_labels, clipped_rows
from mpc_train.owners.table import Table
from mpc_train.privacy.accounting import row_clip
from mpc_train.privacy.clip_plan import clipped_by_owners
from mpc_train.privacy.newton import least_ridge
from mpc_train.regression.noise import noise_of
from mpc_train.results.plain_model import plain_module
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.private import Curator
from mpc_train.twin.setup import twin_loss
from mpc_train.twin.training import ALL_NODES, pooled_inputs, train_twin
from protocols.noise.banded import MOST_BANDS
from tests.support.commands import trained
from tests.support.csv_tables import csv_of, load_tables, write_tables
from tests.support.images import images
from tests.support.jobs import job_toml, write_job
from tests.support.linear_rule import weights_of
from tests.support.noisy_newton import fitted

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Study:
    """Rows and a training. ranges: of each column, as (center, scale, low, high)."""

    name: str
    rows: np.ndarray
    labels: np.ndarray
    columns: Sequence[tuple[float, float, float, float]]
    kind: str
    model: str
    clip: str
    epochs: int
    batches: int
    rate: str
    delta: str
    epsilons: Sequence[str]
    newton: bool = False

    @property
    def bands(self) -> int:
        """As many as an epoch has steps, or a power of two below."""
        return min(MOST_BANDS, 1 << self.batches.bit_length() - 1)

    def job(self, folder: Path, epsilon: str, bands: int) -> Path:
        """The job file and the tables of two owners. With Newton steps, the least penalty that such
        a job may have."""
        if not self.newton:
            return self._written(folder, epsilon, bands, "")
        job = load_job(self._written(folder, epsilon, bands, "100"))
        noise = noise_of(job)
        assert noise is not None
        penalty = str(float(least_ridge(job, noise.information)))
        return self._written(folder, epsilon, bands, penalty)

    def _written(self, folder: Path, epsilon: str, bands: int, penalty: str) -> Path:
        names = [f"c{k}" for k in range(self.rows.shape[1])]
        first = len(self.rows) // 2
        lines = csv_of(**dict(zip(names, self.rows.T, strict=True)), label=self.labels)
        parts = {"ann": lines[: first + 1], "bob": [lines[0], *lines[first + 1 :]]}
        write_tables(folder, parts)
        training = len(self.rows) - len(self.rows) // 4
        features = [
            f'{{ name = "{name}", center = {c}, scale = {s}, range = [{low}, {high}] }}'
            for name, (c, s, low, high) in zip(names, self.columns, strict=True)
        ]
        train = (
            f"epochs = {self.epochs}\nbatch_size = {training // self.batches}\nguard = false\n"
            f"optimizer = {{ learning_rate = {self.rate}, momentum = 0.9 }}\n"
            'schedule = { name = "cosine" }'
        )
        label = "label"
        if self.newton:
            train = f'guard = false\noptimizer = {{ name = "newton", l2 = {penalty} }}'
        privacy = f"[privacy]\nepsilon = {epsilon}\ndelta = {self.delta}\nclip = {self.clip}\n"
        privacy += f"bands = {bands}\n"
        if self.kind == "linear":  # labels of -1 and 1
            label = '{ name = "label", center = 0.5, scale = 0.5, range = [0, 1] }'
            privacy += "clip_label = 1\n"
        text = job_toml(
            features,
            self.kind,
            label=label,
            rows={"ann": first, "bob": len(self.rows) - first},
            data="test_fraction = 0.25",
            model=self.model,
            train=train,
            more=privacy + 'neighbours = "zeroed"',
        )
        return write_job(folder, text)


def cancer() -> Study:
    from sklearn.datasets import load_breast_cancer

    rows, labels = load_breast_cancer(return_X_y=True)
    columns = _columns(rows)
    epsilons = ("1", "3", "8")
    return Study("cancer", rows, labels, columns, "logistic", "", "3", 10, 1, "0.5", "0.0001",
                 epsilons)  # fmt: skip


def newton() -> Study:
    return replace(cancer(), name="newton", newton=True)


def linear() -> Study:
    return replace(newton(), name="linear", kind="linear")


def small() -> Study:
    return replace(cancer(), name="small", batches=8)


def adult(path: Path) -> Study:
    cells = [line.split(", ") for line in path.read_text().splitlines() if line.strip()]
    cells = [row for row in cells if len(row) == 15]
    numbers = np.array([[float(row[k]) for k in (0, 4, 10, 11, 12)] for row in cells])
    numbers[:, 2:4] = np.log1p(numbers[:, 2:4])
    parts = [numbers]
    for place in (1, 5, 6, 7, 8, 9):
        values = np.array([row[place] for row in cells])
        parts.append((values[:, None] == np.unique(values)).astype(float))
    rows = np.concatenate(parts, 1)
    labels = np.array([float(row[14].startswith(">50K")) for row in cells])
    columns = [*_columns(numbers), *[(0.0, 1.0, 0.0, 1.0)] * (rows.shape[1] - 5)]
    epsilons = ("1", "3", "8")
    return Study("adult", rows, labels, columns, "logistic", "", "3", 4, 16, "0.5", "0.00001",
                 epsilons)  # fmt: skip


def pictures() -> Study:
    rows, labels = images()
    columns = [(0.0, 255.0, 0.0, 255.0)] * rows.shape[1]
    model = "hidden = [32]\nclasses = 10"
    return Study("images", rows, labels, columns, "mlp", model, "4", 5, 15, "0.25", "0.00001",
                 ("8",))  # fmt: skip


def _columns(rows: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Round public figures, as a study takes them from a textbook."""
    found = []
    for column in rows.T:
        center, scale = (float(f"{value:.1e}") for value in (column.mean(), column.std()))
        low, high = float(np.floor(column.min() - scale)), float(np.ceil(column.max() + scale))
        found.append((center, scale, low, high))
    return found


def accuracy(job: Job, tables: Sequence[Table], state: State) -> float:
    """Of the held-out rows, in per cent."""
    held_out = split(job)[1]
    inputs = torch.from_numpy(pooled_inputs(job, tables)[0][held_out])
    labels = np.concatenate([table.labels for table in tables])[held_out]
    module = plain_module(job).double()
    module.load_state_dict({name: torch.from_numpy(np.asarray(x)) for name, x in state.items()})
    with torch.no_grad():
        outputs = module(inputs).numpy()
    found = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(1)
    return float(100 * (found == (labels > 0 if job.model.kind == "linear" else labels)).mean())


def opacus_state(job: Job, tables: Sequence[Table], seed: int) -> State:
    """DP-SGD with Poisson sampling by Opacus, the model and numbers of the job."""
    import warnings

    from opacus import PrivacyEngine

    warnings.simplefilter("ignore")
    assert job.privacy
    torch.manual_seed(seed)
    training = split(job)[0]
    pooled = pooled_inputs(job, tables)[0]
    if clipped_by_owners(job):
        pooled = clipped_rows(job, pooled, training)
    inputs = torch.from_numpy(pooled[training])
    labels = torch.from_numpy(np.concatenate([table.labels for table in tables])[training])
    module = plain_module(job).double()
    scale = 2.0**job.fraction_bits
    start = {name: torch.from_numpy(x / scale) for name, x in initial_weights(job).items()}
    module.load_state_dict(start)
    loss = twin_loss(job)
    rate = float(job.train.optimizer.learning_rate)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)
    data = torch.utils.data.TensorDataset(inputs, labels)
    batches = torch.utils.data.DataLoader(data, batch_size=job.train.batch_size)
    module, optimizer, batches = PrivacyEngine(accountant="prv").make_private_with_epsilon(
        module=module,
        optimizer=optimizer,
        data_loader=batches,
        target_epsilon=float(job.privacy.epsilon),
        target_delta=float(job.privacy.small_delta),
        epochs=job.train.epochs,
        max_grad_norm=float(row_clip(job)),
    )
    for epoch in range(job.train.epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + np.cos(np.pi * epoch / job.train.epochs)) / 2
        for x, y in batches:
            optimizer.zero_grad()
            if len(x):
                loss(module(x), y).backward()
                optimizer.step()
    return {name.removeprefix("_module."): x.numpy() for name, x in module.state_dict().items()}


def lockstep_state(job: Job, tables: Sequence[Table], seed: int) -> State:
    """A regression by Newton steps over shares, with all nodes in this process."""
    training = split(job)[0]
    inputs = clipped_rows(job, pooled_inputs(job, tables)[0], training)
    labels = np.concatenate([table.labels for table in tables])
    labels = bounded_labels(job, labels, training)
    found = fitted(job, inputs, labels, seed=seed).coefficients
    return {"weight": found[:-1].reshape(1, -1), "bias": found[-1:]}


def measured(
    study: Study, epsilon: str, runs: int, seeds: int, lockstep: bool = False
) -> dict[str, Any]:
    """The accuracies of one line: mean and standard deviation of each column. lockstep: Newton
    steps over shares are those of one process."""
    found: dict[str, list[float]] = {}
    central = Curator(central=True)
    for bands, columns in zip(dict.fromkeys((1, study.bands)), (ALONE, BANDED), strict=False):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = study.job(folder, epsilon, bands)
            job = load_job(path)
            tables, start = load_tables(folder, job), initial_weights(job)

            def of(state: State, job: Job = job, tables: Sequence[Table] = tables) -> float:
                return accuracy(job, tables, state)

            for column, curator in zip(columns[1:], (ALL_NODES, central), strict=True):
                found[column] = [
                    of(train_twin(job, tables, start, curator).state) for _ in range(seeds)
                ]
            if bands == 1:
                if importlib.util.find_spec("opacus") and not study.newton:
                    found["opacus"] = [of(opacus_state(job, tables, seed)) for seed in range(seeds)]
                plain = msgspec.structs.replace(job, privacy=msgspec.UNSET)
                found["none"] = [of(train_twin(plain, tables, start).state)]
            inside = runs if lockstep and study.newton else 0
            found[columns[0]] = [
                of(lockstep_state(job, tables, 1 + seed)) for seed in range(inside)
            ]
            for _ in range(runs - inside):
                found[columns[0]].append(of(weights_of(trained(path))))
                shutil.rmtree(folder / "run")
    return {
        "study": study.name,
        "epsilon": Decimal(epsilon),
        "rows": len(split(job)[0]),
        "runs": runs,
        "seeds": seeds,
        **{name: (float(np.mean(x)), float(np.std(x))) for name, x in found.items() if x},
    }


CHOICES = ("cancer", "newton", "linear", "small", "adult", "images")
ALONE = ("shares", "noise", "curator")
BANDED = ("banded shares", "banded noise", "banded curator")
COLUMNS = (*ALONE, *BANDED, "opacus", "none")


def line(found: dict[str, Any]) -> str:
    cells = []
    for name in COLUMNS:
        mean, spread = found.get(name, (None, None))
        cells.append("" if mean is None else f"{mean:.2f} ± {spread:.2f}")
    costs = [
        f"{found['opacus'][0] - found[name][0]:.2f}"
        for name in ("curator", "banded curator")
        if "opacus" in found and name in found
    ]
    return "  ".join(
        [f"{found['study']:8}", f"{found['epsilon']!s:>3}", *(f"{c:>14}" for c in cells), *costs]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=CHOICES, action="append")
    parser.add_argument("--adult", type=Path, help="the file adult.data of the UCI archive")
    parser.add_argument("--runs", type=int, default=1, help="trainings over shares")
    parser.add_argument("--seeds", type=int, default=10, help="trainings in the clear")
    parser.add_argument(
        "--lockstep", action="store_true", help="Newton steps over shares in this process"
    )
    parser.add_argument("--epsilon", action="append", help="only these; repeat for several")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.study or [
        "cancer",
        "newton",
        "linear",
        "small",
        *(["adult"] if options.adult else []),
        "images",
    ]
    if options.format == "text":
        print("  ".join(["study   ", "  ε", *(f"{name:>14}" for name in COLUMNS), "order"]))
    for name in chosen:
        study = {
            "cancer": cancer,
            "newton": newton,
            "linear": linear,
            "small": small,
            "adult": lambda: adult(options.adult),
            "images": pictures,
        }[name]()
        for epsilon in options.epsilon or study.epsilons:
            found = measured(study, epsilon, options.runs, options.seeds, options.lockstep)
            text = json.dumps(found, default=str) if options.format == "json" else line(found)
            print(text, flush=True)


if __name__ == "__main__":
    main()
