"""`[train]` of a job: what it may say, and errors that name the key."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import batches, checked_rows, learning_rate, split, total_steps
from mpc_train.jobs.training import leaving
from mpc_train.training.rates import rate
from tests.support.jobs import JOB, replaced, write_job

SGD = 'optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }'
ADAM = 'optimizer = { name = "adam", learning_rate = 0.01 }'


def job_of(folder: Path, train: str) -> Job:
    return load_job(write_job(folder, replaced(SGD, train)))


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ('optimizer = { name = "adagrad", learning_rate = 1 }', "train.optimizer.name"),
        ("optimizer = { learning_rate = 1, betas = [0.9, 0.999, 0] }", "train.optimizer.betas"),
        ("optimizer = { learning_rate = 1, alpha = 0.5 }", "train.optimizer.alpha"),
        ("optimizer = { learning_rate = 1, nesterov = true }", "train.optimizer.nesterov"),
        (
            'optimizer = { name = "adam", learning_rate = 0.01, momentum = 0.9 }',
            "train.optimizer.momentum",
        ),
        (
            'optimizer = { name = "adam", learning_rate = 0.01, betas = [0.9, 1] }',
            "train.optimizer.betas",
        ),
        (
            'optimizer = { name = "adam", learning_rate = 0.01, betas = [0.99, 0.9] }',
            "train.optimizer: betas",
        ),
        (
            'optimizer = { name = "adam", learning_rate = 0.01, epsilon = 0.00000001 }',
            "train.optimizer: epsilon",
        ),
        ('optimizer = { name = "adam", learning_rate = 1 }', "train.optimizer: a learning rate"),
        (f"{ADAM}\nclip = {{ value = 1, norm = 1 }}", "train.clip"),
        (f"{ADAM}\nclip = {{ norm = 0 }}", "train.clip.norm"),
        (f"{ADAM}\nclip = {{ norm = 0.000001 }}", "train.clip.norm"),
        (f'{ADAM}\nloss = {{ name = "mse" }}', "train.loss.name"),
        (f"{ADAM}\nloss = {{ delta = 2 }}", "train.loss.delta"),
        (f"{ADAM}\nloss = {{ positive_weight = 100 }}", "train.loss.positive_weight"),
        (f"{ADAM}\nschedule = {{ warmup_steps = -1 }}", "train.schedule.warmup_steps"),
        (f"{ADAM}\nearly_stopping = {{ fraction = 0.1 }}", "train.early_stopping.fraction"),
        (
            f"{ADAM}\nearly_stopping = {{ fraction = 0.4 }}\npreprocess = true",
            "train.preprocess",
        ),
        (
            f"{ADAM}\nearly_stopping = {{ fraction = 0.5, patience = 0 }}",
            "train.early_stopping.patience",
        ),
        (f"{ADAM}\nguard = {{ every = 0 }}", "train.guard.every"),
        (f"{ADAM}\ncheckpoint_every = -1", "train.checkpoint_every"),
        (f"{ADAM}\ncheckpoint_every = 1001", "train.checkpoint_every"),
        (f"{ADAM}\nguard = {{ }}", "train.guard"),
        (f'{ADAM}\nguard = "never"', "train.guard"),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, train: str, key: str) -> None:
    with pytest.raises(JobError) as caught:
        job_of(tmp_path, train)
    assert key in str(caught.value)
    assert "job.toml" in str(caught.value)


def test_a_loss_of_few_rows_is_not_revealed(tmp_path: Path) -> None:
    text = replaced('metrics = ["accuracy", "auc"]', "training_loss_every = 5")
    with pytest.raises(JobError, match=r"reveal\.training_loss_every"):
        load_job(write_job(tmp_path, text))


def test_everything_travels_in_the_canonical_bytes(tmp_path: Path) -> None:
    job = job_of(
        tmp_path,
        f"{ADAM}\nclip = {{ value = 0.5 }}\nguard = {{ every = 7 }}\n"
        "early_stopping = { fraction = 0.4, keep_best = false }\n"
        "schedule = { warmup_steps = 3 }\nloss = { positive_weight = 2.5 }",
    )
    assert job_from_bytes(job.to_bytes()) == job


def test_the_guard_at_the_end_needs_no_key(tmp_path: Path) -> None:
    for guard, at_end, every in (
        ("", True, 0),
        ("guard = true", True, 0),
        ("guard = false", False, 0),
        ("guard = { every = 3 }", True, 3),
    ):
        job = job_of(tmp_path, f"{ADAM}\n{guard}")
        assert (job.train.guards_end, job.train.guard_every) == (at_end, every)
        assert job_from_bytes(job.to_bytes()) == job


def test_warm_up_rises_to_the_rate(tmp_path: Path) -> None:
    job = job_of(tmp_path, f"{ADAM}\nschedule = {{ warmup_steps = 4 }}")
    found = [learning_rate(job, 0, step) for step in range(1, 6)]
    assert found == [Fraction(step, 400) for step in (1, 2, 3, 4, 4)]
    assert rate(job, 1, 5) == Fraction(1, 100)


def test_rows_that_decide_do_not_train(tmp_path: Path) -> None:
    plain = job_of(tmp_path, ADAM)
    job = job_of(tmp_path, f"{ADAM}\nearly_stopping = {{ fraction = 0.4 }}")
    training, held_out = split(job)
    assert len(checked_rows(job)) == int(0.4 * 75) and not len(checked_rows(plain))
    assert set(held_out) == set(split(plain)[1])
    used = {int(row) for epoch in range(4) for rows in batches(job, epoch) for row in rows}
    assert used <= set(training.tolist())
    assert not used & (set(checked_rows(job).tolist()) | set(held_out.tolist()))
    assert total_steps(job) < total_steps(plain)


def test_a_dealer_that_leaves_waits_for_no_metrics(tmp_path: Path) -> None:
    """Also if it owns rows: only those who stay learn metrics of their own."""

    def text(deals: str, reveal: str) -> str:
        registry = JOB.replace('dealer = "registry"', f'dealer = "{deals}"')
        ahead = registry.replace("[reveal]", "preprocess = true\n\n[reveal]")
        return ahead + reveal

    own = 'per_party = ["accuracy"]\nleast_test_rows = 2\n'
    for deals, reveal in (("registry", own), ("cleo", "")):
        path = tmp_path / "job.toml"
        path.write_text(text(deals, reveal))
        assert leaving(load_job(path)) == (deals,)
    path.write_text(text("cleo", own))
    with pytest.raises(JobError, match=r"train\.preprocess.*cleo, which deals, is also an owner"):
        load_job(path)
