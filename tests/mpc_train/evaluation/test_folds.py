"""Cross-validation reveals means over folds, which are those of the same folds in the clear."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.base.reading import Reading
from mpc_train.errors import JobError
from mpc_train.evaluation.folds import cross_validated, fold_steps
from mpc_train.jobs.audience import fold_outputs
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import fold_jobs, split, total_steps
from mpc_train.owners.table import Table
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.run.phases.train import train_model
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import train_twin
from protocols.roles.role import Role
from protocols.shares.reveal import RevealGate
from tests.support.jobs import replaced, write_job
from tests.support.lockstep import run_lockstep
from tests.support.tensors import attached, shared_in

FOLDS = 'metrics = ["accuracy", "auc", "log_loss", "confusion"]\nfolds = 3\nleast_test_rows = 10'


def folded(folder: Path, more: str = "") -> Job:
    text = replaced('metrics = ["accuracy", "auc"]', f"{FOLDS}\n{more}")
    text = text.replace("epochs = 4", "epochs = 1")
    return load_job(write_job(folder, text))


def rows_of(job: Job) -> list[Table]:
    generator = np.random.default_rng(6)
    found = []
    for owner in job.owners:
        x = generator.normal(0, 1, (job.data.rows[owner], 2))
        y = (x.sum(axis=1) + generator.normal(0, 0.8, len(x)) > 0).astype(np.float64)
        found.append(Table(x, y, np.ones((len(x), 0))))
    return found


def test_folds_are_parts_of_the_training_rows(tmp_path: Path) -> None:
    job = folded(tmp_path)
    training, held_out = split(job)
    folds = [split(fold) for fold in fold_jobs(job)]
    assert sorted(np.concatenate([fold for _, fold in folds])) == training.tolist()
    for rest, fold in folds:
        assert not set(rest) & set(fold) and not set(fold) & set(held_out)
        assert sorted([*rest, *fold]) == training.tolist()
    assert fold_steps(job) == sum(total_steps(fold) for fold in fold_jobs(job)) == 9
    assert fold_outputs(job) == ["cv_accuracy", "cv_auc", "cv_log_loss"]


def found_by(job: Job, tables: list[Table]) -> tuple[dict[str, Reading], dict[str, str], list[str]]:
    """Means, why those are missing that are, and what passed the gate."""
    inputs = np.concatenate([table.features for table in tables])
    labels = np.concatenate([table.labels for table in tables])[:, None]

    def program(role: Role) -> object:
        with attached(role, job.fraction_bits):
            x, y = shared_in(role, inputs, labels)
            shared = Shared(x, y, Parameters())
            gate = RevealGate(agreed_outputs(job))
            found = cross_validated(
                job,
                role,
                gate,
                x,
                y,
                lambda fold, later: (
                    train_model(fold, later, None, shared, {}, lambda _: None).model.evaluated
                ),
            )
            return found.metrics, found.reasons, [output.name for output in gate.passed]

    results: Any = run_lockstep(program, 2)
    first, second, dealer = results
    assert first == second and dealer[0] == {}
    return cast("tuple[dict[str, Reading], dict[str, str], list[str]]", first)


@pytest.mark.parametrize(
    "more", ["least_group = 1\n", "decimals = 2\nleast_group = 1\n", "least_group = 12\n"]
)
def test_means_are_those_of_the_twin(tmp_path: Path, more: str) -> None:
    job = folded(tmp_path, more)
    tables = rows_of(job)
    found, _, passed = found_by(job, tables)
    assert passed == fold_outputs(job) == list(found)
    twin = train_twin(job, tables, initial_weights(job)).metrics
    for name, value in found.items():
        if value is not None:
            bound = 1e-9 if "decimals" in more else 2**-9
            assert value == pytest.approx(twin[name], abs=bound), name
    # A fold has 25 rows, and one of the three fewer than 12 of some class.
    assert (found["cv_auc"] is None) == ("12" in more)
    assert found["cv_accuracy"] is not None and twin["cv_auc"] is not None


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_mean_is_undefined_where_it_is_in_one_fold(tmp_path: Path, fold: int) -> None:
    """Whichever fold has rows of one class alone."""
    job = folded(tmp_path, "least_group = 1\n")
    only = split(fold_jobs(job)[fold - 1])[1]
    tables = rows_of(job)
    for owner, table in zip(job.owners, tables, strict=True):
        mine = only - job.first_row(owner)
        table.labels[mine[(mine >= 0) & (mine < table.rows)]] = 0
    found, reasons, _ = found_by(job, tables)
    assert found["cv_auc"] is None and found["cv_accuracy"] is not None
    assert reasons == {"cv_auc": "undefined: all rows are of one class"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("folds = 3", "folds = 1", "between 2 and 20"),
        ("folds = 3", "folds = 15", "fewer than 10 rows"),
        (
            "seed = 7",
            "seed = 7\nguard = { every = 2 }",
            "cannot be combined with train.guard.every",
        ),
        ("batch_size = 16", "batch_size = 60", "less than a batch"),
    ],
)
def test_contradictions(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = replaced('metrics = ["accuracy", "auc"]', FOLDS).replace(old, new)
    with pytest.raises(JobError, match=message):
        load_job(write_job(tmp_path, text))
