"""The public order of rows and the learning rates: the same at every node, for ever."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import batches, learning_rate, permutation, split, total_steps
from tests.support.jobs import replaced, write_job


def test_a_permutation_is_pinned() -> None:
    assert permutation(12, "split", 3).tolist() == [0, 10, 9, 7, 6, 8, 3, 11, 2, 5, 4, 1]
    long = permutation(10_000, "batches", 7, epoch=5)
    assert hashlib.sha256(long.astype("<i8").tobytes()).hexdigest() == (
        "4a6b957f6949fee38bd81a51cbe41eb0a511fae78f116f172ccf8a111a1daf70"
    )


def test_a_permutation_follows_its_description() -> None:
    stream = hashlib.shake_256(b"mpc-train/v1/batches/9/2/50").digest(400)
    keys = [(int.from_bytes(stream[8 * i : 8 * i + 8], "little"), i) for i in range(50)]
    assert permutation(50, "batches", 9, 2).tolist() == [row for _, row in sorted(keys)]


def test_permutations_differ_by_seed_purpose_and_epoch() -> None:
    orders = [
        permutation(100, *key).tolist()
        for key in [("split", 1, 0), ("split", 2, 0), ("batches", 1, 0), ("batches", 1, 1)]
    ]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_rows_are_split_and_batched_once(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    training, held_out = split(job)
    assert (len(training), len(held_out)) == (75, 25)
    assert sorted([*training, *held_out]) == list(range(100))
    for epoch in range(job.train.epochs):
        drawn = np.concatenate(batches(job, epoch))
        assert [len(batch) for batch in batches(job, epoch)] == [16] * 4
        assert len(set(drawn.tolist())) == 64
        assert set(drawn.tolist()) <= set(training.tolist())
    assert total_steps(job) == 16
    assert batches(job, 0)[0].tolist() != batches(job, 1)[0].tolist()


def test_a_job_without_held_out_rows_trains_on_all(tmp_path: Path) -> None:
    text = replaced("test_fraction = 0.25", "test_fraction = 0").replace(
        '["accuracy", "auc"]', "[]"
    )
    training, held_out = split(load_job(write_job(tmp_path, text)))
    assert (len(training), len(held_out)) == (100, 0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ('name = "constant"', lambda epoch: 0.5),
        ('name = "step", every = 2, factor = 0.1', lambda epoch: 0.5 * 0.1 ** (epoch // 2)),
        ('name = "cosine"', lambda epoch: 0.25 * (1 + math.cos(math.pi * epoch / 4))),
    ],
)
def test_learning_rates(tmp_path: Path, schedule: str, expected) -> None:  # type: ignore[no-untyped-def]
    job = load_job(
        write_job(tmp_path, replaced("seed = 7", f"seed = 7\nschedule = {{ {schedule} }}"))
    )
    for epoch in range(4):
        assert float(learning_rate(job, epoch)) == pytest.approx(expected(epoch), abs=1e-11)


def test_cosine_rates_are_pinned(tmp_path: Path) -> None:
    job = load_job(
        write_job(tmp_path, replaced("seed = 7", 'seed = 7\nschedule = { name = "cosine" }'))
    )
    assert [int(learning_rate(job, epoch) * 2**40) for epoch in range(4)] == [
        549755813888,
        469245938942,
        274877906944,
        80509874946,
    ]
