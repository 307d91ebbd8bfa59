"""Rows that their owner clips: to the norm in words, and only those that train."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from mpc_train.jobs.schedule import training_of
from mpc_train.owners.row_norms import clipped, clipped_labels
from mpc_train.privacy.accounting import row_clip
from mpc_train.privacy.clip_plan import input_norm, most_residual
from mpc_train.privacy.newton import LEAST_BITS, row_norm
from protocols.ring.fixed_point import encode
from tests.support.jobs import job_toml, loaded
from tests.support.noisy_newton import noisy_job

PRIVACY = '[privacy]\nepsilon = 8\ndelta = 0.001\nneighbours = "zeroed"\nclip = 2'
TRAIN = "epochs = 2\nbatch_size = 20\nguard = false\noptimizer = { learning_rate = 0.1 }"


def test_training_rows_are_clipped_and_no_others(tmp_path: Path) -> None:
    job = loaded(tmp_path, job_toml("abcd", train=TRAIN, more=PRIVACY))
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 4)) * rng.choice([0.1, 1, 30], (40, 1))
    # In two blocks, as rows are shared in.
    blocks = [clipped(job, "bob", rows[first : first + 25], first) for first in (0, 25)]
    found = np.concatenate(blocks)
    mine = np.zeros(40, bool)
    mine[training_of(job, "bob") - job.first_row("bob")] = True
    assert 0 < (~mine).sum() < 40
    np.testing.assert_array_equal(found[~mine], rows[~mine])
    norm = float(input_norm(job))
    long = np.linalg.norm(rows, axis=1) > norm
    np.testing.assert_array_equal(found[mine & ~long], rows[mine & ~long])
    clipped_norms = np.linalg.norm(found[mine & long], axis=1)
    assert len(clipped_norms) and (clipped_norms > norm * 0.9999).all()
    # As words, with the intercept's 1 and the largest residual, exactly within the norm.
    words = encode(found[mine], job.fraction_bits)
    for row in words:
        square = sum(int(word) ** 2 for word in row) + (1 << 2 * job.fraction_bits)
        gradient = square * most_residual(job.fraction_bits) ** 2
        assert gradient <= row_clip(job) ** 2 * (1 << 2 * job.fraction_bits)


def test_rows_of_other_jobs_stay_as_they_are(tmp_path: Path) -> None:
    job = loaded(tmp_path, job_toml("abcd", train=TRAIN, more=PRIVACY))
    rows = np.full((40, 4), 30.0)
    public = msgspec.structs.replace(job, privacy=msgspec.UNSET)
    assert clipped(public, "bob", rows, 0) is rows
    linear = loaded(tmp_path, job_toml("abcd", "linear", train=TRAIN, more=PRIVACY))
    assert clipped(linear, "bob", rows, 0) is rows


def test_rows_and_labels_of_newton_steps_are_bounded(tmp_path: Path) -> None:
    """Also as words of the fewest bits that the sums may have, however these are rounded; labels of
    rows that are held out stay."""
    job = noisy_job(tmp_path, "linear", rows=80, l2="90", data="test_fraction = 0.25")
    rng = np.random.default_rng(2)
    rows, labels = rng.normal(size=(40, 3)) * 9, rng.normal(size=40) * 3
    blocks = [slice(0, 25), slice(25, 40)]
    found = np.concatenate([clipped(job, "bob", rows[part], part.start) for part in blocks])
    bounded = np.concatenate(
        [clipped_labels(job, "bob", labels[part], part.start) for part in blocks]
    )
    mine = np.zeros(40, bool)
    mine[training_of(job, "bob") - job.first_row("bob")] = True
    np.testing.assert_array_equal(bounded[~mine], labels[~mine])
    np.testing.assert_array_equal(bounded[mine], labels[mine].clip(-2, 2))
    assert (np.abs(labels[mine]) > 2).sum() > 0 and (np.abs(labels[~mine]) > 2).any()
    scale = 2.0**LEAST_BITS
    away = np.where(found[mine] < 0, np.floor(found[mine] * scale), np.ceil(found[mine] * scale))
    norms = np.sqrt((away**2).sum(1) + scale**2)
    assert 0.99 * float(row_norm(job)) * scale < norms.max() <= float(row_norm(job)) * scale
    other = noisy_job(tmp_path, "logistic", rows=80, l2="90")
    assert clipped_labels(other, "bob", labels, 0) is labels
